"""Images in a folder whose labels are in a CSV file: which column is what, and which row is of which image."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.common.errors import DataError, UsageError, shown
from pipelines.common.reading import open_regular
from tools.sources import Source
from tools.sources.decoding import Item, decoded
from tools.sources.files import ImageFiles
from tools.sources.folder import check_folder
from tools.sources.images import RESIZED
from tools.sources.report import IMAGES, ROWS, Report
from tools.sources.splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, Part, Vocabulary, assemble
from tools.sources.walk import images_below

FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_name", "image_path",
                "image_id", "id", "img", "name")
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "label_name", "classname", "class_id", "y")
DELIMITERS = ",;\t|"
MAX_FIELD = 2**16  # characters
MAX_FILE_BYTES = 2**31


def read(path: Path, size: int, file: Path, *, file_column: str | None = None, label_column: str | None = None,
         test_fraction: float | None = None, skip_damaged: bool = False) -> Source:
    """The images below a folder with the labels of a CSV file; images without a label are unlabeled.

    Rows name images by their path from the folder, from its ``train/``, from the CSV's folder, or by their name alone;
    with their extension or without. Of these the first that fits most rows is taken. Images below ``test/``, else
    ``val/``, that have labels are the test set.

    Memory: a few hundred bytes a row, for the time of the conversion.

    Args:
        path: the folder.
        size: height and width of the prepared images, in pixels.
        file: the CSV: a header, then a row an image; separated by comma, semicolon, tab or bar.
        file_column, label_column: their names; None for the usual ones.
        test_fraction, skip_damaged: see ``tools.sources.folder.read``.

    Raises:
        DataError: no such file, no rows, rows that fit no image, one image with two labels.
        UsageError: columns that are not there, or whose names are not known.
    """
    if not path.is_dir():
        check_folder(path)
    files = ImageFiles(path, size, Report(skip_damaged))
    files.report.used.add(files.name(file))
    rows = _Rows(file, file_column, label_column)
    places = Places(path, file)
    scheme = places.best(rows, images_below(path, files.report, inside=path))
    files.report.note(f"{file}: {len(rows.labels):,} rows; column {rows.columns[0]} names images by "
                      f"{places.describe(scheme)}, column {rows.columns[1]} their classes")
    names, order = rows.vocabulary.classes()
    chosen = _Chosen(files, rows, places, scheme, np.append(order, -1).astype(np.int32))
    for name in rows.unused():
        files.report.leave_out(ROWS, f"{file.name}: rows of images that are not there", name)
    train, test, unlabeled = chosen.parts()
    origin = {"path": str(path.resolve()), "resized": RESIZED.format(size), "labels_csv": str(file.resolve()),
              "columns": list(rows.columns)} | ({} if test_fraction is None else {"test_fraction": test_fraction})
    splits = assemble(str(path), names, train, test, unlabeled, test_fraction, files.report)
    return Source("folder", (size, size, 3), splits, origin, files.report)


class _Rows:
    """The rows of a CSV file: for each image that it names, the number of its label, −1 for none."""

    def __init__(self, file: Path, file_column: str | None, label_column: str | None):
        self.file, self.vocabulary = file, Vocabulary(str(file))
        self.labels: dict[str, int] = {}
        self._used: set[str] = set()
        reader = _reader(file)
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise DataError(f"{file}: empty, expected a header and a row an image")
        self.columns = (_column(file, header, "--file-column", file_column, FILE_COLUMNS),
                        _column(file, header, "--label-column", label_column, LABEL_COLUMNS))
        name_at, label_at = (header.index(column) for column in self.columns)
        if name_at == label_at:
            raise UsageError(f"--label-column: {self.columns[0]} is the column of the files, too")
        for number, row in enumerate(reader, 2):
            if not any(map(str.strip, row)):
                continue
            if len(row) <= name_at:
                raise DataError(f"{file}: row {number} has {len(row)} of {len(header)} columns")
            self._add(number, row[name_at].strip(), row[label_at] if label_at < len(row) else "")
        if not self.labels:
            raise DataError(f"{file}: no rows found below its header")

    def _add(self, number: int, name: str, label: str) -> None:
        key = plain(name)
        label_number = self.vocabulary.number(label)
        if self.labels.setdefault(key, label_number) != label_number:
            raise DataError(f"{self.file}: row {number}: {shown(name)} has another label above; expected one an image")

    def use(self, keys: Sequence[str]) -> int | None:
        """The label's number of the image that has one of these keys; None where no row names it."""
        for key in keys:
            if key in self.labels:
                self._used.add(key)
                return self.labels[key]
        return None

    def unused(self) -> Iterator[str]:
        """Rows that no image used."""
        return (key for key in self.labels if key not in self._used)


def _reader(file: Path) -> Iterator[list[str]]:
    with open_regular(file, MAX_FILE_BYTES) as stream:
        start = stream.read(4)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        stream.seek(0)
        text = io.TextIOWrapper(stream, encoding, newline="")
        try:
            header = text.readline(MAX_FIELD)
            text.seek(0)
            delimiter = max(DELIMITERS, key=header.count)
            csv.field_size_limit(MAX_FIELD)
            yield from csv.reader(text, delimiter=delimiter, skipinitialspace=True)
        except UnicodeError:
            raise DataError(f"{file}: not in UTF-8; save it as CSV in UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{file}: not a readable CSV file ({error})") from None


def _column(file: Path, header: list[str], flag: str, given: str | None, usual: tuple[str, ...]) -> str:
    if given is not None:
        if header.count(given) != 1:
            raise UsageError(f"{flag}: found {given!r}, expected one of the columns of {file}: {_names(header)}")
        return given
    found = [name for want in usual for name in header if name.lower().replace(" ", "_") == want]
    if not found or header.count(found[0]) > 1:
        what = "the images" if flag == "--file-column" else "the labels"
        raise UsageError(f"{flag}: needed; {file} has the columns {_names(header)} (its first line), and none has a "
                         f"usual name for {what} ({', '.join(usual[:4])}, ...)")
    return found[0]


