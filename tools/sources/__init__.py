"""Readers of datasets as users have them; each yields its images split by split, in source order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tools.sources.report import Report

Batches = Iterator[tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class InPlace:
    """A raw file of pixels that a split can be used from without a copy; see ``ShardWriter.finish_in_place``."""

    path: Path
    ranges: np.ndarray
    layout: str


@dataclass(frozen=True)
class Split:
    """One split of a dataset: ``train``, ``test``, ``unlabeled`` images beside labeled ones, or SVHN's ``extra``.

    ``batches()`` yields uint8 images (n, H, W, C) and their labels (n,), None for an unlabeled set, in source order.
    ``num_images`` is how many are expected, for the progress bar; None where to count is to read.
    """

    name: str
    num_images: int | None
    batches: Callable[[], Batches]
    classes: tuple[str, ...] | None
    in_place: InPlace | None = None


@dataclass(frozen=True)
class Source:
    """A recognised dataset: its splits, its image shape (H, W, C), and where it came from, for the manifest.

    ``report`` says how it was understood and what was left out; what only decoding shows is added while the splits'
    batches are read.
    """

    dataset: str
    image_shape: tuple[int, int, int]
    splits: tuple[Split, ...]
    origin: dict = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @property
    def name(self) -> str:
        """Where it came from, for messages."""
        path = self.origin.get("path", self.dataset)
        return path if isinstance(path, str) else path[0]
