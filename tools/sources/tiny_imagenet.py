"""Tiny ImageNet as downloaded: tiny-imagenet-200/ with train/, val/ and test/, or its .zip, which is not extracted."""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.common.errors import DataError, damage, reason, shown
from pipelines.common.reading import open_regular
from pipelines.shards.manifest import MAX_CLASSES
from tools.sources import Source
from tools.sources.decoding import Item, decoded
from tools.sources.files import Seen, unchanged
from tools.sources.images import RESIZED, Damaged
from tools.sources.report import FILES, FOLDERS, IMAGES, Report
from tools.sources.splits import Part, assemble
from tools.sources.walk import (
    DEEPEST,
    EXTENSIONS,
    extension,
    file_kind,
    folders_in,
    images_below,
    is_junk_file,
    is_junk_folder,
    one_folder,
)

WNIDS = "wnids.txt"
ANNOTATIONS = "val/val_annotations.txt"
ZIP = "tiny-imagenet-200.zip"
MAX_TEXT = 2**22  # bytes of a file that is read here; the largest real one has 0.4 MB
MAX_IMAGE_BYTES = 2**24  # of a member of a zip file; a real image has 2,000
MAX_ZIP_BYTES = 2**31  # the real one has 248 MB
MAX_DIRECTORY_BYTES = 2**25  # of a zip file, which become ten times as much in memory; the real one has some 15 MB
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # a member's flag
EXPECTED = "expected tiny-imagenet-200 (wnids.txt, train/, val/) or tiny-imagenet-200.zip"


class Folder:
    """The files in tiny-imagenet-200/; their names are relative to it, with ``/``."""

    def __init__(self, path: Path):
        self.path = path

    def where(self, name: str) -> str:
        """A file or folder, for messages."""
        return str(self.path / name)

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return (self.path / name).exists()

    def folders(self, name: str = ".") -> list[str]:
        """Names of the folders in a folder, sorted, without junk."""
        return folders_in(self.path / name)

    def images(self, name: str = ".", report: Report | None = None, deep: bool = True) -> Iterator[str]:
        """The images below a folder, or directly in it, as ``images_below`` has them."""
        for file in images_below(self.path / name, report, deep=deep, inside=self.path):
            yield file[len(str(self.path)) + 1:]

    def text(self, name: str) -> str:
        """A text file."""
        with open_regular(self.path / name, MAX_TEXT) as file:
            return file.read(MAX_TEXT).decode("utf-8", "replace")

    def image(self, name: str) -> Path | bytes:
        """An image, for ``Item``; raises Damaged."""
        return self.path / name


