"""From labels as people write them to classes and splits: pure functions of names, values and positions."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.common.errors import DataError, UsageError, shown
from pipelines.common.words import counted
from pipelines.shards.manifest import MAX_CLASSES
from tools.sources import Batches, Split
from tools.sources.report import Report

TRAIN_NAMES = ("train", "training", "labeled", "labelled")  # of folders and files, by preference, whatever their case
TEST_NAMES = ("test", "testing", "eval", "evaluation")  # as on the Hugging Face hub
VAL_NAMES = ("val", "valid", "validation", "dev")
UNLABELED_NAMES = ("unlabeled", "unlabelled")
SPLIT_NAMES = frozenset((*TRAIN_NAMES, *TEST_NAMES, *VAL_NAMES, *UNLABELED_NAMES))
NO_LABEL = re.compile(r"|nan|unlabell?ed|-1(\.0*)?", re.IGNORECASE)
SHOWN_ALIKE = 5
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")


def is_split(name: str) -> bool:
    """Whether a folder of this name is never a class: it is a split's, or has the word unlabeled."""
    return name.lower() in SPLIT_NAMES or bool(_words(name) & set(UNLABELED_NAMES))


def looks_like_a_split(name: str) -> bool:
    """Whether a name has a word that a split has, ``seg_train`` and ``test1`` for instance; a class may, too."""
    return bool(_words(name) & SPLIT_NAMES)


