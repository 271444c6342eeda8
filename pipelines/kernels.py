"""What a CPU does to images beside DALI's shift, compiled by Numba: one pass over memory for all that is to be done.

Imported where images are on a CPU only: a GPU needs none of it, and Numba takes a third of a second. What is compiled,
a second for each type of image, is kept beside this file, or with the user's caches.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FunctionType

import numba
import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step
DRAWS_A_WORD = 4  # 16 bits each
SIGNATURES = {  # T is the type of the images
    "_random_words": "void(uint64, uint64, uint64[::1])",
    "_augment": "void(T[:, :, ::1], float32[:, ::1], float32[:, ::1], float32[::1], uint64, uint64, int32[:, ::1], "
                "int32[::1], float32[:, :, ::1])",
    "_mirror_pad": "void(T[:, :, ::1], int64[::1], int64[::1], T[:, :, ::1])",
    "_gcn_sums": "void(T[:, ::1], float32[:, ::1], float32[:, ::1])"}
VERSION = hashlib.sha256(Path(__file__).read_bytes() + numba.__version__.encode()).hexdigest()[:12]


@lru_cache
def compiled(function: Callable, images: str = "") -> Callable:
    """Numba's version of a function below for images of that type, which holds no lock of Python's while it works.

    A name of its own for each type and source: in Numba's cache what two processes write at once, or one that dies at
    it, may be found under the name of another version, and is not checked.
    """
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"{function.__name__}-{images}-{VERSION}"
    signature = SIGNATURES[function.__name__].replace("T[", f"{images}[")
    try:
        return numba.njit(signature, nogil=True, cache=True)(copy)
    except Exception:  # what is kept is damaged, or there is no place for it: whatever Python raises then
        return numba.njit(signature, nogil=True)(copy)


def _random_words(key: np.uint64, first: np.uint64, out: np.ndarray) -> None:
    """Numbers ``first`` and following of the sequence of SplitMix64 (Steele et al. 2014) seeded with ``key``.

    Each is a function of its place in the sequence, so that whoever needs some makes those. ``out`` is uint64 (n,).
    """
    for i in range(len(out)):
        x = key + (first + np.uint64(i + 1)) * GAMMA
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = x ^ (x >> np.uint64(31))


random_words = compiled(_random_words)  # by this name the next one calls it


def augment(images: np.ndarray, center: np.ndarray, scale: np.ndarray, table: np.ndarray, key: np.uint64,
            first: np.uint64, sources: np.ndarray, chosen: np.ndarray, out: np.ndarray) -> None:
    """Normalise images, add noise, and write their pixels where they go.

    Args:
        images: (n, P, C), float32 or uint8; P pixels.
        center: float32 (n, 1 or C), subtracted.
        scale: like ``center``; multiplies the rest.
        table: float32 (65536,), equally likely values of the noise.
        key: whose random numbers; image ``i`` uses words ``(first + i)·⌈P·C/4⌉`` and following.
        first: place of the first image.
        sources: int32 (S, V·P), which pixel of an image goes to each place of the result, in several ways.
        chosen: int32 (n,), each image's way.
        out: float32 (n, V·P, C).
    """
    compiled(_augment, str(images.dtype))(images, center, scale, table, key, first, sources, chosen, out)


def _augment(images, center, scale, table, key, first, sources, chosen, out):
    count, pixels, channels = images.shape
    values = pixels * channels
    words = np.empty((values + DRAWS_A_WORD - 1) // DRAWS_A_WORD, np.uint64)
    draws = words.view(np.uint16)
    image = np.empty((pixels, channels), np.float32)
    flat = image.reshape(-1)
    for n in range(count):
        taken = images[n].reshape(-1)
        random_words(key, (first + np.uint64(n)) * np.uint64(len(words)), words)
        if center.shape[1] == 1:
            middle, factor = center[n, 0], scale[n, 0]  # once: for all that is known ``flat`` is the same memory
            for i in range(values):
                flat[i] = (np.float32(taken[i]) - middle) * factor + table[draws[i]]
        else:
            for i in range(pixels):
                for c in range(channels):
                    value = np.float32(taken[i * channels + c])
                    image[i, c] = (value - center[n, c]) * scale[n, c] + table[draws[i * channels + c]]
        source, written = sources[chosen[n]], out[n].reshape(-1)
        if channels == 3:  # known, so without a loop in the loop
            for i in range(len(source)):
                place = 3 * source[i]
                written[3 * i] = flat[place]
                written[3 * i + 1] = flat[place + 1]
                written[3 * i + 2] = flat[place + 2]
        else:
            for i in range(len(source)):
                for c in range(channels):
                    written[channels * i + c] = image[source[i], c]


def mirror_pad(images: np.ndarray, rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """Images (n, H, W·C) with a border, into (n, H+2b, (W+2b)·C): row y is their row ``rows[y]``, columns alike."""
    compiled(_mirror_pad, str(images.dtype))(images, rows, columns, out)


def _mirror_pad(images, rows, columns, out):
    border, width = (len(columns) - images.shape[2]) // 2, images.shape[2]
    for n in range(len(images)):
        for y in range(len(rows)):
            row = rows[y]
            for x in range(border):
                out[n, y, x] = images[n, row, columns[x]]
                out[n, y, border + width + x] = images[n, row, columns[border + width + x]]
            for x in range(width):
                out[n, y, border + x] = images[n, row, x]


def gcn_sums(images: np.ndarray, center: np.ndarray, norm: np.ndarray) -> None:
    """Of each of some images, uint8 (n, D), its mean and the L2 norm of the rest, float32 (n, 1), from exact sums."""
    compiled(_gcn_sums, str(images.dtype))(images, center, norm)


def _gcn_sums(images, center, norm):
    for n in range(len(images)):
        image, total, squares = images[n], 0, 0
        for i in range(len(image)):
            value = np.int32(image[i])
            total += value
            squares += value * value
        center[n, 0] = total / len(image)
        if len(image) * squares == total * total:  # one value: rounding would leave something
            norm[n, 0] = 0
        else:
            norm[n, 0] = np.sqrt(max(0, squares - np.float64(total) * total / len(image)))
