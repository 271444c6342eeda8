"""One's own images: <split>/<class>/*.{png,jpg,...} with labels, or a flat folder of unlabeled images."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipelines.errors import DataError
from tools.sources import Batches, Source, Split

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_NAMES = ("test", "val", "valid", "validation")
CHUNK = 256  # images decoded at a time


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
        classes = tuple(sorted(entry.name for entry in os.scandir(path / "train") if entry.is_dir()))
        if not classes:  # images directly in train/: unlabeled
            splits = [_split("train", [path / "train"], None, size)]
        else:
            splits = [_labeled("train", path / "train", classes, size)]
            test = next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
            if test is not None:
                unknown = sorted({entry.name for entry in os.scandir(test) if entry.is_dir()} - set(classes))
                if unknown:
                    raise DataError(f"{test / unknown[0]}: class not found in {path / 'train'}")
                splits.append(_labeled("test", test, classes, size))
    origin = {"path": str(path.resolve()), "resized": f"centre square, {size}×{size}, bicubic with antialiasing"}
    return Source("folder", (size, size, 3), tuple(splits), origin)


def _labeled(name: str, path: Path, classes: tuple[str, ...], size: int) -> Split:
    return _split(name, [path / label for label in classes], classes, size)


def _split(name: str, folders: list[Path], classes: tuple[str, ...] | None, size: int) -> Split:
    def batches() -> Batches:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
            for label, folder in enumerate(folders):
                names = image_names(folder)
                for first in range(0, len(names), CHUNK):
                    paths = [folder / name for name in names[first:first + CHUNK]]
                    images = np.stack(list(pool.map(lambda path: load_image(path, size), paths)))
                    yield images, None if classes is None else np.full(len(images), label)
    count = sum(len(image_names(folder)) for folder in folders)
    if not count:
        raise DataError(f"{folders[0].parent if classes else folders[0]}: no images found "
                        f"({', '.join(sorted(EXTENSIONS))})")
    return Split(name, count, batches, classes)


def image_names(folder: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted; empty where there is no such folder."""
    def names() -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
                    yield entry.name
    return sorted(names()) if folder.is_dir() else []


def load_image(path: Path, size: int) -> np.ndarray:
    """Decode one image to uint8 (size, size, 3): upright by EXIF, its centre square, resized with antialiasing.

    An image of the right size keeps its pixels. Gray becomes RGB; transparent pixels are shown on white.
    Raises DataError naming the file where it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction; a no-op elsewhere
            upright = ImageOps.exif_transpose(image)
            return np.asarray(ImageOps.fit(to_rgb(upright), (size, size), Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: unreadable image ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit gray scaled to 8 bits, palettes resolved, transparency shown on white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
