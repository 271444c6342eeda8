"""NumPy arrays under the names that people give them: which are the images and labels of which split."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError, UsageError
from pipelines.common.words import short
from tools.sources import Batches, Source
from tools.sources.array_files import Array, find
from tools.sources.array_labels import Classes
from tools.sources.array_pixels import height_width, read_images, scales, squares
from tools.sources.images import RESIZED
from tools.sources.report import ARRAYS, Report
from tools.sources.splits import TEST_NAMES, TRAIN_NAMES, UNLABELED_NAMES, VAL_NAMES, Part, assemble
from tools.sources.walk import refuse_known

CHUNK = 1024  # images at a time, or fewer where they are large
CHUNK_BYTES = 2**26
SPLITS = {"train": ("", *TRAIN_NAMES), "test": TEST_NAMES, "val": VAL_NAMES, "unlabeled": UNLABELED_NAMES}
IMAGES = ("images", "image", "imgs", "img", "x", "data")
LABELS = ("labels", "label", "y", "target", "targets")
KINDS = {"images": IMAGES, "labels": LABELS}
MEANINGS = {name: (split, kind) for split, splits in SPLITS.items() for one in splits
            for kind, kinds in KINDS.items() for other in kinds for joint in ("_", "-", "")[0 if one else 2:]
            for name in (f"{one}{joint}{other}", f"{other}{joint}{one}")}  # of a name in lower case
MEANINGS |= dict.fromkeys(UNLABELED_NAMES, ("unlabeled", "images"))
SHOWN_NAMES = 12


def read(path: Path, size: int | None = None, *, test_fraction: float | None = None) -> Source:
    """Recognise NumPy arrays by their names: a split and a kind in either order (``train_images`` and ``train_labels``,
    ``x_train`` and ``y_train``), or a kind alone for training; whatever their case.

    Images are (N,H,W), (N,H,W,C) or (N,C,H,W) in uint8, or in another type of numbers that 8 bits hold. Labels are
    whole numbers, text or one-hot rows; those of −1, NaN or without text make the image unlabeled, and so does
    ``x_unlabeled``. The test set is ``test``, else ``val``; a ``test`` without labels beside a ``val`` with them is
    unlabeled.

    Memory: a chunk of images, and a label an image.

    Args:
        path: an .npz, a folder of .npy files of those names, or one .npy of unlabeled images.
        size: height and width to resize to; None to keep square images as they are.
        test_fraction: of each class, to hold out where there is no test set; None: not given.

    Raises:
        DataError: no such arrays, two of one meaning, images or labels of another kind, labels that no training image
            has, a single class.
        UsageError: images that are not square, without ``size``; no test set, and no ``test_fraction``.
    """
    refuse_known(path)
    report = Report()
    found = _named(find(path, report), path, report)
    chosen = _Chosen(found, report)
    if not chosen.all:
        names = ", ".join(short(array.name) for array in found.values())
        raise DataError(f"{path}: arrays {names} found, expected training images among them, x_train for instance")
    images = [array for array, _ in chosen.all]
    factors = dict(zip((array.name for array in images), scales(images, report), strict=True))
    shapes = sorted({height_width(array) for array in images})
    if size is None:
        size = shapes[0][0]
        if shapes != [(size, size)]:
            raise UsageError(f"--size: needed, since the images are {' and '.join(f'{h}×{w}' for h, w in shapes)}; "
                             f"expected squares of one size")

    def part(array: Array, labels: np.ndarray | None) -> Part:
        return Part(array.shape[0], labels, _reader(array, labels, factors[array.name], size), short(array.name))
    train = part(*chosen.train) if chosen.train else Part(0, None, lambda mask: iter(()))
    test = part(*chosen.test) if chosen.test else None
    splits = assemble(str(path), chosen.classes.names, train, test, [part(*one) for one in chosen.unlabeled],
                      test_fraction, report)
    origin = {"path": str(path.resolve()), "resized": RESIZED.format(size)}
    origin |= {} if test_fraction is None else {"test_fraction": test_fraction}
    return Source("folder", (size, size, 3), splits, origin, report)


def _named(arrays: Sequence[Array], path: Path, report: Report) -> dict[tuple[str, str], Array]:
    """The arrays whose names mean something, by split and kind; the others go to ``report``."""
    found: dict[tuple[str, str], Array] = {}
    for array in arrays:
        meaning = MEANINGS.get(array.name.rpartition("/")[2].lower())
        if meaning is None:
            report.leave_out(ARRAYS, short(array.name), short(array.name))
        elif meaning in found:
            raise DataError(f"{path}: arrays {short(found[meaning].name)} and {short(array.name)} found, both of which "
                            f"mean {' '.join(meaning)}; expected one of them")
        else:
            found[meaning] = array
    if not any(kind == "images" for _, kind in found):
        raise DataError(_unknown(arrays, path))
    return found


def _unknown(arrays: Sequence[Array], path: Path) -> str:
    """What is said where no array is known by its name."""
    names = [short(array.name) for array in arrays]
    listed = ", ".join(names[:SHOWN_NAMES] + ["…"] * (len(names) > SHOWN_NAMES)) or "none"
    images = next((short(array.name) for array in arrays if len(array.shape) in (3, 4)), "images")
    labels = next((short(array.name) for array in arrays if len(array.shape) in (1, 2)), "labels")
    mend = "rename the files" if path.is_dir() else \
        f"a = np.load(...); np.savez('named.npz', x_train=a[{images!r}], y_train=a[{labels!r}])"
    return (f"{path}: arrays {listed} found, expected train_images and train_labels, x_train and y_train, or images "
            f"and labels; save them by name: {mend}")


class _Chosen:
    """Which arrays are used, and their labels; what is not goes to ``report``.

    ``train`` and ``test`` are images (N, ...) and their classes, int32 (N,) or None; either may be None. ``unlabeled``
    are further images.
    """

    def __init__(self, found: dict[tuple[str, str], Array], report: Report):
        self._found, self._report = found, report
        self.classes = Classes()
        for split in SPLITS:
            if (split, "images") not in found:
                self._leave_out(split, "labels", ", whose images are not there")
        self.train = self._labeled("train", self.classes.train)
        self.test, test, val = None, self._labeled("test", self.classes.test), found.get(("val", "images"))
        self.unlabeled = []
        if unlabeled := found.get(("unlabeled", "images")):
            height_width(unlabeled)
            self.unlabeled.append((unlabeled, None))
            self._leave_out("unlabeled", "labels", ", since its images are taken as unlabeled")
        if _has_labels(test):
            self.test = test
            if val:
                self._leave_out("val", "images", f", since {short(test[0].name)} is the test set")
                self._leave_out("val", "labels")
            return
        val = self._labeled("val", self.classes.test)
        if _has_labels(val):
            self.test = val
            self.unlabeled += [(test[0], None)] if test else []
            return
        for split, there in (("test", test), ("val", val)):
            if there:
                self._leave_out(split, "images", ", which has no labels")
                self._leave_out(split, "labels")

    @property
    def all(self) -> list[tuple[Array, np.ndarray | None]]:
        """All that are used."""
        return [one for one in (self.train, self.test) if one] + self.unlabeled

    def _labeled(self, split: str, read: Callable[[Array, Array], np.ndarray]) -> \
            tuple[Array, np.ndarray | None] | None:
        """A split's images and their classes; None where it has no images."""
        images, labels = self._found.get((split, "images")), self._found.get((split, "labels"))
        if images is None:
            return None
        height_width(images)
        return images, labels and read(labels, images)

    def _leave_out(self, split: str, kind: str, why: str = "") -> None:
        if array := self._found.get((split, kind)):
            self._report.leave_out(ARRAYS, f"{short(array.name)}{why}", short(array.name))


def _has_labels(found: tuple[Array, np.ndarray | None] | None) -> bool:
    return found is not None and found[1] is not None and bool((found[1] >= 0).any())


def _reader(array: Array, labels: np.ndarray | None, scale: int, size: int) -> Callable[[np.ndarray | None], Batches]:
    """What reads the images of a mask (N,), or all, as ``Part`` wants it."""
    image_bytes = max(math.prod(array.shape[1:]), 3 * size * size)
    chunk = max(1, min(CHUNK, CHUNK_BYTES // image_bytes))

    def batches(mask: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        with array.reading() as values:
            for first in range(0, array.shape[0], chunk):
                images = read_images(array, values, min(chunk, array.shape[0] - first), scale)
                found = None if labels is None else labels[first:first + chunk]
                if mask is not None:
                    wanted = mask[first:first + chunk]
                    images, found = images[wanted], None if found is None else found[wanted]
                if len(images):
                    yield squares(images, size), found
    return batches
