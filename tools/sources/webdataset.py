"""WebDataset tars: in each sample an image and, where there are labels, a cls, json or txt with its class."""

import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.common.errors import DataError, UsageError
from pipelines.common.progress import progress_bar
from pipelines.common.words import short
from tools.sources import Source, Split
from tools.sources.decoding import Item, decoded
from tools.sources.images import RESIZED
from tools.sources.report import IMAGES, Report
from tools.sources.sample_labels import Labels
from tools.sources.samples import Samples
from tools.sources.splits import Part, assemble
from tools.sources.tar_paths import TEST, TRAIN, UNLABELED, VAL, Tar, find_tars, place


def read(paths: Sequence[Path], size: int, *, unlabeled: bool = False, label_key: str | None = None,
         image_key: str | None = None, test_fraction: float | None = None, skip_damaged: bool = False) -> Source:
    """Recognise tars of samples; images are decoded when the splits are iterated.

    A first pass reads the headers and the labels. A sample's label is its cls, else its json, or a field of it, else
    its txt; samples without one are unlabeled. See ``find_tars`` for the splits, ``Samples`` for the images.

    Memory: four bytes a sample, each label once, and a few chunks of images.

    Args:
        paths: tars, folders of them, or patterns.
        size: height and width of the prepared images, in pixels.
        unlabeled: take every image, of whatever split, as unlabeled.
        label_key: what has the labels: cls, txt, or json; else a field of the json, where dots descend.
        image_key: of a sample's images the one to take, by what follows the first dot: ``jpg``, ``left.png``.
        test_fraction, skip_damaged: see ``tools.sources.folder.read``.

    Raises:
        DataError: no tars, a damaged one, samples without an image or whose files lie apart, what can be no label, a
            class in the test set that the training images lack.
        UsageError: no test set, and no ``test_fraction``; captions instead of labels; labels or images of several
            kinds, of which none is named.
    """
    if unlabeled and label_key is not None:
        raise UsageError(f"--label-key: found {label_key!r} with --unlabeled, which takes no labels; choose one")
    report = Report(skip_damaged)
    where = str(paths[0]) + (f" and {len(paths) - 1:,} more" if len(paths) > 1 else "")
    tars = find_tars(paths, report)
    if unlabeled:
        tars = {TRAIN: sorted(chain(*tars.values()), key=lambda tar: str(tar.path))}
    elif TRAIN not in tars and UNLABELED not in tars:
        only = next(iter(tars))
        raise DataError(f"{where}: no tars of training samples found, but of {only}: {place(tars[only])}; --unlabeled "
                        f"takes the images of all")
    labels = Labels(where, label_key)
    splits = _Splits(tars, None if unlabeled else labels, image_key, size, report)
    splits.scan(where)
    total = sum(map(len, tars.values()))
    report.note(f"{where}: {total:,} tar{'s' * (total > 1)}, {splits.count:,} samples, "
                f"{'labels ignored' if unlabeled else labels.note()}")
    path = [str(path.resolve()) for path in paths]
    origin = {"path": path[0] if len(path) == 1 else path, "resized": RESIZED.format(size)}
    origin |= {name: value for name, value in (("test_fraction", test_fraction), ("unlabeled", unlabeled or None),
                                               ("label_key", label_key), ("image_key", image_key)) if value is not None}
    return Source("folder", (size, size, 3), splits.assembled(where, labels, test_fraction), origin, report)


class _Tars:
    """The samples of some tars: counted, with their labels, by the first pass, and decoded by the others."""

    def __init__(self, tars: Sequence[Tar], samples: Samples, size: int, report: Report, bar: tqdm):
        self._tars, self._samples, self._size, self._report = tars, samples, size, report
        numbers, self._found = array("i"), []
        for tar in tars:
            first, names = len(numbers), 0
            for key, number in samples.scan(tar):
                numbers.append(number)
                names = _hashed(key, names)
            self._found.append((len(numbers) - first, names))
            bar.update()
        self.numbers = np.array(numbers, np.int32)
        if not len(numbers):
            raise DataError("; ".join([f"{tars[0].path}: no samples found, expected images and their labels",
                                       *report.lines()]))

    def part(self, order: np.ndarray | None, place: str) -> Part:
        """Them, their numbers turned to classes by ``order``, whose last element is −1; None for no labels."""
        labels = None if order is None else order[self.numbers]
        return Part(len(self.numbers), labels, lambda mask: decoded(
            self._items(labels, mask), self._size, self._report), place)

    def _items(self, labels: np.ndarray | None, mask: np.ndarray | None) -> Iterator[Item]:
        """Those in ``mask``; DataError where a tar has other samples than it had."""
        end = 0
        for tar, (count, names) in zip(self._tars, self._found, strict=True):
            first, end = end, end + count
            wanted = np.ones(count, bool) if mask is None else mask[first:end]
            if not wanted.any():
                continue
            number, now = 0, 0
            samples = self._samples.images(tar, lambda number, wanted=wanted: number < len(wanted) and wanted[number])
            for number, (key, image) in enumerate(samples, 1):
                now = _hashed(key, now)
                if image is not None:
                    yield Item(f"{tar.name}:{key}", image, None if labels is None else int(labels[first + number - 1]))
            if (number, now) != (count, names):
                raise DataError(f"{tar.path}: it had {count:,} samples, and now has others; start again when no "
                                f"program changes it")


