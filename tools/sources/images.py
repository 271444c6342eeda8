"""Image files of any kind to uint8 squares: decoded in parallel, upright, RGB, resized with antialiasing."""

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipelines.errors import DataError
from tools.sources import Batches

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_NAMES = ("test", "val", "valid", "validation")  # what a folder or file of test images is called, by preference
DEFAULT_SIZE = 32
CHUNK = 256  # images decoded at a time
RESIZED = "centre square, {0}×{0}, bicubic with antialiasing"


class Item(NamedTuple):
    """One image to decode: where it is, for messages; its file, or its content; its label, if any."""

    where: str
    file: Path | bytes
    label: int | None


def decoded(items: Iterable[Item], size: int) -> Batches:
    """Decode images chunk by chunk, several at once: uint8 (n, size, size, 3), and labels (n,) or None."""
    items = iter(items)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes outside Python's lock
        while chunk := list(islice(items, CHUNK)):
            images = np.stack(list(pool.map(lambda item: load_image(item.file, size, item.where), chunk)))
            labels = None if chunk[0].label is None else np.array([item.label for item in chunk])
            yield images, labels


def load_image(file: Path | bytes, size: int, where: str | None = None) -> np.ndarray:
    """Decode one image to uint8 (size, size, 3): upright by EXIF, its centre square, resized with antialiasing.

    An image of the right size keeps its pixels. Gray becomes RGB; transparent pixels are shown on white.
    Raises DataError naming the file where it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction; a no-op elsewhere
            return to_square(ImageOps.exif_transpose(image), size)
    except Exception as error:  # a damaged file may have Pillow raise anything
        raise DataError(f"{where or file}: unreadable image ({error})") from None


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square in RGB, uint8 (size, size, 3)."""
    return np.asarray(ImageOps.fit(to_rgb(image), (size, size), Image.Resampling.BICUBIC))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit gray scaled to 8 bits, palettes resolved, transparency shown on white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def image_names(folder: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted; empty where there is no such folder."""
    def names() -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
                    yield entry.name
    return sorted(names()) if folder.is_dir() else []
