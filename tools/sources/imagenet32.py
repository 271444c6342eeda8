"""ImageNet of 32×32 pixels from its extracted pickles: train_data_batch_1 to 10, and val_data for the test set.

The down-sampled ImageNet of Chrabaszcz, Loshchilov and Hutter, 2017 (arXiv:1707.08819).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError, damage, shown
from pipelines.common.reading import open_regular
from tools.sources import Batches, Source
from tools.sources.pickles import Array, Span, open_dict
from tools.sources.report import Report
from tools.sources.splits import Part, assemble
from tools.sources.walk import one_folder, report_others

IMAGE_SHAPE = (32, 32, 3)
ROW_BYTES = 32 * 32 * 3
TRAIN = tuple(f"train_data_batch_{n}" for n in range(1, 11))
TEST = "val_data"
CLASSES = tuple(map(str, range(1, 1001)))  # the authors' numbers, which are not the order of the synsets' names
MAX_FILE_BYTES = 2**29  # a real file has 394 MB
HELD_BYTES = 2**26  # of it in memory, pixels aside; of labels there are 0.4 MB
MAX_IMAGES = 200_000  # in a file; the largest real one has 128,123
CHUNK = 4096
EXPECTED = f"expected {TRAIN[0]} to {TRAIN[-1]} and {TEST}"


@dataclass(frozen=True)
class Batch:
    """A file that was looked into: its labels from 0, int32 (n,)."""

    file: Path
    labels: np.ndarray


def read(path: Path) -> Source:
    """Recognise the files; their labels are read at once, their pixels piece by piece when the splits are iterated.

    Memory: the labels, and a few thousand images, where the pickles are of protocols 3 to 5 or Python 2's, as the
    published ones are. Protocol 2 of Python 3 writes pixels as text, which would have to be held: such files of more
    than some 14,000 images are refused.

    Args:
        path: the folder with the files, or one with it; ``val_data`` may be in a folder beside.

    Raises:
        DataError: a missing or damaged file, images of another size, labels other than 1 to 1000.
    """
    if path.suffix.lower() == ".zip":
        raise DataError(f"{path}: a zip file; unzip it first, --source is the folder with {TRAIN[0]}, ...")
    if not path.is_dir():
        raise DataError(f"{path}: not a folder; {EXPECTED} in it")
    folder, test_folder = one_folder(path, TRAIN, f"{TRAIN[0]} or its like"), one_folder(path, (TEST,), TEST)
    if folder is None:
        raise DataError(f"{path}: no ImageNet 32×32 here; {EXPECTED}")
    for name in TRAIN:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing; {EXPECTED}")
    report = Report()
    if folder != path:
        report.note(f"{folder} is read")
    report_others(folder, (*TRAIN, TEST), report)
    train = _part([_look(folder / name) for name in TRAIN], f"{TRAIN[0]} to 10")
    test = None if test_folder is None else _part([_look(test_folder / TEST)], TEST)
    splits = assemble(str(path), CLASSES, train, test, [], None if test else 0, report)
    if test is None:
        report.note(f"{TEST}: not found")
    return Source("imagenet32", IMAGE_SHAPE, splits, {"path": str(folder.resolve())}, report)


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Array, object]]:
    """The pixels (n, 3072), while it is open, and the labels, in whatever form."""
    with open_regular(file) as stream:
        content = open_dict(str(file), stream, "ImageNet 32×32", MAX_FILE_BYTES, HELD_BYTES)
        data = content.get("data")
        if not isinstance(data, Array) or data.shape is None:
            raise DataError(f"{file}: data is {_kind(data)}, expected uint8 (n, {ROW_BYTES})")
        if data.dtype != np.uint8 or len(data.shape) != 2 or data.shape[1] != ROW_BYTES or data.fortran:
            raise DataError(f"{file}: data is {data.dtype} {data.shape}{' in Fortran order' * data.fortran}, expected "
                            f"uint8 (n, {ROW_BYTES})")
        if not 0 < data.shape[0] <= MAX_IMAGES:
            raise DataError(f"{file}: {data.shape[0]:,} images found, expected 1 to {MAX_IMAGES:,}")
        yield data, content.get("labels")


def _look(file: Path) -> Batch:
    """Read and check a file's labels."""
    with _opened(file) as (data, labels):
        count = data.shape[0]
        if isinstance(labels, Array) and labels.shape == (count,) and labels.dtype.kind in "iu":
            with damage(f"{file}: damaged"):
                values = labels.read()
        elif isinstance(labels, list) and len(labels) == count and set(map(type, labels)) == {int}:
            values = labels
        else:
            raise DataError(f"{file}: labels are {_kind(labels)}, expected {count:,} integers")
        wrong = next((value for value in values if not 1 <= value <= len(CLASSES)), None)
        if wrong is not None:
            raise DataError(f"{file}: label {shown(int(wrong))} found, expected 1 to {len(CLASSES)}")
        return Batch(file, np.array(values, np.int32) - 1)


def _part(batches: Sequence[Batch], place: str) -> Part:
    labels = np.concatenate([batch.labels for batch in batches])
    return Part(len(labels), labels, lambda mask: _batches(batches), place)  # all, since all have labels


def _batches(batches: Sequence[Batch]) -> Batches:
    for batch in batches:
        with _opened(batch.file) as (data, _):
            if data.shape[0] != len(batch.labels):
                raise DataError(f"{batch.file}: {data.shape[0]:,} images found, {len(batch.labels):,} before")
            for first in range(0, data.shape[0], CHUNK):
                last = min(first + CHUNK, data.shape[0])
                with damage(f"{batch.file}: damaged"):
                    rows = data.rows(first, last)
                yield rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), batch.labels[first:last]


def _kind(value: object) -> str:
    if isinstance(value, Array):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, list | bytes | Span):
        return f"a {type(value).__name__} of {len(value):,}"
    return "missing" if value is None else shown(value)
