"""NumPy files: the arrays of an .npz, of a folder of .npy files or of one .npy, and their values piece by piece."""

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.common.errors import DataError, damage, shown
from pipelines.common.reading import open_regular, read_npy_header
from pipelines.common.words import short
from tools.sources.report import FILES, FOLDERS, Report
from tools.sources.walk import extension, folders_in, is_junk_file, is_junk_folder, junk_kind

DEFLATE = 1032  # to one is the most that zip files compress
OPENER = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True)
class Array:
    """An array in a file: its name, what messages call it, its header, and how its bytes are opened, past that."""

    name: str
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    open: OPENER

    @property
    def described(self) -> str:
        """Type and shape, for a message."""
        return f"{short(str(self.dtype))} {shown(self.shape)}"

    def check_order(self) -> None:
        """Raise DataError for an array whose values do not lie image by image."""
        if self.fortran and len(self.shape) > 1:
            raise DataError(f"{self.where}: in Fortran order; save it again by np.ascontiguousarray")

    @contextmanager
    def reading(self) -> Iterator["Values"]:
        """Its values, from the first on."""
        with ExitStack() as stack:
            with damage(f"{self.where}: damaged", passes=(FileNotFoundError,)):
                stream = stack.enter_context(self.open())
            yield Values(self, stream)


class Values:
    """The values of an array in their order, as many at a time as are asked for."""

    def __init__(self, array: Array, stream: BinaryIO):
        self._array, self._stream, self._read = array, stream, 0

    def next(self, count: int) -> np.ndarray:
        """The next values, flat (count,); DataError where the file is damaged or ends."""
        array, size = self._array, self._array.dtype.itemsize
        with damage(f"{array.where}: damaged"):
            content = self._stream.read(count * size)
        self._read += len(content)
        if len(content) != count * size:
            raise ends_early(array.where, array.shape, array.dtype, self._read)
        return np.frombuffer(content, array.dtype)


def ends_early(where: str, shape: tuple[int, ...], dtype: np.dtype, size: int) -> DataError:
    """What is said of an array of which only ``size`` bytes are there."""
    row = dtype.itemsize * math.prod(shape[1:])
    at = f", at image {size // row:,} of {shown(shape[0])}" if shape and row else ""
    return DataError(f"{where}: ends early{at}")


def find(path: Path, report: Report) -> list[Array]:
    """The arrays at ``path``, their headers read; other files go to ``report``. The one of an .npy is ``images``.

    Raises:
        DataError: nothing there, no such file, a damaged header, or one that claims more than there is.
    """
    with damage(f"{path}: not a readable .npz or .npy",
                missing=f"{path}: not found; --source is an .npz, an .npy or a folder of .npy files"):
        if path.is_dir():
            for folder in folders_in(path):
                report.leave_out(FOLDERS, folder, folder)
            files = (path / name for name in _npy_names(sorted(
                name for name in os.listdir(path) if not (path / name).is_dir()), report))
            return [_filed(file, file.stem) for file in files]
        return _archived(path, report) if path.suffix.lower() == ".npz" else [_filed(path, "images")]


def _npy_names(names: list[str], report: Report) -> Iterator[str]:
    """Those that are arrays by their extension."""
    for name in names:
        *folders, last = name.split("/")
        if is_junk_file(last) or any(map(is_junk_folder, folders)):
            report.leave_out(FILES, short(junk_kind(last)), short(name))
        elif last.lower().endswith(".npy"):
            yield name
        elif last:  # else a folder in a zip file
            report.leave_out(FILES, extension(last) or "no extension", short(name))


def _filed(file: Path, name: str) -> Array:
    return _array(name, str(file), lambda: open_regular(file), os.path.getsize(file))


def _archived(path: Path, report: Report) -> list[Array]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}

    def opener(member: zipfile.ZipInfo) -> OPENER:
        @contextmanager
        def opened():
            with open_regular(path) as file, zipfile.ZipFile(file) as archive, archive.open(member) as stream:
                yield stream
        return opened
    return [_array(name[:-4], f"{path}:{short(name)}", opener(members[name]), _unpacked(members[name], path))
            for name in _npy_names(list(members), report)]


def _unpacked(member: zipfile.ZipInfo, path: Path) -> int:
    """Bytes of a zip file's member, as it says; DataError where no so short one has them, or NumPy does not pack so."""
    where = f"{path}:{short(member.filename)}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where}: compressed by method {member.compress_type}, expected none or deflate")
    if member.file_size > DEFLATE * min(member.compress_size, os.path.getsize(path)):
        raise DataError(f"{where}: {member.file_size:,} bytes in {member.compress_size:,} found, more than deflate can "
                        f"hold")
    return member.file_size


def _array(name: str, where: str, opened: OPENER, size: int) -> Array:
    """Read an array's header, and compare it with the ``size`` of its file in bytes."""
    with damage(f"{where}: not a readable NumPy array", passes=(FileNotFoundError,)), opened() as stream:
        shape, fortran, dtype, start = read_npy_header(stream)
    if not dtype.hasobject and dtype.itemsize * math.prod(shape) > size - start:
        raise ends_early(where, shape, dtype, size - start)

    @contextmanager
    def past_header():
        with opened() as stream:
            stream.read(start)
            yield stream
    return Array(name, where, shape, dtype, fortran, past_header)
