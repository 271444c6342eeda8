"""MATLAB 5 files: their arrays of numbers by name, read piece by piece, so that no claim in a header takes memory."""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.common.reading import open_regular

HEADER_BYTES = 128
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15  # types of elements that hold others
NUMERIC = range(6, 16)  # classes of matrices: double, single, and the integers
COMPLEX = 0x800  # a flag beside the class
MAX_NAME = MAX_DIMENSIONS = 256  # bytes; MATLAB's names have 63


class NewerFormat(ValueError):
    """A file of MATLAB 7.3, which is HDF5."""


@dataclass(frozen=True)
class Matrix:
    """An array in a file: its shape and the type it is stored as, and where its element begins."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    position: int

    def pieces(self, count: int) -> Iterator[np.ndarray]:
        """All numbers, in MATLAB's order (the first axis fastest), at most ``count`` at a time, (n,).

        Raises ValueError, EOFError or zlib.error where the file is damaged.
        """
        with open_regular(self.file) as file:
            stream, order = _element(file, self.position)[:2]
            _matrix(stream, order)
            left = math.prod(self.shape)
            while left:
                yield np.frombuffer(_exactly(stream, min(count, left) * self.dtype.itemsize), self.dtype)
                left -= min(count, left)
            if stream is not file and len(stream.read(8)) == 8:  # the end, with its checksum, lies behind the padding
                raise ValueError("more bytes than its shape has")


class Inflated(io.RawIOBase):
    """What the next ``size`` bytes of a file were compressed from, no more at a time than is asked for."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left, self._inflate = file, size, zlib.decompressobj()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Raises zlib.error or EOFError where the element is damaged."""
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail
            if not packed:
                packed = _exactly(self._file, min(2**16, self._left))
                self._left -= len(packed)
            content = self._inflate.decompress(packed, len(buffer))
            if content:
                buffer[:len(content)] = content
                return len(content)
            if not packed:
                raise EOFError("a compressed element ends early")
        return 0


def read(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Matrix], list[str]]:
    """The arrays of these names, headers read, and a few names of the others.

    Raises:
        NewerFormat: a MATLAB 7.3 file.
        ValueError, EOFError, zlib.error: no MATLAB 5 file, or a damaged one.
    """
    found, others, position = {}, [], HEADER_BYTES
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        while position < size or position == HEADER_BYTES:
            stream, order, end = _element(file, position)
            if end > size:
                raise EOFError(f"ends early: an element from {position:,} to {end:,} in {size:,} bytes")
            name, shape, dtype = _matrix(stream, order)
            if name in names and dtype is not None:
                found[name] = Matrix(path, shape, dtype, position)
            elif len(others) < 10:
                others.append(name)
            position = end
    return found, others


def _element(file: BinaryIO, position: int) -> tuple[BinaryIO, str, int]:
    """The element at a position, unpacked; the file's byte order; and where the element ends."""
    file.seek(0)
    header = _exactly(file, HEADER_BYTES)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None:
        raise ValueError("no header of a MATLAB 5 file")
    version, = struct.unpack(f"{order}H", header[124:126])
    if version == 0x200:
        raise NewerFormat("version 0x200 found, expected 0x100")
    if version != 0x100:
        raise ValueError(f"version {version:#x} found, expected 0x100")
    file.seek(position)
    kind, size = struct.unpack(f"{order}2I", _exactly(file, 8))
    if kind == COMPRESSED:
        stream = io.BufferedReader(Inflated(file, size))
        kind, _ = struct.unpack(f"{order}2I", _exactly(stream, 8))
    else:
        stream = file
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} found, expected a matrix")
    return stream, order, position + 8 + size


def _matrix(stream: BinaryIO, order: str) -> tuple[str, tuple[int, ...], np.dtype | None]:
    """Name, shape and stored type (None for what holds no plain numbers); leaves the stream at the numbers."""
    flags = _part(stream, order, 8)
    if len(flags) != 8:
        raise ValueError("no flags of a matrix")
    flags = struct.unpack(f"{order}I", flags[:4])[0]
    dimensions = np.frombuffer(_part(stream, order, MAX_DIMENSIONS), f"{order}i4")
    name = _part(stream, order, MAX_NAME).decode("latin1")
    shape = tuple(dimensions.tolist())
    if flags & 0xFF not in NUMERIC or flags & COMPLEX:
        return name, shape, None
    kind, size, _ = _tag(stream, order)
    if kind not in TYPES or min(shape, default=0) < 0:
        raise ValueError(f"{name!r}: numbers of type {kind} and shape {shape} found")
    dtype = np.dtype(order + TYPES[kind])
    if size != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name!r}: {size:,} bytes found for {dtype} {shape}")
    return name, shape, dtype


def _part(stream: BinaryIO, order: str, limit: int) -> bytes:
    """The bytes of a part of a matrix, whose padding is skipped."""
    _, size, small = _tag(stream, order)
    if size > limit:
        raise ValueError(f"a part of {size:,} bytes found, expected at most {limit:,}")
    room = 4 if small else -(-size // 8) * 8
    return _exactly(stream, room)[:size]


def _tag(stream: BinaryIO, order: str) -> tuple[int, int, bool]:
    """Type and size of a part, and whether it is a small one: up to four bytes, right behind a tag of four."""
    kind, = struct.unpack(f"{order}I", _exactly(stream, 4))
    if kind >> 16:
        if kind >> 16 > 4:
            raise ValueError("a small part of more than four bytes found")
        return kind & 0xFFFF, kind >> 16, True
    return kind, struct.unpack(f"{order}I", _exactly(stream, 4))[0], False


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise EOFError("ends early")
    return content
