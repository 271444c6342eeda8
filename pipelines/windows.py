"""Windows: the part of an image source that is on the device, ready to be drawn from.

What is the same for every pass over an image happens here, in batched operations: the mirrored border, and the
normalisation's costly part. ZCA is applied, once a window. Of GCN and of standardisation an image's center and scale
are found here and applied with the augmentation: bytes are a quarter of floats to pad, to gather and to shift. A GPU's
windows are padded when they are loaded, a CPU's images when they are drawn, which is a pass over memory less. The
next window is prepared in the background while this one is drawn from. A source that fits one window is loaded once
and stays.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from pipelines.augment import crop, mirror_pad
from pipelines.batch import MAX_SHIFT
from pipelines.buffers import Buffers
from pipelines.sampling import Order, Segment
from pipelines.shards import ImageSource
from pipelines.threads import background_thread
from pipelines.whitening import Preprocess

CPU_WINDOW_BYTES = 64 * 2**20
GPU_WINDOW_BYTES = 2**30
CACHED_ROWS = 2**17  # of windows' permutations, 16 bytes each
CHUNK_VALUES = {"cpu": 256 * 3072, "cuda": 4096 * 3072}  # normalised and padded at a time, for little memory


class Pixels(NamedTuple):
    """Images: float32 and normalised, or uint8 with what ``whitening.normalize`` takes.

    ``images`` are (n, H+4, W+4, C), padded, or (n, H, W, C); ``center`` and ``scale`` float32 (n, 1 or C), None for
    what is normalised.
    """

    images: torch.Tensor
    center: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Those that are there, images first."""
        return self[:1] if self.center is None else self


