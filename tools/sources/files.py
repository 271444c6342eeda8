"""Image files below folders as parts of a source: counted first, decoded when they are read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError
from tools.sources.decoding import Item, decoded
from tools.sources.report import Report
from tools.sources.splits import Part
from tools.sources.walk import images_below


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a source.

    Args:
        path: the source's folder; names are relative to it.
        size: of the decoded images.
        report: gets what is no image, while files are counted, and what cannot be decoded.
    """

    path: Path
    size: int
    report: Report

    def name(self, file: Path) -> str:
        """A file's or folder's name, for messages."""
        text, start = str(file), f"{self.path}/"
        return text[len(start):] if text.startswith(start) else os.path.relpath(file, self.path)  # the slower one

    def count(self, folder: Path, deep: bool = True, say: bool = True) -> int:
        """How many images lie below a folder, or directly in it; ``say``: what else does goes to the report."""
        return sum(1 for _ in images_below(folder, self.report if say else None, deep=deep, inside=self.path))

    def labeled(self, folders: Sequence[Path], counts: Sequence[int], place: str = "") -> Part:
        """The images of classes 0, 1, ..., of which there are ``counts``."""
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return Part(len(labels), labels if len(labels) else None, lambda mask: decoded(
            self._items(folders, counts, labels, mask), self.size, self.report), place)

    def unlabeled(self, folder: Path, place: str = "", deep: bool = True) -> Part:
        """The images below a folder, or directly in it."""
        count = self.count(folder, deep)
        return Part(count, None, lambda mask: decoded(
            self._items([folder], [count], None, mask, deep), self.size, self.report), place)

    def _items(self, folders: Sequence[Path], counts: Sequence[int], labels: np.ndarray | None,
               mask: np.ndarray | None, deep: bool = True) -> Iterator[Item]:
        """Those in ``mask``; DataError where a folder has another number of images than it had."""
        first = 0
        for folder, count in zip(folders, counts, strict=True):
            found = 0
            for found, file in enumerate(images_below(folder, deep=deep) if count else (), 1):
                if found > count:
                    break
                if mask is None or mask[first + found - 1]:
                    yield Item(self.name(file), file, None if labels is None else int(labels[first + found - 1]))
            if found != count:
                raise DataError(f"{folder}: it had {count:,} images, and now has another number; start again when no "
                                f"program changes it")
            first += count
