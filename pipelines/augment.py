"""What is random, per image and step: shift, flip, noise, and the six views.

Order as in the reference: shift, flip, noise, then the views, which therefore share one shift and one noise
draw. Images are H×W×C throughout, so that a batch is channels-last for the network without a copy. All but the
shift have a twin for the CPU backend, all of them one compiled pass: DALI is slow at noise there and makes the views
image by image. On a GPU DALI does all but the shift, which is a gather out of the window there. Its samples are the
images of a whole step: the host has work for each sample, which for samples of one image takes longer than the step.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines.batch import MAX_SHIFT, VIEWS

NOISE_DRAWN_BY = "SplitMix64, 65536 quantiles"  # on a CPU; a checkpoint of other noise is another stream's
PIECE_VALUES = 2**20  # augmented at a time on a CPU: few calls, and shares that end together
VIEWED_SAMPLES = 64  # a batch at most: for more small ones DALI's transpose launches a grid of no blocks, an error


def mirror_pad(images: torch.Tensor, out: torch.Tensor, by: int = MAX_SHIFT) -> None:
    """Images (n, H, W, C) with a border of ``by`` pixels, mirrored with the edge pixel, into (n, H+2·by, W+2·by, C).

    NumPy calls it ``symmetric``, SciPy ``reflect``. ValueError for shapes or types that do not go together.
    """
    count, height, width, channels = images.shape
    if out.shape != (count, height + 2 * by, width + 2 * by, channels) or out.dtype != images.dtype:
        raise ValueError(f"{images.dtype} {tuple(images.shape)} into {out.dtype} {tuple(out.shape)}")
    rows, columns = (np.pad(np.arange(size), by, "symmetric") for size in (height, width))
    if out.device.type == "cpu":
        from pipelines import kernels  # on a CPU only
        values = (columns[:, None] * channels + np.arange(channels)).reshape(-1)
        kernels.mirror_pad(images.contiguous().flatten(2).numpy(), rows, values, out.view(*out.shape[:2], -1).numpy())
        return
    mirror_pad_by_slices(images, out, rows, columns)


def mirror_pad_by_slices(images: torch.Tensor, out: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> None:
    """What ``mirror_pad`` does on a GPU: ``rows`` and ``columns`` are the images' for each of ``out``."""
    by = (len(rows) - images.shape[1]) // 2
    inside = slice(by, -by)
    out[:, inside, inside] = images
    for axis, sources in ((1, rows), (2, columns)):
        for place in (*range(by), *range(-by, 0)):
            out.select(axis, place).copy_(out.select(axis, by + int(sources[place])))


def shift(images: DataNode, offsets: DataNode | tuple[int, int], size: tuple[int, int],
          name: str = "shift") -> DataNode:
    """DALI: cut ``size`` out of padded images at integer offsets (y, x), which are in the padding's range."""
    return fn.slice(images, start=offsets, shape=size, axes=(0, 1), name=name)


