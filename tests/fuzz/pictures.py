"""Fuzzing of the decoding of images, format by format: chunks, segments, tags and headers, and their sizes."""

import functools
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.mutate import bytewise, number, put
from tests.fuzz.target import READ, Target, noting, pixels
from tools.sources import images


@functools.cache
def image_seeds(kind: str) -> list[bytes]:
    """Small images of a format in the modes that it has, one with EXIF data."""
    image = Image.fromarray(pixels(2, 24)[1])
    smooth = Image.fromarray(pixels(1, 24)[0])
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, "description"
    options = {"PNG": [{}, {"optimize": True}, {"exif": exif}], "JPEG": [{}, {"progressive": True}, {"exif": exif}],
               "GIF": [{}, {"save_all": True, "append_images": [smooth], "transparency": 0}], "BMP": [{}],
               "WEBP": [{}, {"lossless": True}, {"exif": exif.tobytes()},
                        {"save_all": True, "append_images": [smooth]}],
               "AVIF": [{"max_threads": 1, "speed": 8, **more} for more in (  # no film, which has the time in it
                   {}, {"quality": 100}, {"exif": exif.tobytes()})],
               "TIFF": [{"compression": name} for name in (None, "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")]}
    modes = {"PNG": ("RGB", "L", "P", "LA", "RGBA", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L"),
             "BMP": ("RGB", "L", "P", "1"), "WEBP": ("RGB", "RGBA"), "AVIF": ("RGB", "RGBA"),
             "TIFF": ("RGB", "L", "CMYK", "RGBA", "I;16")}
    found = []
    for number_, mode in enumerate(modes[kind]):
        for extra in options[kind] if number_ == 0 else options[kind][:1]:
            stream = io.BytesIO()
            base = image if number_ % 2 else smooth
            base = base.convert("I").convert("I;16") if mode == "I;16" else base.convert(mode)
            base.save(stream, kind, **{key: value for key, value in extra.items() if value is not None})
            found.append(stream.getvalue())
    return found


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents."""
    found, place = [], 8
    while place < len(content):
        size, = struct.unpack(">I", content[place:place + 4])
        found.append((content[place + 4:place + 8], content[place + 8:place + 8 + size]))
        place += 12 + size
    return found


def mutate_png(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Chunks changed, moved, doubled and renamed, their checksums right; pixels also inside their compression."""
    parts = png_chunks(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(parts))
        name, inside = parts[place]
        match draw.randrange(6):
            case 0 | 1:
                parts[place] = name, bytewise(draw, inside, other)
            case 2:
                parts.insert(place, parts[draw.randrange(len(parts))])
            case 3:
                parts[place] = draw.choice((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"iCCP", b"zTXt", b"eXIf", b"acTL",
                                            b"fdAT", b"gAMA", b"pHYs", b"iTXt", b"xxxx")), inside
            case 4 if name == b"IDAT":
                rows = next(zlib.decompress(rows) for name, rows in png_chunks(other) if name == b"IDAT")
                parts[place] = name, zlib.compress(bytewise(draw, rows, rows))
            case _:
                head = parts[0][1]
                parts[0] = parts[0][0], put(head, draw.choice((0, 4, 8, 9, 10, 11, 12)), number(draw, draw.choice((
                    ">I", "B"))))[:13]
    return content[:8] + b"".join(struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(
        name + inside)) for name, inside in parts)