def _names(header: list[str]) -> str:
    return ", ".join(shown(name)[1:-1] for name in header[:20]) + ", …" * (len(header) > 20)


def plain(name: str) -> str:
    """A path as a row may give it, with slashes and without detours at its beginning."""
    return str(PurePosixPath(name.replace("\\", "/").strip("\"'")))


@dataclass(frozen=True)
class Places:
    """The names that an image may have in a row; pure arithmetic of paths.

    Args:
        path: the source's folder.
        file: the CSV file.
    """

    path: Path
    file: Path

    SCHEMES = ("its path from the source", "its path from the folder of the training images",
               "its path from the folder of the file", "its name")

    def keys(self, image: Path, scheme: int) -> list[str]:
        """By a scheme, its name with and without extension; none where it has none by this scheme."""
        inside = PurePosixPath(image.relative_to(self.path))
        if scheme == 1:
            if inside.parts[0].lower() not in TRAIN_NAMES or len(inside.parts) < 2:
                return []
            inside = PurePosixPath(*inside.parts[1:])
        elif scheme == 2:
            try:
                inside = PurePosixPath(image.resolve().relative_to(self.file.resolve().parent))
            except ValueError:
                return []
        elif scheme == 3:
            inside = PurePosixPath(inside.name)
        return [str(inside), str(inside.with_suffix(""))]

    def best(self, rows: _Rows, images: Iterator[Path]) -> int:
        """The first of the schemes that fits most rows; DataError where none fits any, or a name several images."""
        fitted: list[set[str]] = [set() for _ in self.SCHEMES]
        twice: str | None = None
        count = 0
        for image in images:
            count += 1
            for scheme, found in enumerate(fitted):
                key = next((key for key in self.keys(image, scheme) if key in rows.labels), None)
                if key is not None:
                    if scheme == len(fitted) - 1 and key in found:
                        twice = key
                    found.add(key)
        sizes = [len(found) for found in fitted]
        scheme = sizes.index(max(sizes))
        if not sizes[scheme]:
            first = next(iter(rows.labels))
            raise DataError(f"{rows.file}: none of its {len(rows.labels):,} rows names one of the {count:,} images "
                            f"below {self.path}; the first has {shown(first)} in column {rows.columns[0]}")
        if scheme == len(fitted) - 1 and twice is not None:
            raise DataError(f"{rows.file}: {shown(twice)} names several images below {self.path}; name them by their "
                            f"path from there")
        return scheme

    def describe(self, scheme: int) -> str:
        """A scheme, in words."""
        return self.SCHEMES[scheme]


class _Chosen:
    """The images of a folder with the labels of their rows, in the order of their names.

    Args:
        files: of the source.
        rows, places, scheme: see there.
        order: a label's class by its number so far; its last element is −1, for none.
    """

    def __init__(self, files: ImageFiles, rows: _Rows, places: Places, scheme: int, order: np.ndarray):
        self._files, self._path = files, files.path
        labels, split, without_label, without_row = [], [], 0, 0
        for image in images_below(files.path):
            number = rows.use(places.keys(image, scheme))
            labels.append(-1 if number is None else int(order[number]))
            split.append(self._split(image))
            without_row += number is None
            without_label += number == -1
        self._labels, self._split_of = np.array(labels, np.int32), np.array(split, np.int8)
        if without_label or without_row:
            files.report.note(f"{rows.file}: {without_label:,} rows without a label, {without_row:,} images without a "
                              f"row")

    def _split(self, image: Path) -> int:
        """0 for training, 1 for ``test/``, 2 for ``val/``."""
        first = image.relative_to(self._path).parts[0].lower()
        return 1 if first in TEST_NAMES else 2 if first in VAL_NAMES else 0

    def parts(self) -> tuple[Part, Part | None, list[Part]]:
        """Training images, the test set, and unlabeled ones from a test set without labels."""
        has = [bool(((self._split_of == split) & (self._labels >= 0)).any()) for split in range(3)]
        there = [bool((self._split_of == split).any()) for split in range(3)]
        test = 1 if has[1] else 2 if has[2] else None
        unlabeled = []
        for split, place in ((1, "test/"), (2, "val/")):
            if there[split] and split != test:
                if split == 1 and test == 2:
                    unlabeled.append(self._part(split, f"{place}"))
                else:
                    why = f"since {'test/' if test == 1 else 'val/'} is the test set" if has[split] else \
                        "which has no labels"
                    self._files.report.leave_out(IMAGES, f"{place}, {why}", count=int((self._split_of == split).sum()))
        test_part = None if test is None else self._part(test, "test/" if test == 1 else "val/")
        return self._part(0, ""), test_part, unlabeled

    def _part(self, split: int, place: str) -> Part:
        inside = np.flatnonzero(self._split_of == split)
        labels = self._labels[inside]

        def items(mask: np.ndarray | None) -> Iterator[Item]:
            wanted = np.zeros(len(self._labels), bool)
            wanted[inside if mask is None else inside[mask]] = True
            number = -1
            for number, image in enumerate(images_below(self._path)):
                if number >= len(wanted):
                    break
                if wanted[number]:
                    yield Item(self._files.name(image), image, int(self._labels[number]))
            if number + 1 != len(wanted):
                raise DataError(f"{self._path}: it had {len(wanted):,} images, and now has another number; start "
                                f"again when no program changes it")
        return Part(len(inside), labels, lambda mask: decoded(items(mask), self._files.size, self._files.report), place)
