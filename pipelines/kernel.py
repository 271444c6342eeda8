"""The CPU backend's augmentation of one image, compiled by Numba: crop, normalise, add noise, flip or make views.

Imported on a CPU only, since Numba takes a while. Compiling takes two seconds for each type of image; the result is
cached beside this file or, where that is read-only, in the user's cache folder. Needs no DALI: ``pipelines.graph``
hands the compiled functions to DALI's Numba operator.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import FunctionType

import numba
import numpy as np
from numba import carray, types
from numba.core import cgutils

from pipelines.sampling import GAMMA, MAX_SHIFT, NOISE_A_WORD, QUANTILES

ROW, COLUMN, FLIP, NOISY, NOISE_KEY, DRAWS = range(6)  # columns of an image's draws, and their number
contrast = augment = DTYPE = None  # in the functions below: what ``compiled`` gives them for each type of image
IMAGE = {"uint8": types.uint8, "float32": types.float32}
C_FUNCTION = types.void(*[types.uint64] * 3, types.int32, *[types.uint64] * 3, types.int32)
C_SETUP = types.void(types.uint64, types.uint64, types.int32, types.uint64, types.uint64, types.int32, types.int32)
FROZEN = repr((GAMMA, MAX_SHIFT, NOISE_A_WORD, QUANTILES, numba.__version__)).encode()  # in what is compiled
VERSION = hashlib.sha256(Path(__file__).read_bytes() + FROZEN).hexdigest()[:12]


def compiled(compiler: Callable, signature, function: Callable, name: str = "", **names) -> Callable:
    """``function`` compiled by ``numba.njit`` or ``numba.cfunc``, from the cache where it is there and sound.

    ``names`` are further globals of the function. The cache entry is unique per ``name`` and source, so that a
    concurrent or interrupted write of another version cannot be taken for this one: Numba does not check.
    """
    copy = FunctionType(function.__code__, function.__globals__ | names, function.__name__)
    options = {"error_model": "numpy"} if compiler is numba.njit else {"nopython": True}
    for entry in (name, f"{name}-again"):  # another one where the first is damaged
        copy.__qualname__ = f"{function.__name__}-{entry}-{VERSION}"
        with suppress(Exception):  # a damaged entry, or no place for one, may raise anything
            return compiler(signature, cache=True, **options)(copy)
    return compiler(signature, **options)(copy)


def _contrast(image):
    """Mean of an image's values, and the L2 norm of what is left without it: from exact sums, where they are bytes."""
    total, squares = 0, 0
    for i in range(len(image)):
        value = np.int32(image[i])
        total += value
        squares += value * value
    norm = np.float32(0)
    if len(image) * squares != total * total:  # else one value, of which rounding would leave something
        norm = np.float32(np.sqrt(max(0, squares - np.float64(total) * total / len(image))))
    return np.float32(total / len(image)), norm