def mutate_webp(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Chunks changed behind their first bytes, moved, doubled and renamed; their sizes mostly right."""
    parts, place = [], 12
    while place + 8 <= len(content):
        size, = struct.unpack("<I", content[place + 4:place + 8])
        parts.append((content[place:place + 4], content[place + 8:place + 8 + size]))
        place += 8 + size + size % 2
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.randrange(len(parts))
        name, inside = parts[place]
        match draw.randrange(6):
            case 0:
                parts.insert(draw.randrange(len(parts) + 1), (name, inside))
            case 1:
                parts[place] = draw.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF")), inside
            case 2:
                parts[place] = name, put(inside, draw.randrange(10), number(draw, draw.choice(("<I", "<H", "B"))))
            case _:
                keep = draw.choice((10, 10, 24, 40))
                parts[place] = name, inside[:keep] + bytewise(draw, inside[keep:], other)
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(inside)) + inside + bytes(len(inside) % 2)
                              for name, inside in parts)
    return b"RIFF" + (number(draw, "<I") if draw.random() < 0.05 else struct.pack("<I", len(body))) + body


def mutate_image(kind: str, draw: random.Random, content: bytes) -> bytes:
    """Fields of the format, at the widths that it has; or bytes."""
    other = draw.choice(image_seeds(kind))
    if kind == "AVIF" and draw.random() < 0.6:  # the pixels alone: of the boxes before them hardly one may change
        start = content.find(b"mdat") + 4
        return content[:start] + bytewise(draw, content[start:], other)
    if draw.random() < 0.4:
        return bytewise(draw, content, other)
    if kind in ("PNG", "WEBP"):
        return (mutate_png if kind == "PNG" else mutate_webp)(draw, content, other)
    for _ in range(draw.choice((1, 1, 2, 4))):
        match kind:
            case "JPEG":  # a marker's segment: its name, its length, or a byte in it
                markers = [place for place in range(2, len(content) - 4) if content[place] == 255 and
                           content[place + 1] not in (0, 255)]
                place = draw.choice(markers or [0])
                code = bytes([draw.choice((0xC0, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xFE))])
                content = draw.choice((
                    put(content, place + 1, code), put(content, place + 2, number(draw, ">H")),
                    put(content, place + 5, number(draw, ">H")),
                    put(content, place + draw.randrange(4, 24), number(draw, "B")),
                    content[:place] + content[place + 20:], content[:place] + other[draw.randrange(len(other)):]))
            case "TIFF":  # a tag of the directory: its number, type, count or value
                start, = struct.unpack("<I", content[4:8]) if len(content) > 8 else (0,)
                entry = start + 2 + 12 * draw.randrange(16)
                offset, code = draw.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<H"), (8, "B")))
                piece = number(draw, code)
                if offset == 0:
                    piece = struct.pack("<H", draw.choice((
                        256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338,
                        339, 347, 34665, 34675)))
                elif offset == 2:
                    piece = struct.pack("<H", draw.randrange(1, 19))
                content = put(content, min(entry + offset, len(content)), piece)
            case "GIF":  # the screen, and what begins a block
                blocks = [place for place in range(6, len(content)) if content[place] in b"\x21\x2c"]
                place = draw.choice((4, 6, 8, 10, draw.choice(blocks or [0])))
                content = put(content, place + draw.choice((0, 1, 2, 5, 7)), number(draw, draw.choice(("<H", "B"))))
            case "AVIF":  # a box: its length, its name, or a number in it
                names = (b"ftyp", b"meta", b"iloc", b"iinf", b"iprp", b"ipco", b"ispe", b"av1C", b"ipma", b"mdat",
                         b"pixi")
                boxes = [place for name in names if (place := content.find(name)) >= 4]
                place = draw.choice(boxes or [4])
                content = draw.choice((
                    put(content, place - 4, number(draw, ">I")), put(content, place, draw.choice(names)),
                    put(content, place + draw.randrange(4, 32), number(draw, draw.choice((">I", ">H", "B"))))))
            case _:  # BMP: its two headers
                content = put(content, draw.choice(range(2, 54, 2)), number(draw, draw.choice(("<I", "<H", "B"))))
    return content


def image_reader(path: Path) -> READ:
    """Past the header: Pillow said which format it is, and read its size."""
    passed = []
    noting(Image, "open", passed)

    def read(content: bytes, past: list) -> None:
        passed.clear()
        try:
            found = images.load_image(content, 8, "input")
            assert found.shape == (8, 8, 3)
            assert found.dtype == np.uint8
        finally:
            past += passed
    return read


TARGETS = {kind.lower(): Target(functools.partial(image_seeds, kind), functools.partial(mutate_image, kind),
                                image_reader) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")}
