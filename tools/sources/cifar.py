"""CIFAR-10 and CIFAR-100 from their pickles or binaries, in a folder or in the .tar.gz they are downloaded as."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.common.errors import DataError, shown
from pipelines.common.reading import open_regular
from tools.sources import Batches, Source, Split, tars
from tools.sources.pickles import MAX_FILE_BYTES, as_text, load_dict
from tools.sources.report import Report
from tools.sources.walk import one_level_down

IMAGE_SHAPE = (32, 32, 3)
ROW_BYTES = 32 * 32 * 3
MAX_ARCHIVE_BYTES = 2**30  # unpacked; the real ones have 180 MB


@dataclass(frozen=True)
class Files:
    """Where a CIFAR data set keeps what.

    ``labels`` are an image's labels in the order of the binaries' leading bytes: the key in the pickles, and how many
    classes there are. ``class_names`` are, for each of them, the key in the pickled ``meta`` and the text file.
    ``folders`` and ``archives`` are their names as published, pickles first, archives without what follows the dot.
    """

    dataset: str
    title: str
    images: dict[str, tuple[str, ...]]
    images_per_file: dict[str, int]
    labels: tuple[tuple[str, int], ...]
    meta: str
    class_names: tuple[tuple[str, str], ...]
    folders: tuple[str, str]
    archives: tuple[str, str]

    def names(self, suffix: str) -> list[str]:
        """The files of one layout: ``""`` for pickles, ``.bin`` for binaries."""
        images = [name + suffix for names in self.images.values() for name in names]
        return images + ([file for _, file in self.class_names] if suffix else [self.meta])

    def marks(self) -> set[str]:
        """The files of images of either layout."""
        return {name + suffix for split in self.images.values() for name in split for suffix in ("", ".bin")}

    def is_mine(self, names: set[str]) -> bool:
        """Whether files of these names are this data set's, be it in part."""
        return bool(self.marks() & names)


