"""SVHN's cropped digits from its MATLAB files: train_32x32.mat, test_32x32.mat and, if there, extra_32x32.mat."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.errors import DataError
from tools.sources import Batches, Source, Split

IMAGE_SHAPE = (32, 32, 3)
CHUNK = 4096
CLASSES = tuple("0123456789")


def read(path: Path) -> Source:
    """Open the folder with the .mat files; each is loaded whole while it is converted (``extra``: 1.6 GB).

    ``extra_32x32.mat`` becomes an unlabeled set, ``extra``.

    Raises:
        DataError: a missing or damaged file, one without X or y, or a MATLAB 7.3 (HDF5) file.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder; --source is the folder with train_32x32.mat and test_32x32.mat")
    names = ["train", "test"] + (["extra"] if (path / "extra_32x32.mat").exists() else [])
    splits = []
    for name in names:
        file = path / f"{name}_32x32.mat"
        count = _count(file)
        classes = None if name == "extra" else CLASSES
        splits.append(Split(name, count, _batches(file, count, labeled=classes is not None), classes))
    return Source("svhn", IMAGE_SHAPE, tuple(splits), {"path": str(path.resolve())})


def _count(file: Path) -> int:
    """Images in a file, from its header; checks that X and y are what they should be."""
    from scipy.io import whosmat  # half a second to import, and needed here alone
    found = {name: shape for name, shape, _ in _matlab(whosmat, file)}
    for name in ("X", "y"):
        if name not in found:
            raise DataError(f"{file}: no variable {name}; found {', '.join(sorted(found)) or 'none'}; a complete file "
                            f"has X and y")
    shape, labels = tuple(found["X"]), tuple(found["y"])
    if len(shape) != 4 or shape[:3] != IMAGE_SHAPE or not shape[3] or labels not in ((shape[3], 1), (1, shape[3])):
        raise DataError(f"{file}: X of {shape} and y of {labels} found, (32, 32, 3, N) and (N, 1) expected")
    return shape[3]


def _batches(file: Path, count: int, labeled: bool) -> Callable[[], Batches]:
    def batches() -> Batches:
        from scipy.io import loadmat
        content = _matlab(loadmat, file, variable_names=["X", "y"] if labeled else ["X"])
        pixels = content["X"]
        if pixels.dtype != np.uint8:
            raise DataError(f"{file}: X of {pixels.dtype} found, uint8 expected")
        labels = None
        if labeled:
            labels = content["y"].reshape(-1)
            if labels.dtype.kind not in "iuf" or not np.isin(labels, np.arange(1, 11)).all():
                raise DataError(f"{file}: labels y other than 1 to 10 found")
            labels = labels.astype(np.int64) % 10  # 10 stands for digit 0
        for first in range(0, count, CHUNK):
            images = pixels[:, :, :, first:first + CHUNK].transpose(3, 0, 1, 2)
            yield images, None if labels is None else labels[first:first + CHUNK]
    return batches


def _matlab(reader: Callable, file: Path, **options):
    """Call one of SciPy's readers; DataError for what it cannot read."""
    if not file.is_file():
        raise DataError(f"{file}: missing; SVHN has train_32x32.mat and test_32x32.mat (cropped digits)")
    try:
        return reader(file, **options)
    except NotImplementedError:
        raise DataError(f"{file}: a MATLAB 7.3 (HDF5) file; SVHN's are of version 5, download it again") from None
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{file}: not a readable MATLAB file ({error})") from None
