"""Reading files that somebody else made: only where they are files, of a fair size, whatever they say of themselves."""

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.common.errors import DataError, reason, shown

MAX_NPY_HEADER = 2**14  # bytes; NumPy itself refuses more than 10,000 characters, but reads them first


def open_regular(path: Path | str, limit: int | None = None) -> BinaryIO:
    """Open a file for reading: never a pipe, which would have us wait, or a device, which may have no end.

    Args:
        path: the file, or a link to it.
        limit: bytes that it may have; None for any size.

    Raises:
        OSError: it is not there, or may not be read.
        DataError: it is no regular file, or larger than ``limit``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (limit is None or found.st_size <= limit):
        return open(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: not a regular file")
    raise DataError(f"{path}: {found.st_size:,} bytes found, expected at most {limit:,}")


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran order, type, and the header's own bytes, of an .npy file that is read from its start.

    Reads at most ``MAX_NPY_HEADER`` bytes, whatever the header says of itself.

    Raises:
        ValueError: anything else than a header, or a shape that no array has.
        Others, where ``stream`` raises them.
    """
    start = io.BytesIO(stream.read(MAX_NPY_HEADER))
    try:
        version = np.lib.format.read_magic(start)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(start)
    except Exception as error:  # NumPy parses headers as Python: a damaged one may raise anything
        raise ValueError(reason(error)) from None
    if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
        raise ValueError(f"shape {shown(shape)} found, which no array has")
    return shape, fortran, dtype, start.tell()
