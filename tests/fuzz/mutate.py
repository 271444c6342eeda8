"""Mutations of small valid files: byte-wise ones for any format, and boundary values for structured ones."""

import random
import struct

INTEGERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31,
            2**32 - 1, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1, 10**12, -1, -2, -128, -2**31, -2**63)
CODES = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
MAX_BYTES = 2**17


def number(draw: random.Random, code: str) -> bytes:
    """A boundary value, packed, its high bits cut off where it does not fit."""
    size = struct.calcsize(code)
    order = "big" if code[0] == ">" else "little"
    return (draw.choice(INTEGERS) % 256**size).to_bytes(size, order)


def put(content: bytes, place: int, piece: bytes) -> bytes:
    """``content`` with ``piece`` over what is at ``place``."""
    return content[:place] + piece + content[place + len(piece):]


def bytewise(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """One to four changes that know nothing of the format; ``other`` is a file to splice with."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        # The start of a file is where its claims are.
        place = draw.randrange(min(len(content), draw.choice((16, 128, 2**20))) or 1)
        end = place + draw.choice((1, 2, 4, 8, 64, 512))
        match draw.randrange(8):
            case 0:
                flipped = content[place:place + 1] or b"\0"
                content = put(content, place, bytes([flipped[0] ^ 1 << draw.randrange(8)]))
            case 1:
                content = put(content, place, bytes([draw.choice((0, 1, 32, 127, 128, 254, 255))]))
            case 2 | 3:
                content = put(content, place, number(draw, draw.choice(CODES)))
            case 4:
                content = content[:place] + content[end:]
            case 5:
                content = content[:end] + content[place:end] * draw.choice((1, 2, 50)) + content[end:]
            case 6:
                content = content[:place] if draw.random() < 0.5 else content[:-draw.randrange(1, 64)]
            case 7:
                start = draw.randrange(len(other) or 1)
                content = content[:place] + other[start:start + draw.choice((4, 64, 2**20))] + content[end:]
    return content[:MAX_BYTES]
