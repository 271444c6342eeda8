"""Batches to a trained and evaluated SESEMI model, with PyTorch."""