CIFAR10 = Files(
    "cifar10", "CIFAR-10", {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    {"train": 10_000, "test": 10_000}, (("labels", 10),), "batches.meta", (("label_names", "batches.meta.txt"),),
    ("cifar-10-batches-py", "cifar-10-batches-bin"), ("cifar-10-python", "cifar-10-binary"))
CIFAR100 = Files(
    "cifar100", "CIFAR-100", {"train": ("train",), "test": ("test",)}, {"train": 50_000, "test": 10_000},
    (("coarse_labels", 20), ("fine_labels", 100)), "meta",
    (("coarse_label_names", "coarse_label_names.txt"), ("fine_label_names", "fine_label_names.txt")),
    ("cifar-100-python", "cifar-100-binary"), ("cifar-100-python", "cifar-100-binary"))
KNOWN = {name for files in (CIFAR10, CIFAR100) for suffix in ("", ".bin") for name in files.names(suffix)}


@dataclass(frozen=True)
class Opened:
    """A folder or archive with a CIFAR data set: its file names, and how one is opened."""

    names: set[str]
    open: Callable[[str], tuple[str, BinaryIO]]


def read10(path: Path) -> Source:
    """Recognise and open CIFAR-10 at ``path``; raises DataError that says what was expected."""
    return _read(path, CIFAR10, CIFAR100, 0)


def read100(path: Path, coarse: bool = False) -> Source:
    """Recognise and open CIFAR-100 at ``path``, with its 100 fine labels or its 20 coarse ones."""
    return _read(path, CIFAR100, CIFAR10, 0 if coarse else 1)


def _read(path: Path, files: Files, other: Files, which: int) -> Source:
    report = Report()
    if path.is_dir() and (found := _below(path, files)) != path:
        report.note(f"{path}: {found.name} is read")
        path = found
    opened = _folder(path) if path.is_dir() else _archive(path, files)
    if not files.is_mine(opened.names):
        if other.is_mine(opened.names):
            raise DataError(f"{path}: this is {other.title}, expected {files.title}; python -m tools.prepare "
                            f"{other.dataset} reads it")
        first = files.images["train"][0]
        raise DataError(f"{path}: no {files.title} here; expected {files.folders[0]} ({first}, ...), its binaries "
                        f"({first}.bin, ...), or the .tar.gz of either")
    suffix = "" if any(name in opened.names for names in files.images.values() for name in names) else ".bin"
    for name in files.names(suffix):
        if name not in opened.names:
            where = path / name if path.is_dir() else f"{path}:{name}"
            raise DataError(f"{where}: missing; the other files of {files.title} are here")
    classes = _classes(opened, files, suffix, which)
    splits = tuple(Split(split, files.images_per_file[split] * len(names),
                         _batches(opened, files, split, suffix, which), classes)
                   for split, names in files.images.items())
    origin = {"path": str(path.resolve()), "layout": "binary" if suffix else "python", "labels": files.labels[which][0]}
    return Source(files.dataset, IMAGE_SHAPE, splits, origin, report)


def _below(path: Path, files: Files) -> Path:
    """The folder or archive directly in a folder that has the data set; the folder itself where it has, or none does.

    Folders come before archives, those with files before others, and those named as they are published first.
    """
    found = one_level_down(path, files.marks())
    if found == [path]:
        return path
    named = [path / name for name in files.folders]
    archives = [path / f"{name}{suffix}" for name in files.archives for suffix in (".tar.gz", ".tar")]
    best = [folder for folder in named if folder in found] or found
    if len(best) > 1 and best[0] not in named:
        raise DataError(f"{path}: {files.title} found in {', '.join(one.name for one in best)}, expected a single "
                        f"folder; --source names it")
    best += [archive for archive in archives if archive.is_file()] + [folder for folder in named if folder.is_dir()]
    return best[0] if best else path


def _folder(path: Path) -> Opened:
    return Opened({entry.name for entry in path.iterdir() if entry.is_file()},
                  lambda name: (str(path / name), open_regular(path / name)))


def _archive(path: Path, files: Files) -> Opened:
    """Members of a .tar.gz, by name and without extracting."""
    if not path.exists():
        raise DataError(f"{path}: not found; --source is {files.title}'s folder or .tar.gz")
    members = {}
    with tars.opened(path) as archive:
        for member in tars.members(archive, path):
            if archive.offset > MAX_ARCHIVE_BYTES:
                raise DataError(f"{path}: more than {MAX_ARCHIVE_BYTES:,} bytes unpacked, which no {files.title} has")
            if Path(member.name).name in KNOWN:  # of any number of others nothing is held
                members[Path(member.name).name] = member

    def open_member(name: str) -> tuple[str, BinaryIO]:
        where = f"{path}:{members[name].name}"
        with tars.opened(path) as archive:
            return where, io.BytesIO(tars.content(archive, members[name], where, MAX_FILE_BYTES))
    return Opened(set(members), open_member)


def _batches(opened: Opened, files: Files, split: str, suffix: str, which: int) -> Callable[[], Batches]:
    reader = _binary if suffix else _pickled
    classes = files.labels[which][1]

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in files.images[split]:
            where, stream = opened.open(name + suffix)
            with stream:
                rows, labels = reader(where, stream, files, files.images_per_file[split], which)
            if labels.min() < 0 or labels.max() >= classes:
                raise DataError(f"{where}: labels {labels.min()} to {labels.max()} found, 0 to {classes - 1} expected")
            yield rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
    return batches


def _pickled(where: str, stream: BinaryIO, files: Files, count: int, which: int) -> tuple[np.ndarray, np.ndarray]:
    content = load_dict(where, stream, "CIFAR")
    if files is CIFAR10 and "fine_labels" in content:
        raise DataError(f"{where}: this is CIFAR-100, expected CIFAR-10")
    key = files.labels[which][0]
    rows, labels = content.get("data"), content.get(key)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != (count, ROW_BYTES):
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise DataError(f"{where}: data is {found}, expected uint8 {(count, ROW_BYTES)}")
    if not isinstance(labels, list) or len(labels) != count or not set(map(type, labels)) <= {int, bool}:
        raise DataError(f"{where}: {key} are not a list of {count} integers")
    try:
        return rows, np.array(labels, dtype=np.int64)
    except OverflowError:
        wrong = next(n for n in labels if not -2**63 <= n < 2**63)
        raise DataError(f"{where}: label {shown(wrong)} found, expected 0 to {files.labels[which][1] - 1}") from None


def _binary(where: str, stream: BinaryIO, files: Files, count: int, which: int) -> tuple[np.ndarray, np.ndarray]:
    row = len(files.labels) + ROW_BYTES
    content = stream.read(count * row + 1)
    if len(content) != count * row:
        found = "more" if len(content) > count * row else f"{len(content):,} bytes"
        raise DataError(f"{where}: {found} found, {count * row:,} bytes expected")
    rows = np.frombuffer(content, np.uint8).reshape(count, row)
    return rows[:, len(files.labels):], rows[:, which].astype(np.int64)


def _classes(opened: Opened, files: Files, suffix: str, which: int) -> tuple[str, ...]:
    key, text = files.class_names[which]
    where, stream = opened.open(text if suffix else files.meta)
    with stream:
        if suffix:
            names = stream.read(2**16).decode("utf-8", "replace").split()
        else:
            names = load_dict(where, stream, "CIFAR").get(key)
            names = list(map(as_text, names)) if isinstance(names, list) else None
    count = files.labels[which][1]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {count} class names expected")
    return tuple(names)
