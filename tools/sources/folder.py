"""One's own images: <split>/<class>/*.{png,jpg,...} with labels, or a flat folder of unlabeled images."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.common.errors import DataError
from tools.sources import Source, Split
from tools.sources.images import EXTENSIONS, RESIZED, TEST_NAMES, Item, decoded, image_names


def read(path: Path, size: int) -> Source:
    """Recognise the layout of a folder; images are decoded when the splits are iterated.

    Memory: the file names of one folder at a time, and a chunk of decoded images.

    Args:
        path: a folder with ``train/<class>/`` and ``test/<class>/`` (or ``val``), or with images directly inside.
        size: height and width of the prepared images, in pixels.

    Raises:
        DataError: not such a folder, a class in ``test`` that ``train`` lacks, no images.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder")
    if not (path / "train").is_dir():
        if not image_names(path):
            raise DataError(f"{path}: neither train/<class>/ folders nor images found here")
        splits = [_split("train", [path], None, size)]
    else:
        classes = _class_names(path / "train")
        if not classes:  # images directly in train/: unlabeled
            splits = [_split("train", [path / "train"], None, size)]
        else:
            splits = [_labeled("train", path / "train", classes, size)]
            test = next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
            if test is not None:
                unknown = sorted(set(_class_names(test)) - set(classes))
                if unknown:
                    raise DataError(f"{test / unknown[0]}: class not found in {path / 'train'}")
                splits.append(_labeled("test", test, classes, size))
    origin = {"path": str(path.resolve()), "resized": RESIZED.format(size)}
    return Source("folder", (size, size, 3), tuple(splits), origin)


def _class_names(path: Path) -> tuple[str, ...]:
    """The folders of a split, sorted; not the hidden ones that editors and file managers leave."""
    return tuple(sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")))


def _labeled(name: str, path: Path, classes: tuple[str, ...], size: int) -> Split:
    return _split(name, [path / label for label in classes], classes, size)


def _split(name: str, folders: list[Path], classes: tuple[str, ...] | None, size: int) -> Split:
    def items() -> Iterator[Item]:
        for label, folder in enumerate(folders):
            for file in image_names(folder):
                yield Item(str(folder / file), folder / file, label if classes else None)
    count = sum(len(image_names(folder)) for folder in folders)
    if not count:
        raise DataError(f"{folders[0].parent if classes else folders[0]}: no images found "
                        f"({', '.join(sorted(EXTENSIONS))})")
    return Split(name, count, lambda: decoded(items(), size), classes)