def find_split(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Those of ``names`` that mean one of ``wanted``, in this order of preference."""
    return [name for want in wanted for name in sorted(names) if name.lower() == want]


def find_unlabeled(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that have the word unlabeled."""
    return sorted(name for name in names if _words(name) & set(UNLABELED_NAMES))


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def held_out(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which images are held out for the test, bool (n,).

    Of each class the last round(``fraction``·n) of its n images, at least one and leaving one, of ``RandomState(2)``'s
    shuffle of them, begun anew for each class: what is held out of one does not depend on the others.

    Args:
        labels: class numbers (n,); below 0 for unlabeled images, none of which is held out.
        fraction: 0 for none.
    """
    held = np.zeros(len(labels), bool)
    if not fraction:
        return held
    by_class = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0):]
    for indices in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        np.random.RandomState(2).shuffle(indices)
        held[indices[len(indices) - count:]] = True
    return held


class Vocabulary:
    """Labels as they are read, numbered by first appearance; ``classes`` sorts them in the end.

    Args:
        what: where the labels are, for messages.
    """

    def __init__(self, what: str):
        self._what = what
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def labels(self) -> list[str]:
        """The labels by their numbers so far."""
        return list(self._numbers)

    def number(self, label: str) -> int:
        """The number of a label for now; −1 where it says that there is none: empty, -1, nan or unlabeled."""
        label = label.strip()
        if NO_LABEL.fullmatch(label):
            return -1
        if "\0" in label:
            raise DataError(f"{self._what}: label {shown(label)} found, expected text without a zero byte")
        found = self._numbers.setdefault(label, len(self._numbers))
        if found >= MAX_CLASSES:
            raise DataError(f"{self._what}: more than {MAX_CLASSES:,} different labels found")
        return found

    def classes(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The classes' names in their final order, and for each number so far its class, int32 (k,).

        Whole numbers that begin at 0 are class numbers: a class that has no image keeps its place. Others are in
        numerical order; text is in alphabetical order.
        """
        labels = self.labels
        if labels and all(INTEGER.fullmatch(label) for label in labels):
            values = np.array([int(label.partition(".")[0]) for label in labels])
            if values.min() < 0:
                raise DataError(f"{self._what}: label {values.min()} found, expected class numbers, or -1 for none")
            distinct = np.unique(values)
            if distinct[0] == 0:
                if distinct[-1] >= MAX_CLASSES:
                    raise DataError(f"{self._what}: label {distinct[-1]} found, expected class numbers below "
                                    f"{MAX_CLASSES:,}")
                distinct = np.arange(distinct[-1] + 1)
            return tuple(map(str, distinct)), np.searchsorted(distinct, values).astype(np.int32)
        if odd := next((label for label in labels if "." in label), None) if all(map(_is_number, labels)) else None:
            raise DataError(f"{self._what}: label {shown(odd)} found, expected whole numbers, or names")
        names = sorted(labels)
        places = {name: place for place, name in enumerate(names)}
        return tuple(names), np.array([places[label] for label in labels], np.int32)


def _is_number(label: str) -> bool:
    return bool(NUMBER.fullmatch(label))


@dataclass(frozen=True)
class Part:
    """Images of one place in a source, in their order.

    Args:
        count: how many.
        labels: class numbers, int32 (count,), −1 for images without; None where none has a label.
        read: given which of them to read, bool (count,), or None for all: their batches.
        place: for a line.
    """

    count: int
    labels: np.ndarray | None
    read: Callable[[np.ndarray | None], Batches]
    place: str = ""

    def chosen(self, name: str, mask: np.ndarray, classes: tuple[str, ...] | None) -> Split:
        """A split of those where ``mask`` is True."""
        if mask.all():
            return Split(name, self.count, lambda: self.read(None), classes)
        return Split(name, int(mask.sum()), lambda: self.read(mask), classes)


def assemble(where: str, classes: Sequence[str], train: Part, test: Part | None, unlabeled: Sequence[Part],
             fraction: float | None, report: Report, hint: str = "") -> tuple[Split, ...]:
    """The splits of a source, and the notes that say so: train, unlabeled and test.

    A source without any label is a ``train`` split alone.

    Args:
        where: the source, for messages.
        classes: names.
        train: the images to train on; those without a label go to ``unlabeled``.
        test: those of the test set, likewise; None for none.
        unlabeled: further images without labels.
        fraction: of the labeled images of each class to hold out where there is no test set; None: not given.
        report: gets the notes.
        hint: how to have it otherwise, for the line of the classes.

    Raises:
        UsageError: no test set and no ``fraction``; a ``fraction`` where there is a test set, or no label.
        DataError: labels in the test set only; a single class.
    """
    rest = [_unlabeled(part) for part in (train, *([test] if test else []))] + [(part, None) for part in unlabeled]
    rest = [(part, mask) for part, mask in rest if part.count and (mask is None or mask.any())]
    total = sum(part.count if mask is None else int(mask.sum()) for part, mask in rest)
    has_test = test is not None and test.labels is not None and bool((test.labels >= 0).any())
    if train.labels is None or not (train.labels >= 0).any():
        if has_test:
            raise DataError(f"{where}: labels found in {test.place} only; expected them in the training images, too")
        if fraction:
            raise UsageError("; ".join([f"--test-fraction: found {fraction:g}, but {where} has no labeled images to "
                                        f"hold out", *report.lines()]))
        report.note(f"{where}: {total:,} images, all unlabeled")
        return (_joined("train", total, rest),)
    labels = train.labels
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        only = classes[int(counts.argmax())]
        raise DataError(f"{where}: a single class found, {only} ({counts.sum():,} images), expected two or more{hint}")
    report.note(f"{where}: {len(classes)} classes{f' in {train.place}' if train.place else ''}: "
                f"{counted(classes, counts)}{hint}")
    for names in alike([name for name, count in zip(classes, counts, strict=True) if count]):
        report.note(f"{where}: classes {' and '.join(map(repr, names))} differ by case, spaces or the form of letters "
                    f"only; if they are one, rename them")
    if fraction is None and not has_test:
        raise UsageError(f"{where}: no test set found beside {counts.sum():,} labeled images "
                         f"({counted(classes, counts)}{hint}); --test-fraction 0.2 holds a fifth of each class out, "
                         f"--test-fraction 0 does without one" + "".join(f"; {line}" for line in report.lines()))
    if fraction and has_test:
        raise UsageError(f"--test-fraction: found {fraction:g}, but {where} has a test set, {test.place}; leave it out")
    held = held_out(labels, 0 if has_test else fraction)
    splits = [train.chosen("train", (labels >= 0) & ~held, tuple(classes))]
    if rest:
        report.note(f"unlabeled: {total:,} images{_places(rest)}")
        splits.append(_joined("unlabeled", total, rest))
    if has_test:
        report.note(f"test set: {int((test.labels >= 0).sum()):,} images ({test.place or 'test'})")
        splits.append(test.chosen("test", test.labels >= 0, tuple(classes)))
    elif held.any():
        report.note(f"test set: {held.sum():,} images held out, {fraction:g} of each class, one at least")
        splits.append(train.chosen("test", held, tuple(classes)))
    else:
        report.note("test set: none" + (", since no class has two images" if fraction else ""))
    return tuple(splits)


def alike(names: Sequence[str]) -> list[list[str]]:
    """Names that differ by case, spaces or Unicode's forms of a letter only."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), []).append(name)
    return [names for names in found.values() if len(names) > 1][:SHOWN_ALIKE]


def _unlabeled(part: Part) -> tuple[Part, np.ndarray | None]:
    return part, None if part.labels is None else part.labels < 0


def _places(rest: Sequence[tuple[Part, np.ndarray | None]]) -> str:
    if len(rest) == 1:
        return f" ({rest[0][0].place})" if rest[0][0].place else ""
    parts = [f"{part.place} {part.count if mask is None else int(mask.sum()):,}" for part, mask in rest if part.place]
    return f" ({', '.join(parts)})" if parts else ""


def _joined(name: str, count: int, rest: Sequence[tuple[Part, np.ndarray | None]]) -> Split:
    """One unlabeled split of several parts."""
    def batches() -> Batches:
        for part, mask in rest:
            for images, _ in part.read(None if mask is None or mask.all() else mask):
                yield images, None
    return Split(name, count, batches, None)
