"""What all targets of the fuzzer have in common: their parts, and how their readers are watched."""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

READ = Callable[[bytes, list], None]


@dataclass(frozen=True)
class Target:
    """One reader that is fuzzed.

    Args:
        seeds: small valid files, the same every time.
        mutate: a changed one of these, by the draws of a generator alone.
        reader: given a folder of its own, a function that reads an input. It notes in a list that the input got past
            the header, raises DataError where the product refuses it, and AssertionError where it accepts what it
            should not.
    """

    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes], bytes]
    reader: Callable[[Path], READ]


def noting(owner: object, name: str, past: list, accepted: Callable = lambda result: True) -> None:
    """Wrap a function of the product so that ``past`` grows where it returns what ``accepted`` likes."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args, **options):
        result = original(*args, **options)
        if accepted(result):
            past.append(name)
        return result
    setattr(owner, name, wrapped)


def pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, size, size, 3), some of them smooth, as images are."""
    draw = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, size, dtype=np.uint8)[None, :, None, None] * np.ones((count, 1, size, 3), np.uint8)
    return np.where(np.arange(count)[:, None, None, None] % 2, draw.integers(0, 256, ramp.shape, np.uint8), ramp)


def check_splits(source: object, limit: int = 2**16) -> None:
    """Read a source as tools.prepare does, and check what it promises."""
    for split in source.splits:
        read = 0
        for batch, labels in split.batches():
            assert batch.dtype == np.uint8
            assert batch.shape[1:] == source.image_shape
            read += len(batch)
            if split.classes is not None:
                assert len(labels) == len(batch)
                assert labels.min() >= 0
            if read > limit:
                return
        assert split.num_images in (None, read)
