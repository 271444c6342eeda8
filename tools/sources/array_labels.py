"""What the labels of an array mean: numbers, text or one-hot rows, as class numbers that training and test share."""

import sys

import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.words import SHOWN_CLASSES, short
from pipelines.shards.manifest import MAX_BYTES, MAX_CLASSES, MAX_LABELED
from tools.sources.array_files import Array
from tools.sources.splits import Vocabulary

ROWS = 2**16  # at a time
PIECE_BYTES = 2**22
MAX_TEXT = 1024  # characters of a label
DIGITS = 18  # of a label
SURROGATES = 0xD800 >> 11  # halves of characters


class Classes:
    """The classes of a source: what the labels of its training images are, and what those of its test images may be."""

    def __init__(self):
        self._vocabulary = Vocabulary("labels")
        self._where = ""
        self._seen: set[int] = set()  # numbers that training images have
        self._characters = 0
        self._order = None
        self.names: tuple[str, ...] = ()

    def train(self, array: Array, images: Array) -> np.ndarray:
        """The class of each training image, int32 (N,), −1 for none; after it, ``names`` are the classes."""
        self._where, self._vocabulary = short(array.name), Vocabulary(array.where)
        numbers = self._read(array, images)
        self.names, order = self._vocabulary.classes()
        self._order = np.append(order, -1).astype(np.int32)
        return self._ordered(numbers)

    def test(self, array: Array, images: Array) -> np.ndarray:
        """The class of each test image, likewise; DataError for one that no training image has, if any has one."""
        return self._ordered(self._read(array, images))

    def _ordered(self, numbers: np.ndarray) -> np.ndarray:
        for first in range(0, len(numbers) if self._seen and self._order is not None else 0, ROWS):
            part = numbers[first:first + ROWS]
            part[:] = self._order[part]
        return numbers

    def _read(self, array: Array, images: Array) -> np.ndarray:
        columns = _columns(array, images)
        count = images.shape[0]
        if count > MAX_LABELED:
            raise DataError(f"{array.where}: {count:,} labels found, expected 1 to {MAX_LABELED:,}")
        if columns > 1 and self._order is None:  # a class that has no image keeps its place
            for label in range(columns):
                self._vocabulary.number(str(label))
        numbers = np.empty(count, np.int32)
        step = max(1, min(ROWS, PIECE_BYTES // (columns * array.dtype.itemsize)))
        with array.reading() as values:
            for first in range(0, count, step):
                part = numbers[first:first + step]
                piece = values.next(len(part) * columns)
                if columns > 1:
                    piece = _from_one_hot(array, piece.reshape(-1, columns), first)
                labels, inverse = np.unique(_plain(array, piece), return_inverse=True)
                part[:] = np.array([self._number(array, text) for text in _texts(array, labels)])[inverse]
        return numbers

    def _number(self, array: Array, text: str) -> int:
        before = len(self._vocabulary)
        number = self._vocabulary.number(text)
        self._characters += len(text) if len(self._vocabulary) > before else 0
        if self._characters > MAX_BYTES:
            raise DataError(f"{array.where}: different labels of more than {MAX_BYTES:,} characters in all found, "
                            f"expected names of classes")
        if self._order is None and number >= 0:
            self._seen.add(number)
        elif number >= 0 and self._seen and number not in self._seen:
            names = [*map(short, self.names[:SHOWN_CLASSES]), *["…"] * (len(self.names) > SHOWN_CLASSES)]
            raise DataError(f"{array.where}: label {short(text)} found, which no training image has; the classes of "
                            f"{self._where} are {', '.join(names)}")
        return number


def _columns(array: Array, images: Array) -> int:
    """1, or of how many columns its one-hot rows are; DataError for what are no labels of these images."""
    array.check_order()
    count, kind, shape = images.shape[0], array.dtype.kind, array.shape
    if kind == "O":
        raise DataError(f"{array.where}: {array.described} found, which is pickled; save y.astype(str), or "
                        f"y.astype(int) for class numbers")
    if kind not in "biufUS" or not array.dtype.itemsize:
        raise DataError(f"{array.where}: {array.described} found, expected integers or text")
    if kind in "US" and array.dtype.itemsize > MAX_TEXT * (4 if kind == "U" else 1):
        raise DataError(f"{array.where}: {array.described} found, expected text of at most {MAX_TEXT:,} characters")
    if shape in ((count,), (count, 1), (1, count)):
        return 1
    if len(shape) != 2 or shape[0] != count or shape[1] < 2:
        last = images.shape[-1]
        hint = "; if the images are along its last axis, save np.moveaxis(x, -1, 0)" if shape[:1] == (last,) else ""
        raise DataError(f"{array.where}: {array.described} found, expected a label for each image of "
                        f"{short(images.name)}, {(count,)}{hint}")
    if kind in "US":
        raise DataError(f"{array.where}: {array.described} found, expected one label an image: a column, y[:, 0] for "
                        f"instance")
    if shape[1] > MAX_CLASSES:
        raise DataError(f"{array.where}: {array.described} found, expected one-hot rows of at most {MAX_CLASSES:,} "
                        f"classes")
    return shape[1]


def _from_one_hot(array: Array, rows: np.ndarray, first: int) -> np.ndarray:
    """The column of each row's 1, int64 (n,); rows (n, K) are images ``first`` and on."""
    ones = rows == 1
    counts = ones.sum(axis=1)
    clean = (ones | (rows == 0)).all(axis=1)
    wrong = np.flatnonzero((counts != 1) | ~clean)
    if not len(wrong):
        return ones.argmax(axis=1)
    at, columns = wrong[0], rows.shape[1]
    if not clean[at]:
        value = rows[at][~ones[at] & (rows[at] != 0)][0]
        what = f"{value:g} in one-hot labels"
        mend = "a column, y[:, 0] for instance" if value == np.rint(value) else "y.argmax(axis=1) for the likeliest"
    elif counts[at]:
        what, mend = f"{counts[at]} labels of {columns}", "a column, y[:, 0] for instance, or other images left out"
    else:
        what = f"none of {columns} labels"
        mend = "if it is unlabeled, save np.where(y.any(axis=1), y.argmax(axis=1), -1)"
    raise DataError(f"{array.where}: image {first + at:,} has {what}, expected one label an image: {mend}")


def _plain(array: Array, values: np.ndarray) -> np.ndarray:
    """Whole numbers, −1 for NaN; or text as it is."""
    if values.dtype.kind != "f":
        return values.view(np.uint8) if values.dtype.kind == "b" else values
    with np.errstate(all="ignore"):
        values = np.where(np.isnan(values), -1, values).astype(np.float64)
        wrong = np.flatnonzero(values != np.rint(values))
    if len(wrong):
        raise DataError(f"{array.where}: {values[wrong[0]]:g} found, expected whole numbers, one for each class")
    return values


def _texts(array: Array, labels: np.ndarray) -> list[str]:
    """Labels as text; DataError for what is none."""
    try:
        if labels.dtype.kind == "S":
            return [label.decode() for label in labels.tolist()]
        if labels.dtype.kind == "U":
            codes = np.ascontiguousarray(labels).view(np.dtype(np.uint32).newbyteorder(labels.dtype.byteorder))
            if codes.max() > sys.maxunicode or ((codes >> 11) == SURROGATES).any():
                raise ValueError  # before Python makes text of them
            return labels.tolist()
    except ValueError:
        raise DataError(f"{array.where}: text that is not in UTF-8 found; save class numbers, or text by np.str_") \
            from None
    for label in labels[[0, -1]]:
        if not abs(float(label)) < 10**DIGITS:
            raise DataError(f"{array.where}: {label} found, expected class numbers of at most {DIGITS} digits")
    return [str(int(label)) for label in labels.tolist()]
