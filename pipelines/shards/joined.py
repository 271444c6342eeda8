"""Several sets of images as one source, end to end."""

from collections.abc import Sequence

import numpy as np

from pipelines.shards.reader import ImageSource


class Joined:
    """Images of several sources, which keep their order: the second begins where the first ends.

    Args:
        sources: shard sets or subsets with images of one shape; their labels are ignored.
    """

    def __init__(self, sources: Sequence[ImageSource]):
        self.image_shape = sources[0].image_shape
        if any(source.image_shape != self.image_shape for source in sources):
            raise ValueError(f"images of {[source.image_shape for source in sources]} in one source")
        self._sources = list(sources)
        self._starts = np.concatenate([[0], np.cumsum([len(source) for source in sources])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices`` (n,), uint8 (n, H, W, C), in the order asked for; see ``Extents.read``."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"image index outside 0 to {len(self) - 1}")
        places = np.searchsorted(self._starts, indices, side="right") - 1
        touched = np.unique(places)
        if len(touched) == 1:
            return self._sources[touched[0]].read(indices - self._starts[touched[0]])
        out = np.empty((len(indices), *self.image_shape), np.uint8)
        for place in touched:
            chosen = np.flatnonzero(places == place)
            out[chosen] = self._sources[place].read(indices[chosen] - self._starts[place])
        return out
