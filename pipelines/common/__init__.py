"""Plumbing that tools, pipelines and sesemi share. Needs neither DALI nor PyTorch."""
