"""Image files of any kind to uint8 squares: decoded in parallel, upright, RGB, resized with antialiasing."""

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipelines.common.errors import DataError, damage
from pipelines.common.reading import open_regular
from tools.sources import Batches

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_NAMES = ("test", "val", "valid", "validation")  # what a folder or file of test images is called, by preference
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # of those; Pillow has others that start programs
DEFAULT_SIZE = 32
CHUNK = 256  # images decoded at a time, or fewer where their files take
CHUNK_BYTES = 2**26
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**26  # 8192×8192; Pillow warns above 89 million, raises above 179 million, and decodes up to there
STRIP_PIXELS = 2**20  # that become RGB at a time
MANY_PIXELS = 2**24  # of an image for which the others wait
LARGE = threading.Lock()
RESIZED = "centre square, {0}×{0}, bicubic with antialiasing"
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``load_image`` refuses, in one line
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of a damaged file, it raises as well


class Item(NamedTuple):
    """One image to decode: where it is, for messages; its file, or its content; its label, if any."""

    where: str
    file: Path | bytes
    label: int | None


def decoded(items: Iterable[Item], size: int) -> Batches:
    """Decode images chunk by chunk, several at once: uint8 (n, size, size, 3), and labels (n,) or None."""
    items = iter(items)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes outside Python's lock
        while chunk := _chunk(items):
            images = np.stack(list(pool.map(lambda item: load_image(item.file, size, item.where), chunk)))
            labels = None if chunk[0].label is None else np.array([item.label for item in chunk])
            yield images, labels


def _chunk(items: Iterator[Item]) -> list[Item]:
    chunk, held = [], 0
    while len(chunk) < CHUNK and held < CHUNK_BYTES and (item := next(items, None)):
        chunk.append(item)
        held += len(item.file) if isinstance(item.file, bytes) else 0
    return chunk


def load_image(file: Path | bytes, size: int, where: str | None = None) -> np.ndarray:
    """Decode one image to uint8 (size, size, 3): upright by EXIF, its centre square, resized with antialiasing.

    An image of the right size keeps its pixels. Gray becomes RGB; transparent pixels are shown on white.
    Raises DataError naming the file where it cannot be decoded, or before it is where it says it has more than
    ``MAX_PIXELS``.
    """
    with damage(f"{where or file}: unreadable image"), \
            (io.BytesIO(file) if isinstance(file, bytes) else open_regular(file, MAX_FILE_BYTES)) as stream, \
            Image.open(stream, formats=FORMATS) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise DataError(f"{where or file}: an image of {image.width}×{image.height} found, expected at most "
                            f"{MAX_PIXELS:,} pixels")
        with LARGE if pixels > MANY_PIXELS else nullcontext():
            image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction; a no-op elsewhere
            ImageOps.exif_transpose(image, in_place=True)
            return to_square(image, size)


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square in RGB, uint8 (size, size, 3)."""
    return np.asarray(ImageOps.fit(to_rgb(image), (size, size), Image.Resampling.BICUBIC))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit gray scaled to 8 bits, palettes resolved, transparency shown on white.

    Strip by strip, so that a large image is held twice, and not in every mode on its way.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _to_rgb(image)
    out = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        out.paste(_to_rgb(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return out


def _to_rgb(image: Image.Image) -> Image.Image:
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
                hidden = entry.name.startswith(".")  # macOS writes ._x.jpg beside x.jpg
                if not hidden and os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
                    yield entry.name
    return sorted(names()) if folder.is_dir() else []
