"""What the pixels of an array mean: the layout of its images, and its values as 8 bits where they lose nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.common.progress import progress_bar
from pipelines.common.words import short
from tools.sources.array_files import Array, Values
from tools.sources.images import MAX_PIXELS, to_square
from tools.sources.report import Report

CHANNELS = (1, 3, 4)  # gray, RGB, RGB with transparency
PIECE = 2**20  # values at a time
NEAR = {2: 0.13, 4: 0.01, 8: 0.01, 16: 0.01}  # a whole number, of 255, by a float's bytes
DARK = 64  # of 255: where an array's brightest value is below, it is said
EXPECTED = "expected uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W)"
STRETCHED = "np.round(255 * (x - low) / (high - low)).astype('uint8') with the same low and high for all arrays, " \
            "x.min() and x.max() of the training images for instance"


@dataclass(frozen=True)
class Range:
    """What a pass over the values of an array found.

    Args:
        low, high: the least and the greatest.
        whole, whole_of_255: whether all values, and all of them times 255, are near whole numbers.
    """

    low: float
    high: float
    whole: bool
    whole_of_255: bool

    def fits(self, scale: int, near: float) -> bool:
        """Whether the values times ``scale`` are pixels, 0 to 255, near whole numbers."""
        inside = self.low * scale >= -near and self.high * scale <= 255 + near
        return inside and (self.whole if scale == 1 else self.whole_of_255)


def height_width(array: Array) -> tuple[int, int]:
    """Of images (N,H,W), (N,H,W,C) or (N,C,H,W) of numbers; DataError for anything else."""
    array.check_order()
    shape, found = array.shape, None
    if array.dtype.kind in "iuf" and min(shape, default=0) > 0:
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in CHANNELS):
            found = shape[1:3]
        elif len(shape) == 4 and shape[1] in CHANNELS:
            found = shape[2:4]
    if found is None:
        raise DataError(f"{array.where}: {array.described} found, {EXPECTED}{_mended(array)}")
    if math.prod(found) > MAX_PIXELS:
        raise DataError(f"{array.where}: images of {found[0]}×{found[1]} found, expected at most {MAX_PIXELS:,} pixels")
    return found


def _mended(array: Array) -> str:
    """The line of NumPy that makes images of an array that has another type or shape, if there is one."""
    shape = array.shape
    if array.dtype.kind == "O":
        return "; if they are of one size, save np.stack(x)"
    if array.dtype.kind == "b":
        return "; save x.astype('uint8') * 255"
    if len(shape) == 4 and shape[2] in CHANNELS:
        return "; with the images along the last axis, save np.moveaxis(x, -1, 0)"
    if len(shape) == 2 and shape[1] > 1:
        for channels in (1, 3):
            side = math.isqrt(shape[1] // channels)
            if channels * side * side == shape[1]:
                return f"; if they are flattened, save x.reshape(-1, {side}, {side})" if channels == 1 else \
                    f"; if they are flattened, save x.reshape(-1, 3, {side}, {side}) where a pixel's colours are far " \
                    f"apart, x.reshape(-1, {side}, {side}, 3) where they are side by side"
    return ""


def scales(arrays: Sequence[Array], report: Report) -> list[int]:
    """By what the values of each array are multiplied to be pixels: 1, or 255 for floats in [0, 1].

    Arrays of another type than uint8 are read once. A float array of 0 and 1 alone is taken as in [0, 1], unless
    another one of its type is in [0, 255].

    Args:
        arrays: whose ``height_width`` is known.
        report: gets how they were understood, and which are dark.

    Raises:
        DataError: values that 8 bits do not hold, with the line of NumPy that makes pixels of them.
    """
    ranges = [None if array.dtype == np.uint8 else _range(array) for array in arrays]
    wide = {array.dtype for array, found in zip(arrays, ranges, strict=True)
            if found and found.fits(1, _near(array)) and found.high > 1.5}
    return [1 if found is None else _scale(array, found, array.dtype in wide, report)
            for array, found in zip(arrays, ranges, strict=True)]


def _near(array: Array) -> float:
    return NEAR.get(array.dtype.itemsize, 0.01) if array.dtype.kind == "f" else 0


def _range(array: Array) -> Range:
    total, near = math.prod(array.shape), _near(array)
    low, high, whole, whole_of_255 = math.inf, -math.inf, True, array.dtype.kind == "f"
    with array.reading() as values, np.errstate(all="ignore"), \
            progress_bar(total, " values", f"{short(array.name)}: range", unit_scale=True) as bar:
        for first in range(0, total, PIECE):
            piece = _numbers(values.next(min(PIECE, total - first)))
            least, most = piece.min().item(), piece.max().item()
            if not math.isfinite(least) or not math.isfinite(most):
                raise DataError(f"{array.where}: NaN or infinity found in images, expected pixels; leave such images "
                                f"out, or save np.nan_to_num(x)")
            low, high = min(low, least), max(high, most)
            if array.dtype.kind == "f":
                whole = whole and _is_whole(piece, near)
                whole_of_255 = whole_of_255 and _is_whole(255 * piece, near)
            bar.update(len(piece))
    return Range(low, high, whole, whole_of_255)


def _numbers(values: np.ndarray) -> np.ndarray:
    """Integers as they are; floats in a type that is computed with."""
    if values.dtype.kind != "f":
        return values
    return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)


def _is_whole(values: np.ndarray, near: float) -> bool:
    return bool(np.abs(values - np.rint(values)).max() <= near)


def _scale(array: Array, found: Range, wide: bool, report: Report) -> int:
    if found.fits(1, _near(array)) and (found.high > 1.5 or wide or array.dtype.kind != "f"):
        scale = 1
    elif found.fits(255, _near(array)):
        scale = 255
    else:
        raise DataError(f"{array.where}: {array.dtype} from {found.low:g} to {found.high:g} found, expected pixels, "
                        f"uint8 from 0 to 255; save {_as_pixels(array, found)}")
    name, brightest = short(array.name), round(found.high * scale)
    report.note(f"{name}: {array.dtype} in [0, {255 // scale}] taken as 8 bits")
    if brightest < DARK:
        report.note(f"{name}: dark: its brightest value is {brightest} of 255; if its pixels have another range, scale "
                    f"them first")
    return scale


def _as_pixels(array: Array, found: Range) -> str:
    """The line of NumPy that makes pixels of values."""
    if array.dtype.kind in "iu":
        bits = int(found.high).bit_length()
        if found.low < 0:
            return "np.interp(x, (low, high), (0, 255)).round().astype('uint8') with the same low and high for all " \
                   "arrays, the range of their type for instance"
        return "(x // 257).astype('uint8')" if bits == 16 else f"(x >> {bits - 8}).astype('uint8')"
    if found.low >= 0 and found.high <= 1:
        return "np.round(255 * x).astype('uint8')"
    if found.low >= 0 and found.high <= 255:
        return "np.round(x).astype('uint8')"
    if found.low >= -1 and found.high <= 1:
        return "np.round(127.5 * (x + 1)).astype('uint8')"
    return STRETCHED


def read_images(array: Array, values: Values, count: int, scale: int) -> np.ndarray:
    """The next images, uint8 (count, H, W) or (count, H, W, C)."""
    total = count * math.prod(array.shape[1:])
    if array.dtype == np.uint8:
        pixels = values.next(total)
    else:
        pixels = np.empty(total, np.uint8)
        for first in range(0, total, PIECE):
            part = pixels[first:first + PIECE]
            piece = _numbers(values.next(len(part)))
            with np.errstate(all="ignore"):
                part[:] = np.rint(scale * piece).astype(np.uint8) if piece.dtype.kind == "f" else piece.astype(np.uint8)
    images = pixels.reshape(count, *array.shape[1:])
    return images.transpose(0, 2, 3, 1) if images.ndim == 4 and array.shape[3] not in CHANNELS else images


def squares(images: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) or (n, H, W, C) to uint8 (n, size, size, 3)."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.shape[1:3] == (size, size):
        if images.ndim == 3:
            return np.repeat(images[..., None], 3, axis=3)
        if images.shape[3] == 3:
            return images
    return np.stack([to_square(Image.fromarray(np.ascontiguousarray(image)), size) for image in images])
