"""Image files below folders as parts of a source: looked at first, decoded when they are read."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.common.errors import DataError
from tools.sources.decoding import Item, decoded
from tools.sources.report import Report
from tools.sources.splits import Part
from tools.sources.walk import images_below


class Seen(NamedTuple):
    """How many images a folder has, and a checksum of their names: whether it has them still."""

    count: int = 0
    names: int = 0

    def and_(self, name: str) -> "Seen":
        """With one more."""
        return Seen(self.count + 1, zlib.crc32(os.fsencode(name), self.names))


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a source.

    Args:
        path: the source's folder; names are relative to it.
        size: of the decoded images.
        report: gets what is no image, while files are looked at, and what cannot be decoded.
    """

    path: Path
    size: int
    report: Report
    _entered: dict[tuple[int, int], Path] = field(default_factory=dict)  # folders that are used

    def name(self, file: Path | str) -> str:
        """A file's or folder's name, for messages."""
        text, start = str(file), f"{self.path}/"
        return text[len(start):] if text.startswith(start) else os.path.relpath(file, self.path)  # the slower one

    def count(self, folder: Path, deep: bool = True, say: bool = True) -> int:
        """How many images lie below a folder, or directly in it; ``say``: what else does goes to the report."""
        return sum(1 for _ in images_below(folder, self.report if say else None, deep=deep, inside=self.path))

    def look(self, folder: Path, deep: bool = True) -> Seen:
        """The images below a folder that is used, or directly in it; DataError where a link makes it two of these."""
        seen = Seen()
        for file in images_below(folder, self.report, deep=deep, inside=self.path, enter=self._enter):
            seen = seen.and_(self.name(file))
        return seen

    def labeled(self, folders: Sequence[Path], seen: Sequence[Seen], place: str = "") -> Part:
        """The images of classes 0, 1, ..."""
        labels = np.repeat(np.arange(len(seen), dtype=np.int32), [one.count for one in seen])
        return Part(len(labels), labels if len(labels) else None, lambda mask: decoded(
            self._items(folders, seen, labels, mask), self.size, self.report), place)

    def unlabeled(self, folder: Path, place: str = "", deep: bool = True) -> Part:
        """The images below a folder, or directly in it."""
        seen = self.look(folder, deep)
        return Part(seen.count, None, lambda mask: decoded(
            self._items([folder], [seen], None, mask, deep), self.size, self.report), place)

    def _enter(self, folder: Path, identity: tuple[int, int]) -> None:
        if (first := self._entered.setdefault(identity, folder)) != folder:
            raise DataError(f"{folder}: the same folder as {first}, by a link; its images would be taken twice")

    def _items(self, folders: Sequence[Path], seen: Sequence[Seen], labels: np.ndarray | None,
               mask: np.ndarray | None, deep: bool = True) -> Iterator[Item]:
        """Those in ``mask``; DataError where a folder has other images than it had."""
        first = 0
        for folder, before in zip(folders, seen, strict=True):
            files = images_below(folder, deep=deep) if before.count else ()
            for at, file in unchanged(files, self.name, before, folder):
                if mask is None or mask[first + at]:
                    yield Item(self.name(file), file, None if labels is None else int(labels[first + at]))
            first += before.count


def unchanged(files: Iterable[str], name: Callable[[str], str], before: Seen,
              folder: Path) -> Iterator[tuple[int, str]]:
    """Files with their numbers; DataError, at the latest behind the last, where they are others than ``before``.

    Args:
        files: of a folder, in the same order.
        name: what ``before`` has of each.
        before: the files that there were.
        folder: for the message.
    """
    now = Seen()
    for file in files:
        now = now.and_(name(file))
        if now.count > before.count:
            break
        yield now.count - 1, file
    if now != before:
        raise DataError(f"{folder}: it had {before.count:,} images, and now has others; start again when no program "
                        f"changes it")
