"""Datasets to shard sets: commands that run once, offline."""
