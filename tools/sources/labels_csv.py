"""Images in a folder whose labels are in a CSV file: which row is of which image."""

import os
import posixpath
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError, shown
from pipelines.common.progress import progress_bar
from tools.sources import Source
from tools.sources.decoding import Item, decoded
from tools.sources.files import ImageFiles, Seen, unchanged
from tools.sources.folder import check_folder
from tools.sources.images import RESIZED
from tools.sources.label_table import TEST, TRAIN, VAL, LabelTable
from tools.sources.report import IMAGES, ROWS, Report
from tools.sources.splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, Part, Vocabulary, assemble, find_split
from tools.sources.walk import extension, folders_in, images_below

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
    images = _Images(files, rows)
    files.report.note("; ".join([
        f"{file}: {rows.rows:,} rows; column {rows.file_column} names images by "
        f"{images.places.describe(images.scheme)}, column {rows.label_column} their classes", *rows.notes]))
    chosen = _Chosen(files, rows, images)
    names = chosen.classes
    for name in rows.unused():
        files.report.leave_out(ROWS, f"{file.name}: rows of images that are not there", name)
    train, test, unlabeled = chosen.parts()
    origin = {"path": str(path.resolve()), "resized": RESIZED.format(size), "labels_csv": str(file.resolve()),
              "columns": [rows.file_column, rows.label_column]}
    origin |= {} if test_fraction is None else {"test_fraction": test_fraction}
    splits = assemble(str(path), names, train, test, unlabeled, test_fraction, files.report)
    return Source("folder", (size, size, 3), splits, origin, files.report)


class Places:
    """The names that an image may have in a row; pure arithmetic of paths.

    Args:
        path: the source's folder.
        file: the CSV file.
    """

    SCHEMES = ("its path from the source", "its path from the folder of the training images",
               "its path from the folder of the file", "its name")

    def __init__(self, path: Path, file: Path):
        train = find_split(folders_in(path), TRAIN_NAMES)[:1]
        self._train = f"{train[0]}/" if train else None
        from_file = os.path.relpath(path.resolve(), file.resolve().parent).replace(os.sep, "/")
        self._from_file = "" if from_file == "." else f"{from_file}/"

    def keys(self, image: str, scheme: int) -> list[str]:
        """By a scheme, the name of an image (its path from the source) with and without extension; none where it has
        none by this scheme.
        """
        if scheme == 1:
            if self._train is None or not image.startswith(self._train):
                return []
            image = image[len(self._train):]
        elif scheme == 2:
            image = posixpath.normpath(self._from_file + image)
        elif scheme == 3:
            image = image.rpartition("/")[2]
        return [image, image[:-len(suffix)]] if (suffix := extension(image)) else [image]

    def describe(self, scheme: int) -> str:
        """A scheme, in words."""
        return self.SCHEMES[scheme]


class _Images:
    """The images below a folder by their names, in order, and how the rows name them.

    Args:
        files: of the source.
        rows: of the table; where none names an image by its path, they are taken by what follows their last slash.

    Raises DataError where these name none, either.
    """

    def __init__(self, files: ImageFiles, rows: LabelTable):
        self.places = Places(files.path, rows.file)
        self.seen, first = Seen(), ""
        fitted: list[set[str]] = [set() for _ in Places.SCHEMES]  # rows
        with progress_bar(None, " images", str(files.path), delay=2) as bar:
            for image in images_below(files.path, files.report, inside=files.path):
                name = files.name(image)
                first = first or name
                self.seen = self.seen.and_(name)
                for scheme, found in enumerate(fitted):
                    found.update(self._row(rows, name, scheme))
                bar.update()
        if not any(fitted) and any("/" in key for key in rows.labels):
            rows.by_last_part()
            for image in images_below(files.path):
                for scheme, found in enumerate(fitted):
                    found.update(self._row(rows, files.name(image), scheme))
        self.scheme = max(range(len(fitted)), key=lambda scheme: len(fitted[scheme]))  # the first of the best
        if not fitted[self.scheme]:
            instead = f"; the first image is {first}" if first else ""
            raise DataError(f"{rows.file}: none of its {rows.rows:,} rows names one of the {self.seen.count:,} images "
                            f"below {files.path}; the first has {shown(next(iter(rows.labels)))} in column "
                            f"{rows.file_column}{instead}")


    def _row(self, rows: LabelTable, name: str, scheme: int) -> list[str]:
        """The row that names an image by a scheme, if there is one."""
        return [key for key in self.places.keys(name, scheme) if key in rows.labels][:1]


class _Chosen:
    """The images of a folder with the labels of their rows, in the order of their names.

    ``classes`` are those of the training images. Raises DataError for a test label that these lack.

    Args:
        files: of the source.
        rows: of the table.
        images: which of them name which.
    """

    def __init__(self, files: ImageFiles, rows: LabelTable, images: _Images):
        self._files, self._path, self._seen = files, files.path, images.seen
        numbers, split, without_label, without_row = array("i"), bytearray(), 0, 0
        for image in images_below(files.path):
            name = files.name(image)
            found = rows.use(images.places.keys(name, images.scheme))
            number, in_table = (-1, None) if found is None else found
            numbers.append(number)
            split.append(self._split(name) if in_table is None else in_table)
            without_row += found is None
            without_label += found is not None and number < 0
        self._split_of = np.frombuffer(split, np.uint8)
        self.classes, self._labels = self._classes(np.frombuffer(numbers, np.int32), rows)
        if without_label or without_row:
            files.report.note(f"{rows.file}: {without_label:,} images without a label in their row, {without_row:,} "
                              f"images without a row")

    def _classes(self, numbers: np.ndarray, rows: LabelTable) -> tuple[tuple[str, ...], np.ndarray]:
        """The classes, and that of each image, by the numbers of their labels."""
        vocabulary, texts = Vocabulary(str(rows.file)), rows.vocabulary.labels
        in_training = np.unique(numbers[(self._split_of == TRAIN) & (numbers >= 0)])
        for number in in_training:
            vocabulary.number(texts[number])
        names, order = vocabulary.classes()
        classes = np.full(len(texts) + 1, -1, np.int32)  # of each number; the last is for none
        classes[in_training] = order
        labels = classes[numbers]
        odd = np.flatnonzero((labels < 0) & (numbers >= 0))
        if len(odd) and len(in_training):
            raise DataError(f"{rows.file}: class {shown(texts[numbers[odd[0]]])} of test images is none of the "
                            f"training images, which have {', '.join(names[:10])}{', …' * (len(names) > 10)}")
        if len(odd):  # no training image has a label
            labels[odd] = 0
        return names, labels

    def _split(self, name: str) -> int:
        """By the folder that an image is in."""
        first = name.partition("/")[0].lower() if "/" in name else ""
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
            for at, image in unchanged(images_below(self._path), self._files.name, self._seen, self._path):
                if wanted[at]:
                    yield Item(self._files.name(image), image, int(self._labels[at]))
        return Part(len(inside), labels, lambda mask: decoded(items(mask), self._files.size, self._files.report), place)
