"""WebDataset tars: in each sample an image and, where there are labels, a ``cls`` file with its class number."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import DataError, shown
from pipelines.shards.manifest import MAX_CLASSES
from tools.sources import Source, Split
from tools.sources.images import EXTENSIONS, MAX_FILE_BYTES, RESIZED, TEST_NAMES, Item, decoded
from tools.sources.tars import content, members, opened

MAX_LABEL_BYTES = 32
SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Contents:
    """What a first pass over the tars found: samples, and the number of classes; 0 where there are no labels."""

    samples: int
    classes: int


def read(path: Path, size: int) -> Source:
    """Recognise tars of samples; images are decoded when the splits are iterated.

    A first pass reads the headers and the labels; memory is that of a chunk of images.

    Args:
        path: one tar (a training set); a folder with ``train/*.tar`` and ``test/*.tar`` (or ``val``); or a folder of
            tars, of which those with ``test`` or ``val`` as a word in their name are the test set.
        size: height and width of the prepared images, in pixels.

    Raises:
        DataError: no tars, a damaged one, samples without an image, or labels on some samples only.
    """
    tars = _find(path)
    contents = {split: _scan(files) for split, files in tars.items()}
    count = contents["train"].classes
    for split, found in contents.items():
        if (found.classes == 0) != (count == 0) or found.classes > count:
            raise DataError(f"{tars[split][0].parent}: classes up to {found.classes - 1} in {split}, up to {count - 1} "
                            f"in train; expected the same, or none in both")
    classes = tuple(map(str, range(count))) or None
    splits = tuple(Split(split, contents[split].samples,
                         lambda files=files: decoded((item for _, item in _samples(files, images=True)), size), classes)
                   for split, files in tars.items())
    return Source("folder", (size, size, 3), splits, {"path": str(path.resolve()), "resized": RESIZED.format(size)})


def _find(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    if (path / "train").is_dir():
        test = next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
        found = {"train": _tars(path / "train"), "test": _tars(test) if test else []}
    else:
        every = _tars(path)
        test = [file for file in every if set(re.split("[^a-z]+", file.name.lower())) & set(TEST_NAMES)]
        found = {"train": [file for file in every if file not in test], "test": test}
    if not found["train"]:
        raise DataError(f"{path}: no tars of training samples found here (*.tar, or train/*.tar)")
    return {split: files for split, files in found.items() if files}


def _tars(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.name.endswith(SUFFIXES)) if folder.is_dir() else []


def _scan(files: list[Path]) -> Contents:
    samples, classes, first = 0, 0, None
    for where, item in _samples(files, images=False):
        first = (item.label is None) if first is None else first
        if (item.label is None) != first:
            raise DataError(f"{where}: {'no cls file' if item.label is None else 'a cls file'}, unlike the samples "
                            f"before it; expected one in all samples or in none")
        samples += 1
        classes = max(classes, 0 if item.label is None else item.label + 1)
    if not samples:
        raise DataError(f"{files[0]}: no samples found")
    return Contents(samples, classes)


def _samples(files: list[Path], images: bool) -> Iterator[tuple[str, Item]]:
    """The samples of some tars in order: consecutive members that share their name up to its first dot.

    Without ``images``, contents of images are left out, and what lies between headers is skipped.
    """
    for file in files:
        with opened(file) as archive:
            key, image, label = None, None, None
            for member in members(archive, file):
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")  # ``x.mask.png`` is no image of sample x, but a mask
                if not stem:  # hidden: macOS writes ._x.jpg beside x.jpg
                    continue
                if (folder, stem) != key:
                    if key is not None:
                        yield _sample(file, key, image, label)
                    key, image, label = (folder, stem), None, None
                where = f"{file}:{member.name}"
                if f".{extension.lower()}" in EXTENSIONS:
                    image = content(archive, member, where, MAX_FILE_BYTES) if images else b""
                elif extension == "cls":
                    label = _label(content(archive, member, where, MAX_LABEL_BYTES), where)
            if key is not None:
                yield _sample(file, key, image, label)


def _sample(file: Path, key: tuple[str, str], image: bytes | None, label: int | None) -> tuple[str, Item]:
    where = f"{file}:{'/'.join(filter(None, key))}"
    if image is None:
        raise DataError(f"{where}: a sample without an image")
    return where, Item(where, image, label)


def _label(content: bytes, where: str) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= MAX_CLASSES:
        raise DataError(f"{where}: {shown(text)} found, expected a class number")
    return int(text)
