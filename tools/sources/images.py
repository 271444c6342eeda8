"""An image file of any kind to a uint8 square: upright, RGB, resized with antialiasing."""

import io
import logging
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.common.errors import DataError, reason
from pipelines.common.reading import open_regular

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM")  # Pillow has others that start programs
DEFAULT_SIZE = 32
MAX_FILE_BYTES = 2**28
MAX_MEMBER_BYTES = 2**26  # of an image in an archive, which is held until it is decoded
MAX_PIXELS = 2**26  # 8192×8192; Pillow warns above 89 million, raises above 179 million, and decodes up to there
STRIP_PIXELS = 2**20  # that become RGB at a time
MANY_PIXELS = 2**24  # of an image for which the others wait
LARGE = threading.Lock()
RESIZED = "centre square, {0}×{0}, bicubic with antialiasing"
BITS_32 = "32-bit"
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``load_image`` refuses, in one line
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of a damaged file, it raises as well


class Damaged(DataError):
    """An image that cannot be decoded, or is not to be: which, and why."""

    def __init__(self, name: str, why: str):
        super().__init__(f"{name}: unreadable image ({why})")
        self.name, self.why = name, why


class Decoded(NamedTuple):
    """uint8 (size, size, 3); of an image of 16 bits the largest value that it had; whether there are further frames."""

    pixels: np.ndarray
    brightest: int | None
    frames: bool


def load_image(file: Path | str | bytes, size: int, name: str | None = None) -> np.ndarray:
    """Decode one image to uint8 (size, size, 3): upright by EXIF, its centre square, resized with antialiasing.

    An image of the right size keeps its pixels. Gray becomes RGB, 16 bits become 8 by a division by 257; transparent
    pixels are shown on white. Of several frames or pages it is the first.

    Raises:
        DataError: it cannot be decoded, its pixels have 32 bits or, before it is decoded, it says that it has more than
            ``MAX_PIXELS``. The message begins with ``name``.
    """
    return decode(file, size, name or str(file)).pixels


def decode(file: Path | str | bytes, size: int, name: str, most: int | None = None) -> Decoded | None:
    """As ``load_image``; None for an image of more than ``most`` pixels, which is not decoded."""
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open_regular(file, MAX_FILE_BYTES) as stream:
            try:
                return _read(stream, size, most)
            except UnidentifiedImageError:
                raise ValueError(_what_it_is(stream)) from None
    except MemoryError:
        raise
    except Exception as error:  # of any kind: Pillow raises what it likes
        if isinstance(error, OSError) and error.errno is not None and not isinstance(
                error, PermissionError | FileNotFoundError):
            raise  # the disk's, or for want of file descriptors: the image may be sound
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise Damaged(name, why if isinstance(file, bytes) else why.removeprefix(f"{file}: ")) from None


def _read(stream: io.BufferedIOBase, size: int, most: int | None) -> Decoded | None:
    with Image.open(stream, formats=FORMATS) as image:
        pixels, brightest = image.width * image.height, None
        if pixels > MAX_PIXELS:
            raise ValueError(f"{image.width}×{image.height} found, expected at most {MAX_PIXELS:,} pixels")
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
            raise ValueError(f"{BITS_32} {'float' if image.mode == 'F' else 'integer'} pixels")
        if most is not None and pixels > most:
            return None
        with LARGE if pixels > MANY_PIXELS else nullcontext():
            image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction; a no-op elsewhere
            frames = bool(image.tag_v2.next if image.format == "TIFF" else getattr(image, "is_animated", False))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):
                brightest = int(image.getextrema()[1])
            return Decoded(to_square(image, size), brightest, frames)


def _what_it_is(stream: io.BufferedIOBase) -> str:
    stream.seek(0)
    start = stream.read(16)
    return f"no image that is read here; it begins with {start!r}" if start else "an empty file"


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
