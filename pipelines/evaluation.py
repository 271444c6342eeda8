"""The test images of a run on the device, in the views that the evaluation averages over."""

from collections.abc import Iterator

import numpy as np
import torch

from pipelines.batch import NOISE, Examples
from pipelines.graphs import EVALUATION_IMAGES, evaluation_graph, evaluation_views, for_dali, run_pipeline
from pipelines.loader import CPU_NOISE, DALI_NOISE, DRAWS, EVALUATION, with_index
from pipelines.sampling import draw_jitter, generator, seed_from, word_from
from pipelines.shards import ShardSet, Subset
from pipelines.whitening import Preprocess
from pipelines.windows import Pixels, padded_shape, to_device


class EvaluationLoader:
    """Every test image exactly once, in order, in 8 views (4 without flips); the same views at every pass.

    Args:
        source: labeled images.
        preprocess: fitted normalisation.
        flip: add the four views of the flipped image.
        seed: of jitter and noise.
        device: the CPU or one GPU.

    Iterating yields Examples: (n·views, C, H, W), image by image, and labels (n,). The last batch is smaller.
    """

    def __init__(self, source: ShardSet | Subset, preprocess: Preprocess, *, flip: bool, seed: int = 0,
                 device: torch.device | str = "cpu", noise: float = NOISE):
        self._device = with_index(torch.device(device))
        self._source, self._preprocess = source, preprocess.to(self._device)
        self._labels = torch.from_numpy(source.labels.astype(np.int64))
        self._flip, self._noise, self._seed = flip, noise, seed
        self.views = 8 if flip else 4

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self._source) // EVALUATION_IMAGES)

    def __iter__(self) -> Iterator[Examples]:
        in_graph = self._device.type == "cuda"
        key = (self._seed, EVALUATION)
        pipeline = evaluation_graph(
            self._source_images, self._source_offsets, size=self._source.image_shape[:2], flip=self._flip,
            noise=self._noise, device_id=self._device.index if in_graph else None, in_graph=in_graph,
            seed=seed_from(*key, DALI_NOISE))
        pipeline.build()
        for number in range(len(self)):
            (images,) = run_pipeline(pipeline, self._device)
            if not in_graph:
                images = evaluation_views(images, self._flip, self._noise, word_from(*key, CPU_NOISE, number))
            labels = self._labels[number * EVALUATION_IMAGES:(number + 1) * EVALUATION_IMAGES]
            yield Examples(images.flatten(0, 1).permute(0, 3, 1, 2), labels.to(self._device))

    def _indices(self, info) -> np.ndarray:
        if info.iteration >= len(self):
            raise StopIteration
        return np.arange(info.iteration * EVALUATION_IMAGES,
                         min(len(self._source), (info.iteration + 1) * EVALUATION_IMAGES))

    def _source_images(self, info) -> np.ndarray | torch.Tensor:
        pixels = self._source.read(self._indices(info))
        images = torch.empty(padded_shape(len(pixels), self._source.image_shape), device=self._device)
        to_device(pixels, self._preprocess, Pixels(images))
        return for_dali(images)

    def _source_offsets(self, info) -> np.ndarray:
        random = generator(self._seed, EVALUATION, DRAWS, info.iteration)
        return draw_jitter(random, len(self._indices(info))).T.astype(np.int32, order="C")
