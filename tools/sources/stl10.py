"""STL-10 from its binaries, in a folder or in the .tar.gz they are downloaded as, read piece by piece."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pipelines.common.errors import DataError, damage
from pipelines.common.reading import open_regular
from tools.sources import Batches, Source, tars
from tools.sources.images import RESIZED, to_square
from tools.sources.report import Report
from tools.sources.splits import Part, assemble
from tools.sources.walk import one_folder, report_others

SIDE = 96  # pixels
IMAGE_BYTES = 3 * SIDE * SIDE
CHUNK = 256  # images at a time, or fewer where they become large
CHUNK_BYTES = 2**26
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
NAMES = "class_names.txt"
REQUIRED = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
UNLABELED = "unlabeled_X.bin"
FILES = (*REQUIRED, UNLABELED, NAMES)
MAX_SMALL = 2**20  # bytes of a file of labels or names; the largest real one has 8,000
MAX_ARCHIVE_BYTES = 2**32  # unpacked; the real one has 3.1 GB
ARCHIVE = "stl10_binary.tar.gz"
EXPECTED = "expected stl10_binary (train_X.bin, ...) or stl10_binary.tar.gz"


@dataclass(frozen=True)
class Files:
    """A folder or archive with STL-10.

    Args:
        path: of it.
        separator: between the path and a file's name, for messages.
        sizes: of its files in bytes, by name.
        open: one of them, from its start.
    """

    path: Path
    separator: str
    sizes: dict[str, int]
    open: Callable[[str], AbstractContextManager[BinaryIO]]

    def where(self, name: str) -> str:
        """A file, for messages."""
        return f"{self.path}{self.separator}{name}"

    def small(self, name: str) -> bytes:
        """The content of a file of labels or names."""
        if self.sizes[name] > MAX_SMALL:
            raise DataError(f"{self.where(name)}: {self.sizes[name]:,} bytes found, expected at most {MAX_SMALL:,}")
        with self.open(name) as stream:
            return stream.read(MAX_SMALL)


def read(path: Path, size: int | None = None) -> Source:
    """Recognise STL-10: splits ``train`` and ``test`` with labels, and ``unlabeled`` where that file is there.

    How many images there are follows from the files' sizes. An archive is decompressed once to look into it, and again
    for each split; of images one chunk is held.

    Args:
        path: the folder with the .bin files, one with that folder in it, or the .tar.gz.
        size: height and width to resize to; None for 96.

    Raises:
        DataError: a missing or damaged file, a file that is no whole number of images, labels other than 1 to 10.
    """
    report = Report()
    files = _find(path, report)
    for name in REQUIRED:
        if name not in files.sizes:
            raise DataError(f"{files.where(name)}: missing; the other files of STL-10 are here")
    if NAMES not in files.sizes:
        report.note(f"{NAMES}: not found; the classes are named as published")
    if UNLABELED not in files.sizes:
        report.note(f"{UNLABELED}: not found, so there is no unlabeled set")
    side = size or SIDE
    unlabeled = [_part(files, UNLABELED, None, side)] if UNLABELED in files.sizes else []
    train, test = (_part(files, f"{name}_X.bin", f"{name}_y.bin", side) for name in ("train", "test"))
    splits = assemble(str(path), _classes(files), train, test, unlabeled, None, report)
    origin = {"path": str(files.path.resolve())} | ({"resized": RESIZED.format(side)} if side != SIDE else {})
    return Source("stl10", (side, side, 3), splits, origin, report)


def _find(path: Path, report: Report) -> Files:
    if path.is_file():
        return _archive(path)
    if not path.is_dir():
        raise DataError(f"{path}: not found; {EXPECTED}")
    folder = one_folder(path, FILES[:5], "STL-10's files")
    if folder is None:
        if (path / ARCHIVE).is_file():
            return _archive(path / ARCHIVE)
        raise DataError(f"{path}: no STL-10 here; {EXPECTED}")
    report_others(folder, FILES, report)
    if folder != path:
        report.note(f"{folder} is read")
    sizes = {name: os.path.getsize(folder / name) for name in FILES if (folder / name).is_file()}
    return Files(folder, os.sep, sizes, lambda name: open_regular(folder / name))


def _archive(path: Path) -> Files:
    """Look through the whole archive, to its end and checksum."""
    members = {}
    with tars.opened(path) as archive:
        for member in tars.members(archive, path):
            if archive.offset > MAX_ARCHIVE_BYTES:
                raise DataError(f"{path}: more than {MAX_ARCHIVE_BYTES:,} bytes unpacked, which no STL-10 has")
            if (name := Path(member.name).name) in FILES:  # of any number of others nothing is held
                members[name] = member.name, member.size
    if not members:
        raise DataError(f"{path}: no STL-10 in it; {EXPECTED}")

    @contextmanager
    def opened(name: str) -> Iterator[BinaryIO]:
        with tars.opened(path) as archive:
            for member in tars.members(archive, path):
                if (member.name, member.size) == members[name]:
                    yield archive.extractfile(member)
                    return
            raise DataError(f"{path}:{name}: no longer there")
    return Files(path, ":", {name: size for name, (_, size) in members.items()}, opened)


def _part(files: Files, images: str, labels: str | None, side: int) -> Part:
    """The images of a file, checked by its size, and their labels."""
    count, rest = divmod(files.sizes[images], IMAGE_BYTES)
    if rest or not count:
        raise DataError(f"{files.where(images)}: {files.sizes[images]:,} bytes found, expected a multiple of "
                        f"{IMAGE_BYTES:,} (3×96×96, nothing else)")
    digits = None
    if labels:
        values = np.frombuffer(files.small(labels), np.uint8)
        if len(values) != count:
            raise DataError(f"{files.where(labels)}: {len(values):,} labels found, expected {count:,} as {images} has "
                            f"images")
        if values.min() < 1 or values.max() > len(CLASSES):
            raise DataError(f"{files.where(labels)}: labels {values.min()} to {values.max()} found, expected 1 to "
                            f"{len(CLASSES)}")
        digits = values.astype(np.int32) - 1
    return Part(count, digits, lambda mask: _batches(files, images, digits, count, side), images)


def _batches(files: Files, name: str, labels: np.ndarray | None, count: int, side: int) -> Batches:
    """All images of a file, of which none is left out: the labeled ones all have labels."""
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (3 * side * side)))
    with files.open(name) as stream:
        for first in range(0, count, chunk):
            last = min(first + chunk, count)
            with damage(f"{files.where(name)}: damaged"):
                content = stream.read((last - first) * IMAGE_BYTES)
            if len(content) != (last - first) * IMAGE_BYTES:
                raise DataError(f"{files.where(name)}: ends early, at image {first + len(content) // IMAGE_BYTES:,} of "
                                f"{count:,}")
            # Stored channel by channel, and in these column by column.
            images = np.frombuffer(content, np.uint8).reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
            if side != SIDE:
                images = np.stack([to_square(Image.fromarray(np.ascontiguousarray(image)), side) for image in images])
            yield images, None if labels is None else labels[first:last]


def _classes(files: Files) -> tuple[str, ...]:
    if NAMES not in files.sizes:
        return CLASSES
    names = files.small(NAMES).decode("utf-8", "replace").split()
    if len(names) != len(CLASSES) or len(set(names)) != len(names):
        raise DataError(f"{files.where(NAMES)}: {len(names):,} class names found, expected {len(CLASSES)} different "
                        f"ones")
    return tuple(names)
