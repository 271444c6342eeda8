"""Windows: the part of an image source that is on the device, normalised and padded, ready to be drawn from.

What is the same for every pass over an image happens here, once per window and in one batched operation:
GCN, ZCA, the mirrored border. The next window is prepared in the background while this one is drawn from. A
source that fits one window is loaded once and stays.
"""

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch

from pipelines.augment import MAX_SHIFT, fill_border
from pipelines.buffers import Buffers
from pipelines.sampling import Order
from pipelines.shards import ImageSource
from pipelines.threads import background_thread
from pipelines.whitening import Preprocess

CPU_WINDOW_BYTES = 64 * 2**20
GPU_WINDOW_BYTES = 2**30
CACHED_ROWS = 2**17  # of windows' permutations, 16 bytes each
CHUNK_VALUES = {"cpu": 256 * 3072, "cuda": 4096 * 3072}  # normalised at a time: what fits the caches; what is little


def default_window_images(image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Images in a window: 64 MiB of padded float32 on the CPU; on a GPU 1 GiB, or a 16th of a small one."""
    budget = CPU_WINDOW_BYTES
    if device.type == "cuda":
        budget = min(GPU_WINDOW_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
    return max(1, budget // (4 * math.prod(padded_shape(1, image_shape))))


def padded_shape(count: int, image_shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Of ``count`` images with their border."""
    height, width, channels = image_shape
    return count, height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT, channels


def to_device(images: np.ndarray, preprocess: Preprocess, out: torch.Tensor,
              run: Callable[[Callable, Iterable[int]], Iterable] = map) -> None:
    """Normalise and mirror-pad images, uint8 (n, H, W, C), into ``out``, float32 (n, H+4, W+4, C).

    Chunk by chunk; ``run`` maps the work over the chunks, on several threads perhaps: the result is the same to the
    bit.
    """
    inside = slice(MAX_SHIFT, -MAX_SHIFT)
    step = max(1, CHUNK_VALUES[out.device.type] // images[:1].size)

    def work(first: int) -> None:
        part = out[first:first + step]
        part[:, inside, inside] = preprocess(torch.from_numpy(images[first:first + step]).to(out.device))
        fill_border(part)
    for _ in run(work, range(0, len(images), step)):
        pass


def upload(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on the device, without a wait for what is queued there."""
    tensor = torch.from_numpy(numbers)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _failed(loading: Future) -> bool:
    return loading.done() and loading.exception() is not None


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
        self._shape = padded_shape(order.largest_window, source.image_shape)
        self._buffers = Buffers(self._shape)
        # Small sets have many epochs, so many windows, in one run of a pipeline.
        self._window = lru_cache(max(4, CACHED_ROWS // order.largest_window))(order.window)
        self._worker = background_thread("window", device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def indices(self, position: int, count: int) -> np.ndarray:
        """Which images of the source the stream positions ``position`` to ``position + count`` are, int64 (count,)."""
        parts = []
        for segment in self._order.segments(position, count):
            indices, permutation = self._window(segment.epoch, segment.window)
            parts.append(indices[permutation[segment.first:segment.last]])
        return np.concatenate(parts)

    def gather(self, position: int, count: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """The padded images at those positions, float32 (count, H+4, W+4, C), into ``out`` where it is given."""
        segments = self._order.segments(position, count)
        last = segments[-1]
        wanted = [(segment.epoch, segment.window) for segment in segments]
        start, end = (self._order.window_start(last.window + i) for i in (0, 1))
        if 2 * last.last >= end - start:  # half drawn: have the next one ready in time
            wrap = last.window + 1 == self._order.windows
            wanted.append((last.epoch + 1, 0) if wrap else (last.epoch, last.window + 1))
        self._want([self._key(*which) for which in wanted])
        if out is None:
            out = torch.empty(padded_shape(count, self._source.image_shape), device=self._device)
        done = 0
        for key, parts in groupby(segments, lambda segment: self._key(segment.epoch, segment.window)):
            rows = np.concatenate([self._window(part.epoch, part.window)[1][part.first:part.last] for part in parts])
            window = self._contents[key].result()
            torch.index_select(window, 0, upload(rows, self._device), out=out[done:done + len(rows)])
            done += len(rows)
        return out

    def close(self) -> None:
        """Let go of the windows and of the background thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._contents.clear()
        self._buffers.clear()

    def _key(self, epoch: int, window: int) -> tuple[int, int]:
        return (0, 0) if self._order.windows == 1 else (epoch, window)

    def _want(self, keys: list[tuple[int, int]]) -> None:
        """Have these windows loading or loaded, and no others."""
        for key in [key for key in self._contents if key not in keys]:
            gone = self._contents.pop(key)
            if not gone.cancel():
                wait([gone])  # there is memory for two windows, not for three
            del gone
        for key in keys:
            if key not in self._contents or _failed(self._contents[key]):
                self._contents[key] = self._worker.submit(self._load, *key)

    def _load(self, epoch: int, window: int) -> torch.Tensor:
        indices, _ = self._order.window(epoch, window)
        pixels = self._source.read(indices)
        self.loaded += 1
        if self._stream is None:
            window_images = self._buffers.take()
            if self.loaded > 1:
                to_device(pixels, self._preprocess, window_images[:len(pixels)])
            else:  # somebody is waiting for the first
                with background_thread("first-window", self._device, len(os.sched_getaffinity(0))) as threads:
                    to_device(pixels, self._preprocess, window_images[:len(pixels)], threads.map)
            return window_images
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # A new tensor each time: the allocator keeps the memory, and knows when the drawing stream is done with it.
            window_images = torch.empty(self._shape, device=self._device)
            to_device(pixels, self._preprocess, window_images[:len(pixels)])
        self._stream.synchronize()  # this thread waits, so that the drawing one need not
        window_images.record_stream(torch.cuda.current_stream(self._device))
        return window_images
