"""Image files that claim more than they are: refused by what their headers say, before anything is decoded."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.common.reading import open_regular
from tests.conftest import random_images
from tools.sources import folder, images
from tools.sources.images import FORMATS, load_image


def encoded(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(random_images(1, 16)[0]).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, rows: int = 0, mode: int = 2) -> bytes:
    """A PNG that says it is so large, with so many rows of zeros."""
    row = bytes(1 + width * {2: 3, 6: 4}[mode])
    pack = zlib.compressobj(1)
    pixels = b"".join(pack.compress(row) for _ in range(rows)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, mode, 0, 0, 0)) + \
        chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def changed(content: bytes, place: int, code: str, *values: int) -> bytes:
    return content[:place] + struct.pack(code, *values) + content[place + struct.calcsize(code):]


def tiff(width: int, height: int, compression: int = 1, **more: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: 8} | more
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())) + bytes(4)


JPEG = encoded("JPEG")
GIANTS = {
    "png": png(8193, 8192), "png of 10**18 pixels": png(2**30, 2**30), "png wide": png(2**31 - 1, 1),
    "jpeg": changed(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 65500, 65500),
    "jpeg between Pillow's warning and its error": changed(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 12000, 12000),
    "bmp": changed(encoded("BMP"), 18, "<ii", 10**5, 10**5), "gif": changed(encoded("GIF"), 6, "<HH", 65535, 65535),
    "webp": changed(encoded("WEBP", lossless=True), 21, "<I", 16383 | 16383 << 14),
    "tiff": tiff(10**5, 10**5), "tiff packed": tiff(10**5, 10**5, 8), "ppm": b"P6 100000 100000 255\n" + bytes(99),
    "pgm": b"P5 100000 100000 65535\n" + bytes(99)}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the product's own filter
@pytest.mark.parametrize("name", GIANTS)
def test_giants_are_refused_before_they_are_decoded(tmp_path, frugal, name):
    (tmp_path / "x.png").write_bytes(GIANTS[name])
    with frugal(16), pytest.raises(DataError, match=r"x\.png: ") as refused:
        load_image(tmp_path / "x.png", 8)
    assert any(text in str(refused.value) for text in ("expected at most 67,108,864 pixels", "decompression bomb",
                                                       "no image that is read here"))


def test_between_pillow_s_warning_and_its_error(tmp_path):
    """One line on stderr, where Pillow would warn and decode."""
    assert Image.MAX_IMAGE_PIXELS < 9500 * 9500 < 2 * Image.MAX_IMAGE_PIXELS
    (tmp_path / "x.png").write_bytes(png(9500, 9500))
    done = subprocess.run([sys.executable, "-m", "tools.prepare", "folder", "--source", tmp_path, "--out",
                           tmp_path / "s"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and "0/1" not in line]
    assert lines == [f"error: {tmp_path}: 1 damaged image: x.png (9500×9500 found, expected at most 67,108,864 "
                     f"pixels); --skip-damaged leaves it out"]


def test_a_large_image_is_none_too_large(frugal):
    """16 million pixels and more are decoded one image at a time."""
    content = png(4200, 4200, 4200)
    with frugal(250):
        assert not load_image(content, 8).any()


@pytest.mark.parametrize(("mode", "pixels"), [("P", 5), ("RGBA", 8), ("L", 5), ("LA", 8), ("I;16", 6)])
def test_the_largest_images_are_held_twice(frugal, mode, pixels):
    """A GIF or PNG of 40 million pixels, by the bytes that each takes; the strips are small beside them."""
    stream = io.BytesIO()
    Image.new(mode, (6400, 6400)).save(stream, "PNG", compress_level=1, **{"transparency": 0} if mode == "P" else {})
    with frugal(pixels * 6400 * 6400 // 2**20 + 48):
        load_image(stream.getvalue(), 8)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1", "CMYK", "I;16", "F"])
def test_strips_make_no_difference(monkeypatch, mode):
    image = Image.fromarray(random_images(1, 40)[0])
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    if mode in ("P", "L", "RGB"):
        image.info["transparency"] = {"P": bytes(range(256)), "L": 7, "RGB": (1, 2, 3)}[mode]
    whole = np.asarray(images.to_rgb(image))
    monkeypatch.setattr(images, "STRIP_PIXELS", 120)
    assert np.array_equal(images.to_rgb(image), whole)


@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(%pipe%touch ran) (w) file\n", encoded("TGA"), encoded("ICO"),
    encoded("JPEG2000"), encoded("PDF"), encoded("SGI"), encoded("PCX"), encoded("ICNS")])
def test_formats_that_no_such_file_has(tmp_path, monkeypatch, content):
    """Pillow would start Ghostscript for the first."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no image that is read here"):
        load_image(content, 8, "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_that_there_are(kind):
    assert load_image(encoded(kind), 16).shape == (16, 16, 3)


def test_a_file_larger_than_any_image(tmp_path, frugal):
    (tmp_path / "x.webp").write_bytes(encoded("WEBP"))
    os.truncate(tmp_path / "x.webp", 10**12)
    with frugal(16), pytest.raises(DataError, match="1,000,000,000,000 bytes found, expected at most 268,435,456"):
        load_image(tmp_path / "x.webp", 8)


def test_hidden_files_are_no_images(tmp_path):
    """macOS writes ._a.png beside a.png."""
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "._a.png").write_bytes(b"attributes")
    (split,) = folder.read(tmp_path, 16).splits
    assert split.num_images == 1


def test_a_folder_in_a_file_s_place(tmp_path):
    """Said by name, and no descriptor is left open."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(DataError, match="not a regular file"):
            open_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_among_images(tmp_path, frugal):
    """Left out of a folder, as what is no file; refused, not waited for, where it took a file's place since."""
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "b.png")
    with frugal():
        (split,) = folder.read(tmp_path, 16).splits
        assert split.num_images == 1
        (images, _), = split.batches()
        assert np.array_equal(images[0], random_images(1, 16)[0])
    with frugal(), pytest.raises(DataError, match=r"b\.png: unreadable image \(not a regular file\)"):
        load_image(tmp_path / "b.png", 16)
