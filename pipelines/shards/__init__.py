"""The shard set: the format on disk. Needs neither DALI nor PyTorch."""

from pipelines.shards.joined import Joined
from pipelines.shards.reader import SAMPLE_IMAGES, Extents, ImageSource, ShardSet, Subset, find_sets

__all__ = ["SAMPLE_IMAGES", "Extents", "ImageSource", "Joined", "ShardSet", "Subset", "find_sets"]