def _augment(image, height, width, channels, draws, pixel_index, quantiles, settings, out):
    length, values = width * channels, len(image)
    cropped, made = np.empty(values, image.dtype), np.empty(values, np.float32)
    shift = draws[COLUMN] - MAX_SHIFT
    first, last = max(0, -shift), min(width, width - shift)  # columns that are not of the mirrored border
    for y in range(height):
        row = (y + draws[ROW] - MAX_SHIFT) % (2 * height)
        source, to = min(row, 2 * height - 1 - row) * length, y * length
        inside, outside = np.uint64(source + (first + shift) * channels), np.uint64(to + first * channels)
        for i in range(np.uint64(max(0, last - first) * channels)):  # unsigned: a copy without checks for negatives
            cropped[outside + i] = image[inside + i]
        for start, end in ((0, min(first, width)), (max(last, 0), width)):
            for x in range(start, end):
                column = (x + shift) % (2 * width)
                column = min(column, 2 * width - 1 - column)
                for c in range(channels):
                    cropped[to + x * channels + c] = image[source + column * channels + c]

    words = np.empty((values + NOISE_A_WORD - 1) // NOISE_A_WORD, np.uint64)  # 16 bits for a value
    for i in range(len(words)):  # SplitMix64 (Steele et al. 2014), whose numbers are functions of their place
        x = np.uint64(draws[NOISE_KEY]) + np.uint64(i + 1) * GAMMA
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[i] = x ^ (x >> np.uint64(31))
    noise, noisy = words.view(np.uint16), np.float32(draws[NOISY])

    if settings[0] > 0:  # GCN
        center, norm = contrast(image)
        scale = settings[0] / (norm if norm > 0 else np.float32(1))
        for i in range(values):
            made[i] = (np.float32(cropped[i]) - center) * scale + noisy * quantiles[noise[i]]
    else:
        for i in range(0, values, channels):
            for c in range(channels):
                made[i + c] = ((np.float32(cropped[i + c]) - settings[1 + c]) * settings[1 + channels + c]
                               + noisy * quantiles[noise[i + c]])

    if channels == 3:  # known to the compiler, so without a loop in the loop
        for i in range(len(pixel_index)):
            place = 3 * pixel_index[i]
            out[3 * i], out[3 * i + 1], out[3 * i + 2] = made[place], made[place + 1], made[place + 2]
    else:
        for i in range(len(pixel_index)):
            for c in range(channels):
                out[channels * i + c] = made[channels * pixel_index[i] + c]


@numba.extending.intrinsic
def pointer(context, address):
    """An address as a C pointer."""
    def build(compiler, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)
    return types.voidptr(address), build


def _run(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    """DALI's call for one image."""
    read, shapes = carray(pointer(ins), num_ins, np.int64), carray(pointer(in_shapes), num_ins, np.int64)
    height, width, channels = carray(pointer(shapes[0]), 3, np.int64)
    draws, places = carray(pointer(read[1]), DRAWS, np.int64), carray(pointer(shapes[2]), 2, np.int64)[1]
    augment(carray(pointer(read[0]), height * width * channels, DTYPE), height, width, channels, draws,
            carray(pointer(read[2] + 4 * places * draws[FLIP]), places, np.int32),
            carray(pointer(read[3]), QUANTILES, np.float32), carray(pointer(read[4]), 1 + 2 * channels, np.float32),
            carray(pointer(carray(pointer(outs), num_outs, np.int64)[0]), places * channels, np.float32))


def _setup(out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, images):
    """DALI's question for the results' shapes."""
    results = carray(pointer(out_shapes), images, np.int64)
    inputs = carray(pointer(in_shapes), (num_ins, images), np.int64)
    for i in range(images):
        result, image = carray(pointer(results[i]), 4, np.int64), carray(pointer(inputs[0, i]), 3, np.int64)
        result[0] = carray(pointer(inputs[2, i]), 2, np.int64)[1] // (image[0] * image[1])
        result[1], result[2], result[3] = image[0], image[1], image[2]


@lru_cache
def operator(dtype: str) -> tuple[int, int]:
    """Addresses of the functions that DALI's Numba operator calls for images of a type: run and setup.

    The operator's inputs, for each image: its pixels (H, W, C), uint8 or float32; draws, int64 (DRAWS,): crop offset,
    whether to flip and to add noise (0 or 1), and the key of its noise; pixel_index, int32 (2, V·H·W): from which pixel
    of the image each pixel of the result comes, as it is and flipped; quantiles, float32 (QUANTILES,): equally likely
    values of the noise; settings, float32 (1 + 2C): the L2 norm after GCN, or 0 and then each channel's center and
    scale.
    Its output: float32 (V, H, W, C).
    """
    contrast = compiled(numba.njit, types.UniTuple(types.float32, 2)(IMAGE[dtype][::1]), _contrast, dtype)
    augment = compiled(numba.njit, types.void(
        IMAGE[dtype][::1], *[types.int64] * 3, types.int64[::1], types.int32[::1], *[types.float32[::1]] * 3),
        _augment, dtype, contrast=contrast)
    run = compiled(numba.cfunc, C_FUNCTION, _run, dtype, augment=augment, DTYPE=getattr(np, dtype))
    return run.address, compiled(numba.cfunc, C_SETUP, _setup).address
