"""Fuzzing of all readers of files: whatever is damaged or hostile they read or refuse, without crash, hang or bloat."""
