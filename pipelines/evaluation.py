"""The test images of a run on the device, in the views that the evaluation averages over."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from pipelines.batch import NOISE, Examples
from pipelines.graph import Graph, Recipe, default_backend
from pipelines.sampling import evaluation_draws
from pipelines.shards import ShardSet, Subset
from pipelines.stream import with_index
from pipelines.whitening import Preprocess
from pipelines.windows import draw, window_of

BATCH_IMAGES, BATCH_BYTES = 128, 32 * 2**20  # images a batch at most, and what their views may take


class EvaluationLoader:
    """Every test image exactly once, in order, in 8 views (4 without flips); the same views at every pass.

    A batch is a function of its number. It goes through the graph of a stream, each view as an image.

    Args:
        source: labeled images.
        preprocess: fitted normalisation.
        flip: add the four views of the flipped image.
        seed: of jitter and noise.
        device: the CPU or one GPU.
        noise: standard deviation; 0 for none.
        threads: for augmentation on a CPU; batches do not depend on how many.
        backend: see ``pipelines.graph``; None for the device's.

    Iterating yields Examples: (n·views, C, H, W), image by image, and labels (n,). The last batch is smaller.
    """

    def __init__(self, source: ShardSet | Subset, preprocess: Preprocess, *, flip: bool, seed: int = 0,
                 device: torch.device | str = "cpu", noise: float = NOISE, threads: int = 1,
                 backend: str | None = None):
        self._device = with_index(torch.device(device))
        self._source, self._preprocess, self._seed = source, preprocess.to(self._device), seed
        self._labels = torch.from_numpy(source.labels.astype(np.int64))
        self._flip, self._noise, self._threads = flip, noise, threads
        self._backend = backend or default_backend(self._device)
        self.views = 8 if flip else 4
        self._images = max(1, min(BATCH_IMAGES, BATCH_BYTES // (4 * self.views * math.prod(source.image_shape))))

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self._source) // self._images)

    def __iter__(self) -> Iterator[Examples]:
        graph = Graph(Recipe(self._source.image_shape, self._preprocess, views=False, flip=self._flip,
                             noise=self._noise, steps=1, images=self._images * self.views),
                      self._device, self._backend, self._threads)
        for number in range(len(self)):
            yield self._make(graph, number)

    def _make(self, graph: Graph, number: int) -> Examples:
        first = number * self._images
        indices = np.arange(first, min(len(self._source), first + self._images))
        padded = self._backend == "dali"
        window = window_of(self._source.read(indices), self._preprocess, self._device, padded)
        draws = evaluation_draws(self._seed, indices, math.prod(self._source.image_shape), self._flip)
        pixels = draw(window, (indices - first).repeat(self.views), draws.offsets if padded else None)
        images = graph(pixels, draws).flatten(0, 1).permute(0, 3, 1, 2)
        return Examples(images, self._labels[first:first + len(indices)].to(self._device, copy=True))
