"""A CSV file with a row an image: which columns are what, and for each image named there its label."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

from pipelines.common.errors import DataError, UsageError, shown
from pipelines.common.reading import open_regular
from tools.sources.splits import TEST_NAMES, TRAIN_NAMES, UNLABELED_NAMES, VAL_NAMES, Vocabulary

FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_name", "image_path",
                "image_id", "imageid", "id", "img", "name", "files", "filenames", "filepaths", "paths", "images")
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "label_name", "classname", "class_id", "y",
                 "labels", "classes", "categories", "targets")
SPLIT_COLUMNS = ("split", "subset", "set", "data_set", "partition")
TRAIN, TEST, VAL = range(3)
SPLITS = dict.fromkeys((*TRAIN_NAMES, *UNLABELED_NAMES), TRAIN) | dict.fromkeys(TEST_NAMES, TEST) | \
    dict.fromkeys(VAL_NAMES, VAL)
DELIMITERS = ",;\t|"
ONE_HOT = {"0": False, "0.0": False, "1": True, "1.0": True}
MAX_FIELD = 2**16  # characters
MAX_FILE_BYTES = 2**31


class LabelTable:
    """The rows of a CSV file: of each image that it names the number of its label, −1 for none, and perhaps its split.

    The label is in a column, or one-hot: in a column for each class, of which one is 1. A column of splits is used
    where all of its values are known.

    Args:
        file: a header, then a row an image; separated by comma, semicolon, tab or bar; in UTF-8 or UTF-16.
        file_column, label_column: their names; None for the usual ones.

    Raises:
        DataError: no such file, no rows, an image with two labels.
        UsageError: columns that are not there, or whose names are not known.
    """

    def __init__(self, file: Path, file_column: str | None, label_column: str | None):
        self.file, self.vocabulary = file, Vocabulary(str(file))
        self.labels: dict[str, int] = {}
        self.splits: dict[str, int] = {}
        self.notes: list[str] = []
        self.rows = 0
        self._used: set[str] = set()
        self._odd_split: str | None = None  # what is no split
        rows = self._rows()
        header = [name.strip() for name in next(rows, (0, []))[1]]
        if not any(header):
            raise DataError(f"{file}: empty, expected a header and a row an image")
        self.file_column = _column(file, header, "--file-column", file_column, FILE_COLUMNS)
        self._name_at = header.index(self.file_column)
        split = _known(header, SPLIT_COLUMNS)
        self._split_at = None if split is None else header.index(split)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{file}: no rows found below its header")
        self._header = header
        if label_column is None and _known(header, LABEL_COLUMNS) is None and self._is_one_hot(first[1]):
            self.label_column, self._label_at = "of the 1", None
        else:
            self.label_column = _column(file, header, "--label-column", label_column, LABEL_COLUMNS)
            self._label_at = header.index(self.label_column)
            if self._label_at == self._name_at:
                raise UsageError(f"--label-column: {self.file_column} is the column of the files, too")
        for number, row in chain([first], rows):
            self._add(number, row)
        if split is not None:
            self.notes.append(f"column {split} has the splits" if self._odd_split is None else
                              f"column {split} is not used, since {shown(self._odd_split)} is no split's name")
            self.splits = self.splits if self._odd_split is None else {}

    def use(self, keys: Sequence[str]) -> tuple[int, int | None] | None:
        """The label's number and the split of the image that has one of these keys; None where no row names it.

        Raises DataError where an image before had it.
        """
        for key in keys:
            if key in self.labels:
                if key in self._used:
                    raise DataError(f"{self.file}: {shown(key)} names several images; name them by their paths and "
                                    f"with their extensions")
                self._used.add(key)
                return self.labels[key], self.splits.get(key)
        return None

    def unused(self) -> Iterator[str]:
        """Rows that no image used."""
        return (key for key in self.labels if key not in self._used)

    def by_last_part(self) -> None:
        """From now on rows name images by what follows their last slash; DataError where two then name the same."""
        labels: dict[str, int] = {}
        for key, number in self.labels.items():
            last = key.rpartition("/")[2]
            if last in labels:
                raise DataError(f"{self.file}: {shown(key)} and another row end in {shown(last)}, and by their whole "
                                f"paths none names an image")
            labels[last] = number
        self.splits = {key.rpartition("/")[2]: split for key, split in self.splits.items()}
        self.labels = labels

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows that are not empty, with their numbers."""
        for number, row in enumerate(_read(self.file), 1):
            if any(map(str.strip, row)):
                yield number, row

    def _cells(self, row: list[str]) -> list[tuple[str, str]]:
        """Of a one-hot row, the classes' columns and what is in them."""
        return [(name, cell.strip()) for at, (name, cell) in enumerate(zip(self._header, row, strict=False))
                if at not in (self._name_at, self._split_at)]

    def _is_one_hot(self, row: list[str]) -> bool:
        cells = self._cells(row)
        return len(cells) > 1 and all(cell in ONE_HOT for _, cell in cells)

    def _add(self, number: int, row: list[str]) -> None:
        if len(row) <= self._name_at or any(map(str.strip, row[len(self._header):])):
            raise DataError(f"{self.file}: row {number} has {len(row)} columns, the header {len(self._header)}; if it "
                            f"has the separator in a name, quote that")
        name = row[self._name_at].strip()
        self.rows += 1
        if not name:
            raise DataError(f"{self.file}: row {number} names no image in column {self.file_column}")
        key, label = plain(name), self.vocabulary.number(self._label(number, row))
        if self.labels.setdefault(key, label) != label:
            raise DataError(f"{self.file}: row {number}: {shown(name)} has another label above; expected one an image")
        if self._split_at is not None and self._split_at < len(row):
            self.splits[key] = self._split(row[self._split_at].strip())

    def _label(self, number: int, row: list[str]) -> str:
        if self._label_at is not None:
            return row[self._label_at] if self._label_at < len(row) else ""
        cells = self._cells(row)
        ones = [name for name, cell in cells if ONE_HOT.get(cell)]
        if len(ones) > 1 or not all(cell in ONE_HOT for _, cell in cells):
            raise DataError(f"{self.file}: row {number}: {len(ones)} columns with 1 found, expected one and 0 in the "
                            f"others; --label-column names a column of labels")
        return ones[0] if ones else ""

    def _split(self, value: str) -> int:
        found = SPLITS.get(value.lower())
        if found is None:
            self._odd_split = value
        return TRAIN if found is None else found


