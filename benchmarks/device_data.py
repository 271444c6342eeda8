"""The images that benchmarks.device measures on, and its stages ``random`` and ``whiten``, which make files."""

from pathlib import Path

import numpy as np

from benchmarks.device_setup import Report, Setup
from pipelines import whitening
from pipelines.shards import ShardSet
from pipelines.shards.writer import ShardWriter
from sesemi.resolve import open_sets
from sesemi.runlog import RunFolder
from sesemi.saved import check_sets, load_config

CLASSES = tuple("abcdefghij")


def open_set(setup: Setup) -> ShardSet:
    """CIFAR-10's training images where they are prepared, else random pixels; in a dry run random ones of 8×8."""
    if setup.dry:
        return random_sets(setup.data / "random8", 8, 600)
    cifar = setup.data / "cifar10" / "train"
    return ShardSet(cifar) if cifar.exists() else random_sets(setup.data / "random32", 32, 20_000)


def random_sets(folder: Path, size: int, images: int) -> ShardSet:
    """The set ``folder``/train of so many square images of random pixels, and test of a fifth; made where needed."""
    for split, count in (("train", images), ("test", images // 5)):
        path = folder / split
        if path.exists() and len(ShardSet(path)) == count:
            continue
        print(f"      {path}: {count:,} images of random pixels", flush=True)
        generator = np.random.default_rng(count)
        with ShardWriter(path, dataset="folder", split=split, image_shape=(size, size, 3), classes=CLASSES, source={},
                         replace=True) as writer:
            writer.append(generator.integers(0, 256, (count, size, size, 3), np.uint8),
                          np.arange(count) % len(CLASSES))
            writer.finish()
    return ShardSet(folder / "train")


def random(setup: Setup, report: Report) -> None:
    """A whole data set for whoever has no CIFAR-10: random32 among the prepared sets."""
    found = random_sets(setup.data / "random32", 32, 600 if setup.dry else 20_000)
    report.note("random pixels", f"{len(found):,} images in {found.path}")


def whiten(setup: Setup, report: Report, run: str) -> None:
    """Fit a run's whitening anew, on the images that it began with: where its other files alone came along."""
    folder = RunFolder(run)
    config = load_config(folder, str(setup.device))
    sets = open_sets(config)
    sets.pop("test", None)
    check_sets(folder, sets, "began with")
    whitening.prepare(config.preprocess, list(sets.values()), setup.device).save(folder.whitening)
    report.note("whitening fitted anew for", str(folder.path))
