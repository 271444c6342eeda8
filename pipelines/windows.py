"""Windows: the part of an image source that is on the device, ready to be drawn from.

What is the same for every pass over an image is done once a window: on a GPU the normalisation and the mirrored border,
on a CPU ZCA, which mixes pixels, while the rest is the kernel's. The next window is read in the background while this
one is drawn from. A source that fits one window is read once and stays.
"""

from functools import lru_cache
from itertools import groupby

import numpy as np
import torch

from pipelines.prefetch import Prefetcher
from pipelines.sampling import MAX_SHIFT, Order
from pipelines.shards import ImageSource
from pipelines.whitening import Preprocess

BLOCK_IMAGES, WINDOW_BLOCKS = 8, 512  # images in a block at most, and blocks in a window at least
CPU_WINDOW_BYTES = 64 * 2**20
GPU_WINDOW_BYTES = 2**30
CACHED_ROWS = 2**17  # of windows' permutations, 16 bytes each
CHUNK_VALUES = {"cpu": 256 * 3072, "cuda": 4096 * 3072}  # normalised and padded at a time, for little memory


def default_window_images(image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Images in a window: as many as are 64 MiB of padded float32, on a GPU 1 GiB or a 16th of a small one.

    A CPU's window of bytes takes a quarter of that or less: the order is the same whatever the preprocessing.
    """
    budget = CPU_WINDOW_BYTES
    if device.type == "cuda":
        budget = min(GPU_WINDOW_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
    return images_in(budget, image_shape)


def images_in(budget: int, image_shape: tuple[int, int, int]) -> int:
    """Images in a window of so many bytes, if they were padded float32; at least one."""
    height, width, channels = image_shape
    return max(1, budget // (4 * (height + 2 * MAX_SHIFT) * (width + 2 * MAX_SHIFT) * channels))


def default_block_images(window_images: int) -> int:
    """Consecutive images that stay together in the shuffle: few enough that a window of a sorted set mixes it."""
    return max(1, min(BLOCK_IMAGES, window_images // WINDOW_BLOCKS))


def upload(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on the device, without a wait for what is queued there."""
    tensor = torch.from_numpy(numbers)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def window_of(images: np.ndarray, preprocess: Preprocess, device: torch.device, padded: bool) -> torch.Tensor:
    """A window of images, uint8 (n, H, W, C), on the device.

    ``padded``: normalised, with a border, float32 (n, H+4, W+4, C); else float32 (n, H, W, C) where ``preprocess``
    mixes pixels, and the images as they are where it does not.
    """
    if not (padded or preprocess.mixes):
        return torch.from_numpy(images)
    count, height, width, channels = images.shape
    border = 2 * MAX_SHIFT * padded
    out = torch.empty(count, height + border, width + border, channels, device=device)
    step = max(1, CHUNK_VALUES[device.type] // images[0].size)
    for first in range(0, count, step):
        chunk = slice(first, first + step)
        normalized = preprocess(torch.from_numpy(images[chunk]).to(device))
        (mirror_pad if padded else torch.Tensor.copy_)(out[chunk], normalized)
    return out


def mirror_pad(out: torch.Tensor, images: torch.Tensor, by: int = MAX_SHIFT) -> None:
    """Images (n, H, W, C) into ``out`` (n, H+2·by, W+2·by, C), with a border mirrored with the edge pixel.

    NumPy calls it ``symmetric``, SciPy ``reflect``.
    """
    out[:, by:-by, by:-by] = images
    for axis in (1, 2):
        sources = np.pad(np.arange(images.shape[axis]), by, "symmetric")
        for place in (*range(by), *range(-by, 0)):
            out.select(axis, place).copy_(out.select(axis, by + int(sources[place])))


def crop(padded: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Images (n, H, W, C) cut out of padded ones at integer offsets, by one gather of lines of pixels.

    Args:
        padded: (N, H+4, W+4, C), contiguous.
        rows: which of them, int64 (n,).
        offsets: y and x, 0 to 4, int64 (n, 2).
    """
    _, height, width, channels = padded.shape
    height, width = height - 2 * MAX_SHIFT, width - 2 * MAX_SHIFT
    pixels = padded.numel() // channels
    lines = padded.as_strided((pixels - width + 1, width * channels), (channels, 1))  # one begins at every pixel
    y = offsets[:, :1] + torch.arange(height, device=padded.device)
    first = (rows[:, None] * padded.shape[1] + y) * padded.shape[2] + offsets[:, 1:]
    return lines.index_select(0, first.flatten()).view(len(rows), height, width, channels)


def draw(window: torch.Tensor, rows: np.ndarray, offsets: np.ndarray | None) -> torch.Tensor:
    """Those images of a window, (n, H, W, C); of a padded one cropped at ``offsets`` (n, 2), else None."""
    if offsets is None:
        return window.index_select(0, torch.from_numpy(rows))
    return crop(window, upload(rows, window.device), upload(np.ascontiguousarray(offsets), window.device))


class Windows:
    """Random access, by stream position, to the images of a source in a given order; two windows at most in memory.

    Args:
        source: where images are read.
        order: which image each stream position is.
        preprocess: normalisation, on ``device``.
        device: where windows are.
        padded: whether images are cropped when they are drawn; see ``window_of``.
        threads: for ZCA on a CPU.
    """

    def __init__(self, source: ImageSource, order: Order, preprocess: Preprocess, device: torch.device,
                 padded: bool = False, threads: int = 1):
        self._source, self._order, self._preprocess, self._padded = source, order, preprocess, padded
        self._device = device
        # Small sets have many epochs, so many windows, in one superbatch.
        self._window = lru_cache(max(4, CACHED_ROWS // order.largest_window))(order.window)
        self._contents = Prefetcher(self._load, 0 if order.windows == 1 else 1, device, threads)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Which images of the source those at stream positions (n,), ascending, are: int64 (n,)."""
        return self._order.indices(positions, self._window)

    def gather(self, positions: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        """The images at stream positions (n,), ascending; cropped at ``offsets`` (n, 2) where windows are padded."""
        found = self._order.parts(positions)
        rows = [(0 if self._order.windows == 1 else number, self._window(number)[1][places])
                for number, places in found]
        parts, done = [], 0
        for number, group in groupby(rows, lambda part: part[0]):
            chosen = np.concatenate([rows for _, rows in group])
            window = self._contents.get(number, ahead=0)
            if window.is_cuda:  # made on the windows' stream, read on this one
                window.record_stream(torch.cuda.current_stream(self._device))
            parts.append(draw(window, chosen, offsets[done:done + len(chosen)] if self._padded else None))
            done += len(chosen)
            size = len(window)
            del window
        last = found[-1][1][-1]
        if 2 * last >= size or last + len(positions) >= size:  # half is drawn, or the next call may need the next one
            self._contents.start(number)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def settle(self) -> None:
        """Wait for the windows that are being read."""
        self._contents.settle()

    def close(self) -> None:
        """Release the windows and end the background thread."""
        self._contents.close()

    def _load(self, number: int) -> torch.Tensor:
        images = self._source.read(self._window(number)[0])
        window = window_of(images, self._preprocess, self._device, self._padded)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # this thread waits, so that no reader need
        return window
