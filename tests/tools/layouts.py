"""Image folders in the layouts that people have, each image told apart by its colour."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.shards import ShardSet
from tools import prepare

SIZE = 8


class Photos:
    """A folder of images of one colour each: ``add`` numbers them, ``numbers`` reads the numbers back from shards."""

    def __init__(self, path: Path):
        self.path = path
        self.of: dict[str, int] = {}  # by the file's name from the folder

    def add(self, folder: str, count: int, extension: str = ".png", **options) -> list[str]:
        """So many images 0.png, 1.png, ... in a folder; returns their names."""
        names = [f"{folder}/{i}{extension}".removeprefix("./") for i in range(count)]
        for name in names:
            self.save(name, **options)
        return names

    def save(self, name: str, **options) -> None:
        number = self.of[name] = len(self.of)
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([number // 64, number // 8 % 8, number % 8]) * 32 + 16  # JPEG changes it by less than 16
        Image.fromarray(np.full((SIZE, SIZE, 3), colour, np.uint8)).save(self.path / name, **options)

    def names(self, path: Path) -> list[str]:
        """The files whose images a shard set has, in its order."""
        shard_set = ShardSet(path)
        red, green, blue = (shard_set.read(np.arange(len(shard_set)))[:, SIZE // 2, SIZE // 2] // 32).astype(int).T
        by_number = {number: name for name, number in self.of.items()}
        return [by_number[number] for number in red * 64 + green * 8 + blue]

    def labels(self, path: Path) -> dict[str, str]:
        """The class of each file in a shard set."""
        shard_set = ShardSet(path)
        return dict(zip(self.names(path), (shard_set.classes[label] for label in shard_set.labels), strict=True))


def run(command, source: Path, out: Path, *flags) -> tuple[int, str, str]:
    """tools.prepare folder."""
    return command(prepare.main, "folder", "--source", source, "--size", SIZE, "--out", out, *flags)


def lines(text: str) -> list[str]:
    """A command's output without progress bars."""
    return [line for line in text.replace("\r", "\n").splitlines() if line and "images/s" not in line
            and "? images" not in line and "%|" not in line]


def left_out(path: Path) -> dict:
    """What a shard set's manifest says was left out."""
    return ShardSet(path).manifest.source.get("left_out", {})


def classes_of(names) -> dict[str, str]:
    """By the name of the folder two above, in these layouts the class."""
    return {name: name.split("/")[1] for name in names}


def prepared(command, photos, tmp_path, *flags) -> list[str]:
    """Prepare what has to succeed; its output."""
    status, out, err = run(command, photos.path, tmp_path / "s", *flags)
    assert status == 0, err
    return lines(out)