def default_window_images(image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Images in a window: as many as are 64 MiB of padded float32, on a GPU 1 GiB or a 16th of a small one.

    Where a window holds bytes it takes a quarter of that or less: the order is the same whatever the preprocessing.
    """
    budget = CPU_WINDOW_BYTES
    if device.type == "cuda":
        budget = min(GPU_WINDOW_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
    return max(1, budget // (4 * math.prod(padded_shape(1, image_shape))))


def padded_shape(count: int, image_shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Of ``count`` images with their border."""
    height, width, channels = image_shape
    return count, height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT, channels


def to_device(images: np.ndarray, preprocess: Preprocess | None, out: Pixels, rows: np.ndarray | None = None,
              run: Callable[[Callable, Iterable[slice]], Iterable] = map) -> None:
    """Mirror-pad images, uint8 (n, H, W, C), into ``out``: normalised where it is float32, else with their statistics.

    ``preprocess`` is None for images that are normalised. With ``rows`` (m,), those of the images. Chunk by chunk:
    ``run`` maps the work over the chunks, on several threads perhaps.
    """
    device = out.images.device
    if len(out.images) != len(images if rows is None else rows):
        raise ValueError(f"{len(images)} images, or those rows of them, into {len(out.images)}")

    def work(chunk: slice) -> None:
        pixels = torch.from_numpy(images[chunk if rows is None else rows[chunk]]).to(device)
        if out.center is not None:
            out.center[chunk], out.scale[chunk] = preprocess.statistics(pixels)
        elif preprocess is not None:
            pixels = preprocess(pixels)
        mirror_pad(pixels, out.images[chunk])
    for _ in run(work, chunks(len(out.images), images[:1].size, device)):
        pass


def chunks(count: int, values: int, device: torch.device) -> list[slice]:
    """``count`` images of so many values each, in parts of CHUNK_VALUES at most, or of one image."""
    step = max(1, CHUNK_VALUES[device.type] // values)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


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
        preprocess: normalisation, on ``device``; what is gathered is normalised already if it mixes pixels.
        helpers: threads for ZCA and for padding on a CPU; None for those that load and draw.
    """

    def __init__(self, source: ImageSource, order: Order, preprocess: Preprocess, device: torch.device,
                 helpers: Executor | None = None):
        self.loaded = 0  # windows read so far
        self._helpers = helpers if device.type == "cpu" else None
        self._chunks: list[Future] = []  # the helpers' work on the window read last
        self._source, self._order, self._preprocess, self._device = source, order, preprocess, device
        self._contents: dict[tuple[int, int], Future] = {}
        self._buffers = Buffers((order.largest_window, *source.image_shape))  # for ZCA on a CPU
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

    def gather(self, position: int, count: int, offsets: np.ndarray | None = None,
               images: torch.Tensor | None = None) -> Pixels:
        """The ``count`` images at those positions, padded; in the memory of ``images`` where they are given.

        With ``offsets``, int (n, 2), y and x into the padding: shifted, (n, H, W, C).
        """
        segments = self._order.segments(position, count)
        keys = list(dict.fromkeys(self._key(segment.epoch, segment.window) for segment in segments))
        following = self._following(segments[-1], count)
        self._want(keys + [key for key in following if key in self._contents])
        out = self._empty(count, images, padded=offsets is None)
        done = 0
        for key, parts in groupby(segments, lambda segment: self._key(segment.epoch, segment.window)):
            rows = np.concatenate([self._window(part.epoch, part.window)[1][part.first:part.last] for part in parts])
            window = self._contents[key].result()
            part = slice(done, done + len(rows))
            self._draw(window, rows, None if offsets is None else offsets[part],
                       Pixels(*(values[part] for values in out.parts)))
            done += len(rows)
            del window
        self._want(keys[-1:] + following)  # where the others were is room for the next one
        return out

    def wait_for_helpers(self) -> None:
        """Wait for their work on what has been read; not for a disk."""
        for chunk in self._chunks:
            chunk.exception()

    @property
    def loading(self) -> bool:
        """Whether a window is on its way."""
        return not all(window.done() for window in list(self._contents.values()))

    def settle(self) -> None:
        """Wait for the windows that are being loaded."""
        wait(self._contents.values())

    def close(self) -> None:
        """Let go of the windows and of the background thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._contents.clear()
        self._buffers.clear()

    def _key(self, epoch: int, window: int) -> tuple[int, int]:
        return (0, 0) if self._order.windows == 1 else (epoch, window)

    def _following(self, last: Segment, count: int) -> list[tuple[int, int]]:
        """The window to have ready after what was drawn last: the next one, if half of that one is drawn or as many
        images more are not in it."""
        start, end = (self._order.window_start(last.window + i) for i in (0, 1))
        if last.last < (end - start) / 2 and last.last + count <= end - start:
            return []
        wrap = last.window + 1 == self._order.windows
        return [self._key(last.epoch + 1, 0) if wrap else self._key(last.epoch, last.window + 1)]

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

    def _empty(self, count: int, images: torch.Tensor | None = None, padded: bool = True) -> Pixels:
        """For so many images, undefined; their memory is new where none is given."""
        scales = self._preprocess.scales
        if images is None:
            shape = self._source.image_shape
            images = torch.empty(padded_shape(count, shape) if padded else (count, *shape), device=self._device,
                                 dtype=torch.uint8 if scales else torch.float32)
        statistics = (torch.empty(count, scales, device=self._device) for _ in range(2)) if scales else ()
        return Pixels(images, *statistics)

    def _draw(self, window: np.ndarray | Pixels, rows: np.ndarray, offsets: np.ndarray | None, out: Pixels) -> None:
        """Those images of a loaded window, padded, or shifted by ``offsets``."""
        if isinstance(window, np.ndarray):
            padded = out if offsets is None else self._empty(len(rows))
            to_device(window, self._preprocess if self._preprocess.scales else None, padded, rows,
                      self._helpers.map if self._helpers else map)
            if offsets is None:
                return
            window, rows = padded, np.arange(len(rows))
        rows = upload(rows, self._device)
        if offsets is None:
            torch.index_select(window.images, 0, rows, out=out.images)
        else:
            crop(window.images, rows, upload(offsets, self._device), out.images)
        for values, result in zip(window.parts[1:], out.parts[1:], strict=True):
            torch.index_select(values, 0, rows, out=result)

    def _load(self, epoch: int, window: int) -> np.ndarray | Pixels:
        """A window: images as they are, or with ZCA applied, (n, H, W, C), on a CPU; padded ones on a GPU."""
        indices, _ = self._order.window(epoch, window)
        pixels = self._source.read(indices)
        self.loaded += 1
        if self._stream is None:
            return pixels if self._preprocess.scales else self._normalize(pixels)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # New tensors each time: the allocator keeps the memory, and knows when the drawing stream is done with it.
            contents = Pixels(*(part[:len(pixels)] for part in self._empty(self._order.largest_window).parts))
            to_device(pixels, self._preprocess, contents)
        self._stream.synchronize()  # this thread waits, so that the drawing one need not
        for part in contents.parts:
            part.record_stream(torch.cuda.current_stream(self._device))
        return contents

    def _normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Images with ZCA applied, float32, by the helpers."""
        out = self._buffers.take()[:len(pixels)].numpy()

        def work(chunk: slice) -> None:
            out[chunk] = self._preprocess(torch.from_numpy(pixels[chunk])).numpy()
        parts = chunks(len(pixels), pixels[:1].size, self._device)
        if self._helpers is None:
            for part in parts:
                work(part)
        else:
            self._chunks = [self._helpers.submit(work, part) for part in parts]
            for chunk in self._chunks:
                chunk.result()
        return out