class Zip(Folder):
    """The same in a zip file, of which members are read whole, one by one. It is open as long as this object is there.

    Raises:
        DataError: no zip file, one with a table of contents of more than ``MAX_DIRECTORY_BYTES``, one that is
            encrypted, compressed by another method than deflate, or without Tiny ImageNet.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        with damage(f"{path}: not a readable zip file", missing=f"{path}: not found; {EXPECTED}"):
            with open_regular(path, MAX_ZIP_BYTES) as stream:
                _check_directory(stream, path)
            self._archive = zipfile.ZipFile(path)
        members = {name: member for name, member in self._archive.NameToInfo.items() if not member.is_dir()}
        self._root = self._find_root(members)
        self._files: dict[str, list[str]] = {}  # of a folder
        self._folders: dict[str, set[str]] = {}
        for name, member in members.items():
            if name.startswith(self._root):
                self._add(name[len(self._root):], member)

    def _find_root(self, names: dict[str, zipfile.ZipInfo]) -> str:
        """What the names of all files begin with: nothing, or a folder and a slash."""
        found = sorted(name[:-len(WNIDS)] for name in names if name.count("/") <= 1 and name.split("/")[-1] == WNIDS
                       and not is_junk_folder(name))
        if not found or (found[0] and len(found) > 1):
            raise DataError(f"{self.path}: {WNIDS} found in {' and '.join(found[:5]) or 'no folder'}; {EXPECTED}")
        return found[0]

    def _add(self, name: str, member: zipfile.ZipInfo) -> None:
        if member.flag_bits & ENCRYPTED or member.compress_type not in COMPRESSIONS:
            how = "encrypted" if member.flag_bits & ENCRYPTED else f"compressed by method {member.compress_type}"
            raise DataError(f"{self.where(name)}: {how}, expected a zip file that is not encrypted, and compressed by "
                            f"deflate")
        *folders, last = name.split("/")
        if len(folders) > DEEPEST:
            raise DataError(f"{self.path}: more than {DEEPEST} folders in one another found")
        around = "."
        for folder in folders:
            self._folders.setdefault(around, set()).add(folder)
            around = _below(around, folder)
        self._files.setdefault(around, []).append(last)

    def where(self, name: str) -> str:
        return f"{self.path}:{self._root}{name}"

    def has(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        return name in self._files or name in self._folders or last in self._files.get(folder or ".", ())

    def folders(self, name: str = ".") -> list[str]:
        return sorted(folder for folder in self._folders.get(name, ()) if not is_junk_folder(folder))

    def images(self, name: str = ".", report: Report | None = None, deep: bool = True) -> Iterator[str]:
        entries = [(file, False) for file in self._files.get(name, ())]
        for entry, is_folder in sorted(entries + [(folder, True) for folder in self._folders.get(name, ())]):
            inside, suffix = _below(name, entry), extension(entry)
            if is_folder:
                if deep and not is_junk_folder(entry):
                    yield from self.images(inside, report)
                elif deep and report:
                    report.leave_out(FOLDERS, entry, inside)
            elif suffix in EXTENSIONS and not is_junk_file(entry):
                yield inside
            elif report:
                report.leave_out(FILES, file_kind(entry), inside)

    def text(self, name: str) -> str:
        with damage(f"{self.where(name)}: not readable"):
            return self._content(name, MAX_TEXT).decode("utf-8", "replace")

    def image(self, name: str) -> bytes:
        try:
            return self._content(name, MAX_IMAGE_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise Damaged(name, reason(error)) from None

    def _content(self, name: str, limit: int) -> bytes:
        with self._archive.open(self._root + name) as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"more than {limit:,} bytes")
        return content


def read(path: Path, size: int, skip_damaged: bool = False) -> Source:
    """Recognise Tiny ImageNet; its images are decoded when the splits are iterated.

    Splits: ``train``, its classes the WordNet ids, sorted; ``test``, which are the images of ``val/`` by their
    annotations, or by their folders where a script sorted them into such; and ``unlabeled``, those of ``test/``.

    Memory: a label an image, the table of contents of a zip file, and two chunks of images.

    Args:
        path: tiny-imagenet-200, the folder with it, or the .zip.
        size: height and width of the prepared images, in pixels.
        skip_damaged: see ``Report``.

    Raises:
        DataError: something else, a part that is missing, classes of ``train/`` that ``wnids.txt`` does not have or the
            other way round, an image of ``val/`` that has no class.
    """
    files = _find(path)
    report = Report(skip_damaged)
    classes = _classes(files)
    for name in classes:
        report.used.add(f"train/{name}/{name}_boxes.txt")
    report.used |= {ANNOTATIONS, WNIDS, "words.txt"}
    reader = _Reader(files, size, report)
    train = reader.labeled([f"train/{name}" for name in classes], "train/")
    if missing := [name for name, count in zip(classes, np.bincount(train.labels, minlength=len(classes)), strict=True)
                   if not count]:
        raise DataError(f"{files.where(f'train/{missing[0]}')}: no images found")
    test = _validation(files, classes, reader, report)
    unlabeled = [reader.part("test", None, "test/")] if "test" in files.folders() else []
    _rest(files, report)
    splits = assemble(str(path), classes, train, test, unlabeled, None, report)
    origin = {"path": str(files.path.resolve()), "resized": RESIZED.format(size)}
    return Source("tinyimagenet", (size, size, 3), splits, origin, report)


def _find(path: Path) -> Folder:
    if path.is_file():
        return Zip(path)
    if not path.is_dir():
        raise DataError(f"{path}: not found; {EXPECTED}")
    if (found := one_folder(path, [WNIDS], WNIDS)) is not None:
        return Folder(found)
    if (path / ZIP).is_file():
        return Zip(path / ZIP)
    raise DataError(f"{path}: no Tiny ImageNet here; {EXPECTED}")


def _check_directory(stream: BinaryIO, path: Path) -> None:
    """Before ``zipfile`` reads the table of contents, how long it is, by zipfile's own way of finding out."""
    record = zipfile._EndRecData(stream)
    if record is None:
        raise zipfile.BadZipFile("no table of contents at its end; was it downloaded whole?")
    if record[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:
        raise DataError(f"{path}: a table of contents of {record[zipfile._ECD_SIZE]:,} bytes found, expected at most "
                        f"{MAX_DIRECTORY_BYTES:,}")


def _below(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _classes(files: Folder) -> tuple[str, ...]:
    """The WordNet ids, sorted, which are the folders of ``train/``."""
    for name in ("train", "val"):
        if name not in files.folders():
            raise DataError(f"{files.where(name)}: missing; {EXPECTED}")
    listed, found = set(files.text(WNIDS).split()), files.folders("train")
    if odd := sorted(listed.symmetric_difference(found)):
        where, other = (WNIDS, "train/") if odd[0] in listed else ("train/", WNIDS)
        raise DataError(f"{files.where(WNIDS)}: {shown(odd[0])} is in {where} and not in {other} ({len(odd):,} such "
                        f"in all), expected the same classes")
    if len(found) > MAX_CLASSES:
        raise DataError(f"{files.where(WNIDS)}: {len(found):,} classes found, expected at most {MAX_CLASSES:,}")
    return tuple(found)


class _Reader:
    """Makes parts of a source of the images in folders.

    Args:
        files: the source.
        size: of the decoded images.
        report: gets what is no image, while they are counted, and what cannot be decoded.
    """

    def __init__(self, files: Folder, size: int, report: Report):
        self._files, self._size, self._report = files, size, report

    def labeled(self, folders: Sequence[str], place: str) -> Part:
        """The images below the folders of classes 0, 1, ...; those that are not there have none."""
        there = [(folder, label) for label, folder in enumerate(folders) if self._files.has(folder)]
        seen = [self._look(folder) for folder, _ in there]
        labels = np.repeat(np.array([label for _, label in there], np.int32), [one.count for one in seen])
        return self._part([(folder, lambda name, label=label: label) for folder, label in there], seen, labels, place)

    def part(self, folder: str, label: Callable[[str], int] | None, place: str) -> Part:
        """The images below a folder; ``label`` gives one's class by its name, None where they have none."""
        seen = self._look(folder)
        labels = np.array([label(name) for name in self._files.images(folder)], np.int32) if label else None
        return self._part([(folder, label)], [seen], labels, place)

    def _look(self, folder: str) -> Seen:
        seen = Seen()
        for name in self._files.images(folder, self._report):
            seen = seen.and_(name)
        return seen

    def _part(self, places: Sequence[tuple[str, Callable[[str], int] | None]], seen: Sequence[Seen],
              labels: np.ndarray | None, place: str) -> Part:
        # Read whole: of a part either all images have labels, or none has.
        return Part(sum(one.count for one in seen), labels, lambda mask: decoded(
            self._items(places, seen), self._size, self._report), place)

    def _items(self, places: Sequence[tuple[str, Callable[[str], int] | None]],
               seen: Sequence[Seen]) -> Iterator[Item]:
        for (folder, label), before in zip(places, seen, strict=True):
            for _, name in unchanged(self._files.images(folder), str, before, self._files.path / folder):
                try:
                    image = self._files.image(name)
                except Damaged as error:
                    self._report.damaged(error.name, error.why)
                else:
                    yield Item(name, image, label(name) if label else None)


def _validation(files: Folder, classes: Sequence[str], reader: _Reader, report: Report) -> Part:
    """The images of ``val/``, in folders of classes or by their annotations."""
    folders = [name for name in files.folders("val") if name != "images" and any(files.images(f"val/{name}"))]
    if not folders:
        part = reader.part("val", _annotated(files, classes), "val/, by val_annotations.txt")
    elif unknown := [name for name in folders if name not in classes]:
        raise DataError(f"{files.where(f'val/{unknown[0]}')}: class not found in {WNIDS}")
    else:
        part = reader.labeled([f"val/{name}" for name in classes], "val/, sorted into folders")
        if flat := sum(1 for folder, deep in (("val", False), ("val/images", True)) if files.has(folder)
                       for _ in files.images(folder, deep=deep)):
            report.leave_out(IMAGES, "val/ outside of its folders of classes", count=flat)
    if not part.count:
        raise DataError(f"{files.where('val')}: no images found")
    return part


def _annotated(files: Folder, classes: Sequence[str]) -> Callable[[str], int]:
    """An image's class by its file's name; raises DataError for one that is not in the annotations."""
    if not files.has(ANNOTATIONS):
        raise DataError(f"{files.where(ANNOTATIONS)}: missing, and val/ has no folders of classes")
    numbers, found = {name: number for number, name in enumerate(classes)}, {}
    for number, line in enumerate(files.text(ANNOTATIONS).splitlines(), 1):
        file, wnid, *_ = [*line.split("\t"), "", ""]
        if not line.strip():
            continue
        if wnid not in numbers:
            raise DataError(f"{files.where(ANNOTATIONS)}: line {number}: class {shown(wnid)} found, expected one of "
                            f"{WNIDS}, behind a file and a tab")
        if found.setdefault(file, numbers[wnid]) != numbers[wnid]:
            raise DataError(f"{files.where(ANNOTATIONS)}: line {number}: {shown(file)} found with another class before")

    def label(name: str) -> int:
        last = name.rpartition("/")[2]
        if last not in found:
            raise DataError(f"{files.where(name)}: no line for it in {ANNOTATIONS}")
        return found[last]
    return label


def _rest(files: Folder, report: Report) -> None:
    """Report what lies beside ``train/``, ``val/`` and ``test/``, and beside the classes."""
    for folder, place in ((".", "beside train/"), ("train", "directly in train/")):
        for _ in files.images(folder, report, deep=False):
            report.leave_out(IMAGES, place)
    for folder in files.folders():
        if folder not in ("train", "val", "test"):
            if count := sum(1 for _ in files.images(folder)):
                report.leave_out(IMAGES, f"{folder}/", count=count)
            else:
                report.leave_out(FOLDERS, folder, folder)
