"""What is random, per image and step: shift, flip, noise, and the six views, as DALI fragments.

Order as in the reference: shift, flip, noise, then the views, which therefore share one shift and one noise
draw. Images are H×W×C throughout, so that a batch is channels-last for the network without a copy. All but the
shift have a twin for the CPU backend, of PyTorch and NumPy: DALI draws noise there some eight times slower, makes the
views image by image, and looks through all arguments of a batch for each image it may mirror; the GPU runs DALI's.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines.whitening import normalize

MAX_SHIFT = 2  # pixels on each axis
NOISE = 0.15  # standard deviation, in whitened units
PIECE_VALUES = 192 * 3072  # augmented at a time on a CPU: fewer are more calls, for which threads wait for one another
VIEWS = 6  # rotations counter-clockwise by 0, 90, 180, 270 degrees (labels 0 to 3), left-right (4), up-down (5)


def fill_border(padded: torch.Tensor, by: int = MAX_SHIFT) -> None:
    """Fill a border of ``by`` pixels around (n, H+2·by, W+2·by, C) from inside, mirrored with the edge pixel.

    NumPy calls it ``symmetric``, SciPy ``reflect``. In place: on a CPU a second tensor costs more than the arithmetic.
    """
    for axis in (1, 2):
        size = padded.shape[axis]
        for i in range(by):
            padded.select(axis, by - 1 - i).copy_(padded.select(axis, by + i))
            padded.select(axis, size - by + i).copy_(padded.select(axis, size - by - 1 - i))


def shift(images: DataNode, offsets: DataNode | tuple[int, int], size: tuple[int, int],
          name: str = "shift") -> DataNode:
    """DALI: cut ``size`` out of padded images at integer offsets (y, x), which are in the padding's range."""
    return fn.slice(images, start=offsets, shape=size, axes=(0, 1), name=name)


def scale(images: DataNode, center: DataNode, factor: DataNode) -> DataNode:
    """DALI: what ``whitening.normalize`` does, to uint8 images; center and factor are (1, 1, 1 or C) an image."""
    return (images - center) * factor


def add_noise(images: DataNode, deviation: float, seed: int, name: str = "noise") -> DataNode:
    """DALI: add Gaussian noise, drawn anew for every value of every image."""
    return images + fn.random.normal(images, stddev=deviation, seed=seed, name=name)


def mirror(images: DataNode, which: DataNode | int = 1, name: str | None = None) -> DataNode:
    """DALI: flip left to right, all images or those where ``which`` is 1.

    (``fn.flip`` would launch one kernel an image on the GPU; this is one a batch.)
    """
    return fn.crop_mirror_normalize(images, mirror=which, dtype=types.FLOAT, output_layout="HWC", name=name)


def six_views(images: DataNode) -> DataNode:
    """DALI: the six proxy views of each square image, stacked to (6, H, W, C)."""
    def transposed(x: DataNode) -> DataNode:
        return fn.transpose(x, perm=[1, 0, 2], transpose_layout=False)
    left_right = mirror(images)
    rotated90 = transposed(left_right)
    rotated270 = mirror(transposed(images))
    up_down = transposed(rotated270)
    rotated180 = mirror(up_down)
    return fn.stack(images, rotated90, rotated180, rotated270, left_right, up_down, name="six_views")


def _as_pixels(images: torch.Tensor) -> np.ndarray:
    """(..., C) as (...) of pixels, which NumPy moves as a whole; shares the memory."""
    return images.numpy().view(f"V{images.shape[-1] * images.element_size()}")[..., 0]


def flip_cpu(images: torch.Tensor, mirror: np.ndarray) -> None:
    """The CPU's twin of ``mirror``: in place, those of (n, H, W, C) where ``mirror`` (n,) is not 0."""
    pixels, chosen = _as_pixels(images), np.flatnonzero(mirror)
    pixels[chosen] = pixels[chosen, :, ::-1]


def add_noise_cpu(images: torch.Tensor, deviation: float, generator: torch.Generator,
                  out: torch.Tensor | None = None) -> torch.Tensor:
    """The CPU's twin of ``add_noise``: one batched draw; a new tensor, or ``out``, which may be ``images``."""
    noise = torch.empty_like(images).normal_(0.0, deviation, generator=generator)
    return noise.add_(images) if out is None else torch.add(images, noise, out=out)


@lru_cache
def _view_sources(size: int) -> np.ndarray:
    """Which pixel of a square image each pixel of its six views is, int64 (6·S·S,)."""
    pixels = np.arange(size * size).reshape(size, size)
    return np.stack([*(np.rot90(pixels, quarter) for quarter in range(4)), pixels[:, ::-1], pixels[::-1]]).reshape(-1)


def six_views_cpu(images: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The CPU's twin of ``six_views``: (n, S, S, C) to (n, 6, S, S, C), a new tensor or ``out``, by one gather."""
    count, size = images.shape[:2]
    out = images.new_empty((count, VIEWS, *images.shape[1:])) if out is None else out
    flat, result = (tensor.view(count, -1, tensor.shape[-1]) for tensor in (images, out))  # refuses what must be copied
    np.take(_as_pixels(flat), _view_sources(size), axis=1, mode="clip", out=_as_pixels(result))
    return out


def even_pieces(count: int, values: int) -> list[slice]:
    """``count`` images of so many values each in pieces of PIECE_VALUES at most, or of one image; their number is even,
    but for one an image."""
    each = max(1, PIECE_VALUES // values)
    pieces = min(count, 2 * math.ceil(count / (2 * each)))
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def augment_cpu(images: torch.Tensor, statistics: Sequence[torch.Tensor], out: torch.Tensor,
                mirror: np.ndarray | None, deviation: float, generator: torch.Generator) -> None:
    """All that follows the shift, by the CPU's twins.

    Args:
        images: (n, H, W, C), float32 and normalised, or uint8; overwritten.
        statistics: what ``normalize`` takes for uint8 images, center and scale; none for others.
        out: what is wanted, (n, H, W, C), or (n, 6, H, W, C) for the six views.
        mirror: which images to flip (n,), or None.
        deviation: of the noise; 0 for none.
        generator: of the noise.
    """
    views = out.ndim > images.ndim
    if mirror is not None:  # bytes if it may be: to normalise an image and to flip it is the same either way round
        flip_cpu(images, mirror)
    if statistics:
        images = normalize(images, *statistics, out=None if views else out)
    if deviation:
        images = add_noise_cpu(images, deviation, generator, images if views else out)
    if views:
        six_views_cpu(images, out)
    elif images is not out:
        out.copy_(images)
