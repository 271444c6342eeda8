"""Files that appear whole or not at all, folders that one process works in, and files of others, of a fair size."""

import errno
import fcntl
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.errors import DataError, UsageError, reason, shown

NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ENOSYS}  # of some network file systems
MAX_NPY_HEADER = 2**14  # bytes; NumPy itself refuses more than 10,000 characters, but reads them first


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a neighbouring temporary file, then rename it to ``path``.

    Whoever opens ``path`` finds the old content or the new, never a part. On an error the temporary file goes.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary files that killed processes left of ``write_atomically`` to files of that name."""
    for left in folder.glob(f".{name}.*.partial"):
        left.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and those around it; on leaving, those that were made and hold nothing go again."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]  # the innermost first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for one in new:
            with suppress(OSError):
                one.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that this one works in. The lock ends with the process, however it ends.

    Raises UsageError where another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is at work in it; wait for its end, or choose another "
                             f"folder") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"{folder}: this file system has no locks; do not start a second process on it", file=sys.stderr)
        yield
    finally:
        os.close(descriptor)


def open_regular(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a file for reading: never a pipe, which would have us wait, or a device, which may have no end.

    Args:
        path: the file, or a link to it.
        limit: bytes that it may have; None for any size.

    Raises:
        OSError: it is not there, or may not be read.
        DataError: it is no regular file, or larger than ``limit``.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115 - the caller closes it
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and (limit is None or found.st_size <= limit):
        return file
    file.close()
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
