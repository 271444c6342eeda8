"""Images in a folder whose labels are in a CSV file: which row is of which image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.common.errors import DataError, shown
from tools.sources import Source
from tools.sources.decoding import Item, decoded
from tools.sources.files import ImageFiles
from tools.sources.folder import check_folder
from tools.sources.images import RESIZED
from tools.sources.label_table import TEST, TRAIN, VAL, LabelTable
from tools.sources.report import IMAGES, ROWS, Report
from tools.sources.splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, Part, assemble
from tools.sources.walk import images_below

PLACES = {TEST: "test/", VAL: "val/"}


def read(path: Path, size: int, file: Path, *, file_column: str | None = None, label_column: str | None = None,
         test_fraction: float | None = None, skip_damaged: bool = False) -> Source:
    """The images below a folder with the labels of a CSV file; images without a label are unlabeled.

    Rows name images by their path from the folder, from its ``train/``, from the CSV's folder, or by their name alone;
    with their extension or without. Of these the first that fits most rows is taken. Images below ``test/``, else
    ``val/``, that have labels are the test set, or those of which a column of splits says so.

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
    rows = LabelTable(file, file_column, label_column)
    places = Places(path, file)
    images = sum(1 for _ in images_below(path, files.report, inside=path))
    scheme = places.best(rows, images)
    files.report.note("; ".join([f"{file}: {len(rows.labels):,} rows; column {rows.file_column} names images by "
                                 f"{places.describe(scheme)}, column {rows.label_column} their classes", *rows.notes]))
    names, order = rows.vocabulary.classes()
    chosen = _Chosen(files, rows, places, scheme, np.append(order, -1).astype(np.int32))
    for name in rows.unused():
        files.report.leave_out(ROWS, f"{file.name}: rows of images that are not there", name)
    train, test, unlabeled = chosen.parts()
    origin = {"path": str(path.resolve()), "resized": RESIZED.format(size), "labels_csv": str(file.resolve()),
              "columns": [rows.file_column, rows.label_column]}
    origin |= {} if test_fraction is None else {"test_fraction": test_fraction}
    splits = assemble(str(path), names, train, test, unlabeled, test_fraction, files.report)
    return Source("folder", (size, size, 3), splits, origin, files.report)


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

    def best(self, rows: LabelTable, images: int) -> int:
        """The first of the schemes that fits most rows.

        Where none fits any, rows are taken by what follows their last slash.

        Raises:
            DataError: that fits none of the ``images`` there are, either; or names are not enough.
        """
        sizes, twice = self._fitting(rows)
        if not any(sizes) and any("/" in key for key in rows.labels):
            rows.by_last_part()
            sizes, twice = self._fitting(rows)
        scheme = sizes.index(max(sizes))
        if not sizes[scheme]:
            first, image = next(iter(rows.labels)), next(images_below(self.path), None)
            instead = "" if image is None else f"; the first image is {image.relative_to(self.path)}"
            raise DataError(f"{rows.file}: none of its {len(rows.labels):,} rows names one of the {images:,} images "
                            f"below {self.path}; the first has {shown(first)} in column {rows.file_column}{instead}")
        if scheme == len(sizes) - 1 and twice is not None:
            raise DataError(f"{rows.file}: {shown(twice)} names several images below {self.path}; name them by their "
                            f"path from there")
        return scheme

    def _fitting(self, rows: LabelTable) -> tuple[list[int], str | None]:
        """How many rows each scheme fits, and a name that fits several images."""
        fitted: list[set[str]] = [set() for _ in self.SCHEMES]
        twice: str | None = None
        for image in images_below(self.path):
            for scheme, found in enumerate(fitted):
                key = next((key for key in self.keys(image, scheme) if key in rows.labels), None)
                if key is not None:
                    if scheme == len(fitted) - 1 and key in found:
                        twice = key
                    found.add(key)
        return [len(found) for found in fitted], twice

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

    def __init__(self, files: ImageFiles, rows: LabelTable, places: Places, scheme: int, order: np.ndarray):
        self._files, self._path = files, files.path
        labels, split, without_label, without_row = [], [], 0, 0
        for image in images_below(files.path):
            found = rows.use(places.keys(image, scheme))
            number, in_table = (None, None) if found is None else found
            labels.append(-1 if number is None else int(order[number]))
            split.append(self._split(image) if in_table is None else in_table)
            without_row += number is None
            without_label += number == -1
        self._labels, self._split_of = np.array(labels, np.int32), np.array(split, np.int8)
        if without_label or without_row:
            files.report.note(f"{rows.file}: {without_label:,} rows without a label, {without_row:,} images without a "
                              f"row")

    def _split(self, image: Path) -> int:
        """By the folder that it is in."""
        first = image.relative_to(self._path).parts[0].lower()
        return TEST if first in TEST_NAMES else VAL if first in VAL_NAMES else TRAIN

    def parts(self) -> tuple[Part, Part | None, list[Part]]:
        """Training images, the test set, and unlabeled ones from a test set without labels."""
        has = {split: bool(((self._split_of == split) & (self._labels >= 0)).any()) for split in PLACES}
        test = TEST if has[TEST] else VAL if has[VAL] else None
        unlabeled = []
        for split, place in PLACES.items():
            count = int((self._split_of == split).sum())
            if split == TEST and test == VAL and count:
                unlabeled.append(self._part(split, place))
            elif split != test and count:
                why = f"since {PLACES[test]} is the test set" if has[split] else "which has no labels"
                self._files.report.leave_out(IMAGES, f"{place}, {why}", count=count)
        return self._part(TRAIN, ""), None if test is None else self._part(test, PLACES[test]), unlabeled

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