class _Splits:
    """What the tars of each split have, and which of them are used.

    Args:
        tars: of each split.
        labels: reads the labels; None: they are ignored.
        image_key, size, report: see ``read``.
    """

    def __init__(self, tars: dict[str, list[Tar]], labels: Labels | None, image_key: str | None, size: int,
                 report: Report):
        self._tars, self._labels, self._size, self._report = tars, labels, size, report
        self._place = {split: place(found) for split, found in tars.items()}
        self._with_labels = Samples(report, labels, image_key)
        self._without = Samples(report, None, image_key)
        self._found: dict[str, _Tars] = {}
        self._test: str | None = None  # which split is the test set

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(len(found.numbers) for found in self._found.values())

    def scan(self, where: str) -> None:
        """The first pass. Labels of val are read only where it may be the test set, lest it add classes."""
        # The bar shows nothing of what is quick, so that an error is a line alone.
        with progress_bar(sum(map(len, self._tars.values())), " tars", where, delay=2) as bar:
            for split in (TRAIN, TEST, VAL, UNLABELED):
                if split not in self._tars:
                    continue
                ignored = split == UNLABELED or self._test is not None
                found = self._found[split] = _Tars(
                    self._tars[split], self._without if ignored else self._with_labels, self._size, self._report, bar)
                if split == TRAIN and self._labels:
                    self._labels.check()
                elif split != TRAIN and (found.numbers >= 0).any():
                    self._test = split

    def assembled(self, where: str, labels: Labels, fraction: float | None) -> tuple[Split, ...]:
        """See ``assemble``."""
        names, order = labels.vocabulary.classes()
        order = np.append(order, -1).astype(np.int32)
        more = self._more()
        here = self._place.get(TRAIN, "") if len(self._place) > 1 else ""
        train = self._found[TRAIN].part(order, here) if TRAIN in self._found else Part(0, None, lambda mask: iter(()))
        test = self._found[self._test].part(order, self._place[self._test]) if self._test else None
        counts = np.zeros(0, int) if train.labels is None else np.bincount(
            train.labels[train.labels >= 0], minlength=len(names))
        if test and counts.any():
            _check_classes(test, names, counts)
        hint = "; if its images are unlabeled: --unlabeled" if np.count_nonzero(counts) == 1 else ""
        return assemble(where, names, train, test, more, fraction, self._report, hint)

    def _more(self) -> list[Part]:
        """Unlabeled images beside the training set; those of test sets that are not used are left out."""
        more = []
        for split in (TEST, VAL, UNLABELED):
            if split not in self._found or split == self._test:
                continue
            if split == UNLABELED or (split == TEST and self._test == VAL):
                more.append(self._found[split].part(None, self._place[split]))
            else:
                why = f"since {self._place[TEST]} is the test set" if self._test else "which has no labels"
                self._report.leave_out(IMAGES, f"{self._place[split]}, {why}", count=len(self._found[split].numbers))
        return more


def _check_classes(test: Part, names: Sequence[str], counts: np.ndarray) -> None:
    """Raise DataError for a class of the test set that no training image has."""
    unknown = [label for label in np.unique(test.labels[test.labels >= 0]) if not counts[label]]
    if unknown:
        known = [name for name, count in zip(names, counts, strict=True) if count]
        raise DataError(f"{test.place}: class {short(names[unknown[0]])} not found among the training images, which "
                        f"have {', '.join(map(short, known[:10]))}{', …' * (len(known) > 10)}")


def _hashed(key: str, before: int) -> int:
    """A checksum of samples' names so far."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"), before)