def _read(file: Path) -> Iterator[list[str]]:
    try:
        stream = open_regular(file, MAX_FILE_BYTES)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; --labels-csv is a CSV file, by its path from here") from None
    with stream:
        start = stream.read(4)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        stream.seek(0)
        text = io.TextIOWrapper(stream, encoding, newline="")
        try:
            header = text.readline(MAX_FIELD)
            text.seek(0)
            csv.field_size_limit(MAX_FIELD)
            yield from csv.reader(text, delimiter=max(DELIMITERS, key=header.count), skipinitialspace=True, strict=True)
        except UnicodeError:
            raise DataError(f"{file}: not in UTF-8; save it as CSV in UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{file}: not a readable CSV file ({error})") from None


def _known(header: list[str], usual: Sequence[str]) -> str | None:
    """The column whose name is the first of the usual ones; None where there is none, or two."""
    names = [name for want in usual for name in header if name.lower().replace(" ", "_") == want]
    return names[0] if names and header.count(names[0]) == 1 else None


def _column(file: Path, header: list[str], flag: str, given: str | None, usual: Sequence[str]) -> str:
    listed = ", ".join(shown(name)[1:-1] for name in header[:20]) + ", …" * (len(header) > 20)
    if given is not None:
        if header.count(given) != 1:
            raise UsageError(f"{flag}: found {given!r}, expected one of the columns of {file}: {listed}")
        return given
    found = _known(header, usual)
    if found is None:
        what = "the images" if flag == "--file-column" else "the labels"
        no_header = "; is it an image's row, and the header missing?" if any("." in name for name in header) else ""
        raise UsageError(f"{flag}: needed; {file} has the columns {listed} (its first line{no_header}), and none has a "
                         f"usual name for {what} ({', '.join(usual[:4])}, ...)")
    return found


def plain(name: str) -> str:
    """A path as a row may give it, with slashes and without detours at its beginning."""
    return str(PurePosixPath(name.replace("\\", "/").strip("\"'")))
