"""SVHN's cropped digits from its MATLAB files: train_32x32.mat, test_32x32.mat and, if there, extra_32x32.mat."""

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError
from tools.sources import Batches, Source, Split, matlab
from tools.sources.report import Report
from tools.sources.walk import one_folder, report_others

IMAGE_SHAPE = (32, 32, 3)
IMAGES = {"train": 73_257, "test": 26_032, "extra": 531_131}  # of the published files; one that claims more is none
CHUNK = 4096
CLASSES = tuple("0123456789")


def read(path: Path) -> Source:
    """Open the folder with the .mat files, or the one with that folder in it; they are read piece by piece.

    ``extra_32x32.mat`` becomes an unlabeled set, ``extra``.

    Raises:
        DataError: a missing or damaged file, one without X or y or with more images than SVHN has, or a MATLAB 7.3
            (HDF5) file.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder; --source is the folder with train_32x32.mat and test_32x32.mat")
    found = one_folder(path, [f"{name}_32x32.mat" for name in IMAGES], "SVHN's files")
    report = Report()
    if found not in (None, path):
        report.note(f"{found} is read")
        path = found
    report_others(path, [f"{name}_32x32.mat" for name in IMAGES], report)
    names = ["train", "test"] + (["extra"] if (path / "extra_32x32.mat").exists() else [])
    splits = []
    for name in names:
        file = path / f"{name}_32x32.mat"
        images, labels = _open(file, IMAGES[name])
        classes = None if name == "extra" else CLASSES
        splits.append(Split(name, images.shape[3], _batches(file, images, labels if classes else None), classes))
    return Source("svhn", IMAGE_SHAPE, tuple(splits), {"path": str(path.resolve())}, report)


def _open(file: Path, most: int) -> tuple[matlab.Matrix, matlab.Matrix]:
    """X and y, from their headers; checks that they are what they should be."""
    if not file.is_file():
        raise DataError(f"{file}: missing; SVHN has train_32x32.mat and test_32x32.mat (cropped digits)")
    with _readable(file):
        found, others = matlab.read(file, ("X", "y"))
    for name in ("X", "y"):
        if name not in found:
            raise DataError(f"{file}: no variable {name}; found {', '.join(sorted([*found, *others])) or 'none'}; a "
                            f"complete file has X and y")
    images, labels = found["X"], found["y"]
    shape = images.shape
    if len(shape) != 4 or shape[:3] != IMAGE_SHAPE or not shape[3] or labels.shape not in ((shape[3], 1),
                                                                                           (1, shape[3])):
        raise DataError(f"{file}: X of {shape} and y of {labels.shape} found, (32, 32, 3, N) and (N, 1) expected")
    if shape[3] > most:
        raise DataError(f"{file}: {shape[3]:,} images found, expected at most {most:,}, as SVHN has")
    if images.dtype != np.uint8:
        raise DataError(f"{file}: X of {images.dtype} found, uint8 expected")
    return images, labels


def _batches(file: Path, images: matlab.Matrix, labels: matlab.Matrix | None) -> Callable[[], Batches]:
    def batches() -> Batches:
        with _readable(file):
            digits = None if labels is None else _digits(file, labels)
            done = 0
            for piece in images.pieces(CHUNK * math.prod(IMAGE_SHAPE)):
                pixels = piece.reshape(-1, 3, 32, 32).transpose(0, 3, 2, 1)  # stored column by column
                yield pixels, None if digits is None else digits[done:done + len(pixels)]
                done += len(pixels)
    return batches


def _digits(file: Path, labels: matlab.Matrix) -> np.ndarray:
    """Labels (N,): 10 stands for digit 0."""
    values = np.concatenate(list(labels.pieces(CHUNK)))
    if not np.isin(values, np.arange(1, 11)).all():
        raise DataError(f"{file}: labels y other than 1 to 10 found")
    return values.astype(np.int64) % 10


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """DataError for what cannot be read."""
    try:
        yield
    except matlab.NewerFormat:
        raise DataError(f"{file}: a MATLAB 7.3 (HDF5) file; SVHN's are of version 5, download it again") from None
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: not a readable MATLAB file ({error})") from None
