"""Tiny Images from tiny_images.bin: all of it, the images of CIFAR-100's words, or a random part, in file order.

The data set was withdrawn by its authors; this reads the copy of someone who has one.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError, UsageError, shown
from pipelines.common.reading import open_regular
from pipelines.shards import Extents
from tools.sources import InPlace, Source, Split
from tools.sources.pickles import MAX_FILE_BYTES, load_dict

IMAGE_SHAPE = (32, 32, 3)
IMAGE_BYTES = 32 * 32 * 3
LAYOUT = "CWH"  # channel slowest, then column, row fastest
CHUNK = 4096
CIFAR100_WORDS_EXTRA = 237_203  # images of the 100 words, in the original index

# CIFAR-100's fine classes, in the order of their labels.
CIFAR100_CLASSES = tuple("""
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm""".split())  # noqa: SIM905 - a hundred quoted names read worse
WORDS = {"maple_tree": "maple", "aquarium_fish": "fish"}  # classes that Tiny Images has under another word


def read(path: Path, extra: str, index: Path | None = None) -> Source:
    """Open Tiny Images: one unlabeled split, ``train``.

    Args:
        path: ``tiny_images.bin``, or the folder it lies in.
        extra: ``all``; ``237203``: the images of CIFAR-100's 100 words; any other number N: N random images, for
            500000 those of the reference.
        index: ``tiny_index.pkl``, which 237203 needs; None for the one beside the images, if any.

    Raises:
        UsageError: ``extra`` is no such number.
        DataError: a missing or damaged file, one of another size, or an index that points past its end.
    """
    file = path / "tiny_images.bin" if path.is_dir() else path
    try:
        size = file.stat().st_size
    except OSError:
        raise DataError(f"{file}: not found; --source is tiny_images.bin or its folder") from None
    if size % IMAGE_BYTES or not size:
        raise DataError(f"{file}: {size:,} bytes found, expected a multiple of {IMAGE_BYTES:,} (32×32×3, nothing else)")
    total = size // IMAGE_BYTES
    if index is None and (file.parent / "tiny_index.pkl").exists():
        index = file.parent / "tiny_index.pkl"
    if index is not None:
        words = read_index(index, total, file)
    elif extra == str(CIFAR100_WORDS_EXTRA):
        raise UsageError(f"--extra {extra}: needs tiny_index.pkl, beside {file} or by --index")
    if extra == "all":
        ranges = np.array([[0, total]])
    elif extra == str(CIFAR100_WORDS_EXTRA):
        ranges = word_ranges(words, index)
    else:
        ranges = as_ranges(random_subset(extra, total, file))
    images = Extents.of_raw(file, ranges, IMAGE_SHAPE, LAYOUT)

    def batches() -> Iterator[tuple[np.ndarray, None]]:
        for first in range(0, len(images), CHUNK):
            yield images.read(np.arange(first, min(first + CHUNK, len(images)))), None

    in_place = None
    if extra in ("all", str(CIFAR100_WORDS_EXTRA)):  # a manifest of 500,000 single images would be no manifest
        in_place = InPlace(file, ranges, LAYOUT)
    return Source("tinyimages", IMAGE_SHAPE, (Split("train", len(images), batches, None, in_place),),
                  {"path": str(file.resolve()), "extra": extra})


def read_index(path: Path, total: int, images: Path) -> dict[str, tuple[int, int]]:
    """Each word's images as [first, last); raises DataError where one points past the ``total`` there are."""
    try:
        with open_regular(path, MAX_FILE_BYTES) as stream:
            words = load_dict(str(path), stream, "Tiny Images index")
    except OSError:
        raise DataError(f"{path}: not found; --index is tiny_index.pkl") from None
    for word, ends in words.items():
        if not (isinstance(word, str) and isinstance(ends, tuple) and len(ends) == 2
                and all(isinstance(end, int) for end in ends) and 0 <= ends[0] <= ends[1]):
            raise DataError(f"{path}: {shown(word)}: {shown(ends)} found, expected a word and its range (first, last)")
        if ends[1] > total:
            raise DataError(f"{path}: {shown(word)} ends at image {shown(ends[1])}, {images} has {total:,}; they "
                            f"do not belong together")
    return words


def word_ranges(words: dict[str, tuple[int, int]], path: Path) -> np.ndarray:
    """The ranges of CIFAR-100's words in file order, int64 (100, 2)."""
    missing = [word for word in (WORDS.get(name, name) for name in CIFAR100_CLASSES) if word not in words]
    if missing:
        raise DataError(f"{path}: {missing[0]!r} not found; expected the index of Tiny Images with all its words")
    ranges = np.array(sorted(words[WORDS.get(name, name)] for name in CIFAR100_CLASSES))
    found = int((ranges[:, 1] - ranges[:, 0]).sum())
    if found != CIFAR100_WORDS_EXTRA:
        raise DataError(f"{path}: {found:,} images of CIFAR-100's words found, expected {CIFAR100_WORDS_EXTRA:,}")
    return ranges


def random_subset(extra: str, total: int, file: Path) -> np.ndarray:
    """The reference's choice of ``extra`` of ``total`` images, ascending: int32 (n,).

    The first of a shuffle of all by ``RandomState(1)``, so that a smaller choice is part of a larger one. The shuffle
    is of 32-bit indices, 317 MB for all of Tiny Images, and is freed before anything is read.
    """
    count = int(extra) if extra.isdecimal() else 0
    if not 1 <= count <= total:
        raise UsageError(f"--extra: found {extra!r}, expected {CIFAR100_WORDS_EXTRA}, all, or a number up to the "
                         f"{total:,} images of {file}")
    indices = np.arange(total, dtype=np.int32)
    np.random.RandomState(1).shuffle(indices)
    return np.sort(indices[:count])


def as_ranges(indices: np.ndarray) -> np.ndarray:
    """Ascending indices (n,) as [first, last) of each run of consecutive ones, int64 (k, 2)."""
    indices = indices.astype(np.int64)
    breaks = np.flatnonzero(np.diff(indices) != 1)
    first = indices[np.concatenate([[0], breaks + 1])]
    last = indices[np.concatenate([breaks, [len(indices) - 1]])] + 1
    return np.stack([first, last], axis=1)
