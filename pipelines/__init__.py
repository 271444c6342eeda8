"""Shard sets to augmented batches on the device, with NVIDIA DALI."""
