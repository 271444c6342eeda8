"""Windows: the part of an image source that is on the device, normalised and padded, ready to be drawn from.

What is the same for every pass over an image happens here, once per window and in one batched operation:
GCN, ZCA, the mirrored border. The next window is prepared in the background while this one is drawn from. A
source that fits one window is loaded once and stays.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from pipelines.augment import MAX_SHIFT, pad_symmetric
from pipelines.sampling import Order
from pipelines.shards import ImageSource
from pipelines.whitening import Preprocess

CPU_WINDOW_BYTES = 64 * 2**20
GPU_WINDOW_BYTES = 2**30
CHUNK = 1024  # images normalised at a time, so that intermediate results stay small


def default_window_images(image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Images in a window: 64 MiB of padded float32 on the CPU; on a GPU 1 GiB, or a 16th of a small one."""
    height, width, channels = image_shape
    budget = CPU_WINDOW_BYTES
    if device.type == "cuda":
        budget = min(GPU_WINDOW_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
    return max(1, budget // ((height + 2 * MAX_SHIFT) * (width + 2 * MAX_SHIFT) * channels * 4))


def to_device(images: np.ndarray, preprocess: Preprocess, device: torch.device) -> torch.Tensor:
    """uint8 (n, H, W, C) to normalised, mirror-padded float32 (n, H+4, W+4, C) on the device, chunk by chunk."""
    height, width, channels = images.shape[1:]
    out = torch.empty((len(images), height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT, channels), device=device)
    for first in range(0, len(images), CHUNK):
        pixels = torch.from_numpy(images[first:first + CHUNK]).to(device)
        out[first:first + CHUNK] = pad_symmetric(preprocess(pixels))
    return out


class Windows:
    """Random access, by stream position, to the images of a source in a given order; a window or two in memory.

    Args:
        source: where images are read.
        order: which image each stream position is.
        preprocess: normalisation, on ``device``.
    """

    def __init__(self, source: ImageSource, order: Order, preprocess: Preprocess, device: torch.device):
        self.loaded = 0  # windows read so far
        self._source, self._order, self._preprocess, self._device = source, order, preprocess, device
        self._contents: dict[tuple[int, int], Future] = {}
        self._window = lru_cache(maxsize=4)(order.window)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="window")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def indices(self, position: int, count: int) -> np.ndarray:
        """Which images of the source the stream positions ``position`` to ``position + count`` are, int64 (count,)."""
        parts = []
        for segment in self._order.segments(position, count):
            indices, permutation = self._window(segment.epoch, segment.window)
            parts.append(indices[permutation[segment.first:segment.last]])
        return np.concatenate(parts)

    def gather(self, position: int, count: int) -> torch.Tensor:
        """The padded images at those positions: float32 (count, H+4, W+4, C), contiguous, the caller's own."""
        segments = self._order.segments(position, count)
        last = segments[-1]
        wanted = [(segment.epoch, segment.window) for segment in segments]
        start, end = (self._order.window_start(last.window + i) for i in (0, 1))
        if 2 * last.last >= end - start:  # half drawn: have the next one ready in time
            wrap = last.window + 1 == self._order.windows
            wanted.append((last.epoch + 1, 0) if wrap else (last.epoch, last.window + 1))
        self._contents = {self._key(*which): self._contents.get(self._key(*which)) or
                          self._worker.submit(self._load, *which) for which in wanted}
        images = []
        for segment in segments:
            _, permutation = self._window(segment.epoch, segment.window)
            rows = torch.from_numpy(permutation[segment.first:segment.last]).to(self._device)
            window = self._contents[self._key(segment.epoch, segment.window)].result()
            images.append(window.index_select(0, rows))
        return images[0] if len(images) == 1 else torch.cat(images)

    def close(self) -> None:
        """Let go of the windows and of the background thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._contents.clear()

    def _key(self, epoch: int, window: int) -> tuple[int, int]:
        return (0, 0) if self._order.windows == 1 else (epoch, window)

    def _load(self, epoch: int, window: int) -> torch.Tensor:
        indices, _ = self._order.window(epoch, window)
        pixels = self._source.read(indices)
        self.loaded += 1
        if self._stream is None:
            return to_device(pixels, self._preprocess, self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            window_images = to_device(pixels, self._preprocess, self._device)
        self._stream.synchronize()  # this thread waits, so that the drawing one need not
        window_images.record_stream(torch.cuda.current_stream(self._device))
        return window_images
