"""Leaving out of a set the images that another one has: exact duplicates, by a hash of their pixels."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.progress import progress_bar
from pipelines.shards import ShardSet

CHUNK = 4096
DIGEST_BYTES = 16  # two different images among 79 million and a million meet by chance once in 10^24 conversions


class Excluded:
    """The images of some sets, of which only hashes are held (some 100 bytes an image)."""

    def __init__(self, sets: Iterable[ShardSet]):
        self.dropped = 0  # images left out so far
        self._hashes: set[bytes] = set()
        self.image_shape = None
        for shard_set in sets:
            if self.image_shape not in (None, shard_set.image_shape):
                raise DataError(f"{shard_set.path}: images of {shard_set.image_shape} found, {self.image_shape} "
                                f"in the set beside it")
            self.image_shape = shard_set.image_shape
            with progress_bar(len(shard_set), " images", f"hashing {shard_set.path}") as bar:
                for first in range(0, len(shard_set), CHUNK):
                    images = shard_set.read(np.arange(first, min(first + CHUNK, len(shard_set))))
                    self._hashes.update(map(pixel_hash, images))
                    bar.update(len(images))

    def drop(self, images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """``images`` (n, H, W, C) and ``labels`` (n,) without those that an excluded set has."""
        kept = np.array([pixel_hash(image) not in self._hashes for image in images], dtype=bool)
        self.dropped += int(len(kept) - kept.sum())
        if kept.all():
            return images, labels
        return images[kept], None if labels is None else labels[kept]


def pixel_hash(image: np.ndarray) -> bytes:
    """A hash of an image's pixels, uint8 (H, W, C)."""
    return blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest()