def crop(padded: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Cut images out of padded ones at integer offsets: what ``shift`` does, as one gather of lines of pixels.

    Args:
        padded: (N, H+4, W+4, C), contiguous.
        rows: which of them, int64 (n,).
        offsets: y and x, 0 to 4, int64 (n, 2).
        out: (n, H, W, C), contiguous, of the same type.
    """
    count, height, width, channels = out.shape
    pixels = padded.numel() // channels
    lines = padded.as_strided((pixels - width + 1, width * channels), (channels, 1))  # one begins at every pixel
    y = offsets[:, :1] + torch.arange(height, device=padded.device)
    first = (rows[:, None] * padded.shape[1] + y) * padded.shape[2] + offsets[:, 1:]
    torch.index_select(lines, 0, first.flatten(), out=out.view(count * height, width * channels))


def scale(images: DataNode, center: DataNode, factor: DataNode) -> DataNode:
    """DALI: what ``whitening.normalize`` does, to uint8 images; center and factor are (…, 1, 1, 1 or C)."""
    return (images - center) * factor


def add_noise(images: DataNode, deviation: float, seed: int, name: str = "noise") -> DataNode:
    """DALI: add Gaussian noise, drawn anew for every value of every image."""
    return images + fn.random.normal(images, stddev=deviation, seed=seed, name=name)


def mirror(images: DataNode, layout: str = "FHWC", name: str | None = None) -> DataNode:
    """DALI: flip all images left to right.

    (``fn.flip`` would launch one kernel a sample on the GPU; this is one a batch. Which samples to mirror is no
    argument here: DALI looks through those of the whole batch for each sample.)
    """
    return fn.crop_mirror_normalize(images, mirror=1, dtype=types.FLOAT, output_layout=layout, name=name)


def mirror_some(images: DataNode, which: DataNode, name: str | None = None) -> DataNode:
    """DALI: flip left to right those images (B, H, W, C) of a sample for which ``which``, float32 (B, 1, 1, 1), is 1
    and not 0."""
    return images * (1 - which) + mirror(images, name=name) * which


def six_views(images: DataNode) -> DataNode:
    """DALI: the six proxy views of each square image of a sample, (B, H, W, C) to (B, 6, H, W, C).

    For at most VIEWED_SAMPLES samples.
    """
    def transposed(x: DataNode) -> DataNode:
        return fn.transpose(x, perm=[0, 2, 1, 3], transpose_layout=False)
    left_right = mirror(images)
    rotated90 = transposed(left_right)
    rotated270 = mirror(transposed(images))
    up_down = transposed(rotated270)
    rotated180 = mirror(up_down)
    views = (images, rotated90, rotated180, rotated270, left_right, up_down)
    return fn.stack(*(fn.reshape(view, layout="") for view in views), axis=1, name="six_views")


@lru_cache
def _noise_table(deviation: float) -> np.ndarray:
    """65,536 equally likely values of Gaussian noise, float32: quantiles, scaled to have that deviation."""
    values = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    return (values * (deviation / values.square().mean().sqrt())).to(torch.float32).numpy()


@lru_cache
def _sources(height: int, width: int, views: bool) -> np.ndarray:
    """Which pixel of an image each pixel of the result is: int32 (1, 6·H·W) for the six views of a square one, or
    (2, H·W), as it is and flipped left to right."""
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    if not views:
        return np.stack([pixels, pixels[:, ::-1]]).reshape(2, -1)
    rotated = [np.rot90(pixels, quarter) for quarter in range(4)]
    return np.stack([*rotated, pixels[:, ::-1], pixels[::-1]]).reshape(1, -1)


def even_pieces(count: int, values: int) -> list[slice]:
    """``count`` images in pieces of about PIECE_VALUES, of so many each, or of one image; as equal as can be."""
    pieces = max(1, min(count, math.ceil(count * values / PIECE_VALUES)))
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def augment_cpu(images: torch.Tensor, statistics: Sequence[torch.Tensor], out: torch.Tensor, *,
                mirror: np.ndarray | None = None, deviation: float = 0.0, key: int = 0, first: int = 0) -> None:
    """All that follows the shift, in one pass: the twin of ``scale``, ``mirror``, ``add_noise`` and ``six_views``.

    Args:
        images: (n, H, W, C), float32 and normalised, or uint8.
        statistics: what ``whitening.normalize`` takes for uint8 images, center and scale, float32; none for others.
        out: what is wanted, float32: (n, H, W, C), which may be ``images`` itself; (n, 6, H, W, C) for the six views.
        mirror: images are flipped left to right where this (n,) is 1; None for nowhere, as for the six views.
        deviation: of the noise; 0 for none. It is one of 65,536 equally likely values, 4.3 deviations at most.
        key: of the noise, 64 bits.
        first: which of the key's noise the first image gets; the next gets the next.

    Raises:
        ValueError: shapes, types or memory that do not go together. (What is compiled would read and write anywhere.)
    """
    from pipelines import kernels  # on a CPU only
    count, height, width, channels = images.shape
    views = out.ndim > images.ndim
    center, factor = (values.numpy() for values in statistics) if statistics else (
        np.full((count, 1), value, np.float32) for value in (0, 1))
    if (out.shape != (count, *((VIEWS,) if views else ()), height, width, channels) or (views and height != width)
            or not center.shape == factor.shape in ((count, 1), (count, channels))
            or not center.dtype == factor.dtype == np.float32
            or (mirror is not None and (views or mirror.shape != (count,) or not np.isin(mirror, (0, 1)).all()))
            or images.dtype not in (torch.uint8, torch.float32) or out.dtype != torch.float32
            or not (images.is_contiguous() and out.is_contiguous())
            or (np.may_share_memory(images, out) and (views or images.data_ptr() != out.data_ptr()))):
        raise ValueError(f"{images.dtype} {tuple(images.shape)}, statistics {center.shape} and {factor.shape}, mirror "
                         f"{mirror}, to {out.dtype} {tuple(out.shape)}")
    chosen = np.zeros(count, np.int32) if mirror is None else mirror.astype(np.int32)
    kernels.augment(images.view(count, height * width, channels).numpy(), np.ascontiguousarray(center),
                    np.ascontiguousarray(factor), _noise_table(deviation), np.uint64(key), np.uint64(first),
                    _sources(height, width, views), chosen,
                    out.view(count, math.prod(out.shape[1:-1]), channels).numpy())


def add_noise_cpu(images: torch.Tensor, deviation: float, key: int, first: int = 0) -> torch.Tensor:
    """Images (n, H, W, C), float32, with noise, a new tensor; see ``augment_cpu``."""
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    augment_cpu(images.contiguous(), (), out, deviation=deviation, key=key, first=first)
    return out
