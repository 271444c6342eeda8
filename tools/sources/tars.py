"""Tar archives that may be damaged or hostile: their members one by one, to their true end."""

import io
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipelines.common.errors import DataError, damage, shown
from pipelines.common.reading import open_regular

MAX_EXTENSION_BYTES = 2**14  # of a header's extension (a long name, pax records), which tarfile reads whole
MAX_XZ_MEMORY = 2**27  # that unpacking may take; xz -9 needs 65 MiB
XZ_PIECE = 2**16
EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
              tarfile.SOLARIS_XHDTYPE)

VOLUME_LABEL = b"V"  # of GNU tar
XZ = b"\xfd7zXZ\0"
MODES = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2"}  # by a file's first bytes


class Hostile(tarfile.TarError):
    """A header that no archive of a data set has."""


class Header(tarfile.TarInfo):
    """A header whose own claims are checked before ``tarfile`` takes memory for them."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "Header":
        """Raises Hostile for a size below 0, a long extension, and sparse files, which few bytes make large."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in EXTENSIONS and header.size > MAX_EXTENSION_BYTES):
            raise Hostile(f"a header of {header.size:,} bytes found, expected at most {MAX_EXTENSION_BYTES:,}")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise Hostile(f"{shown(header.name)} is a sparse file, expected plain ones")
        return header

    def _proc_gnusparse_10(self, *args) -> None:  # of the standard library: reads a map of any length
        raise Hostile("a sparse file found, expected plain ones")


class Unxz(io.RawIOBase):
    """What an .xz file unpacks to, in ``MAX_XZ_MEMORY``: the standard library's takes what the file asks for."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._position, self._packed, self._unpacking = 0, b"", None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """By unpacking: what lies between, or from the beginning."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To a place counted from the beginning or from here, at most to the end."""
        target = offset + (self._position if whence == io.SEEK_CUR else 0)
        if target < self._position:
            self._rewind()
        while self._position < target and self.read(min(XZ_PIECE, target - self._position)):
            pass
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Raises lzma.LZMAError where it is damaged or would take more memory, EOFError where it is cut off."""
        while True:
            if self._unpacking is not None and not self._unpacking.needs_input:
                piece = b""
            elif not (piece := self._packed or self._file.read(XZ_PIECE)):
                if self._unpacking is None:
                    return 0
                raise EOFError("ends early; copy or download it again")
            self._packed = b""
            if self._unpacking is None:  # before a stream, of which there may be several, with zeros between them
                if not (piece := piece.lstrip(b"\0")):
                    continue
                self._unpacking = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
            found = self._unpacking.decompress(piece, len(buffer))
            if self._unpacking.eof:
                self._packed, self._unpacking = self._unpacking.unused_data, None
            if found:
                buffer[:len(found)] = found
                self._position += len(found)
                return len(found)


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, plain or packed by gzip, bzip2 or xz; DataError naming it for whatever is wrong with it, also while
    it is read.
    """
    with damage(f"{path}: not a readable tar archive"), open_regular(path) as file:
        start = file.read(len(XZ))
        file.seek(0)
        mode = next((mode for magic, mode in MODES.items() if start.startswith(magic)), "r:")
        stream = io.BufferedReader(Unxz(file), XZ_PIECE) if start == XZ else file
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=Header) as archive:
            yield archive


def members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files in an archive, in order; nothing is held of those behind. DataError for what is no file or folder.

    Nothing is ever extracted; a name that leads out of the archive is refused all the same, as are links and devices,
    rather than leaving out a sample.
    """
    end = -1
    for member in archive:
        archive.members, archive.pax_headers = [], {}  # it would keep all of them
        if archive.offset <= end or member.size < 0:
            raise DataError(f"{path}: {shown(member.name)} has a size that leads backwards")
        end = archive.offset
        if member.type == VOLUME_LABEL:
            continue
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise DataError(f"{path}: {shown(member.name)} leads out of the archive")
        if member.isfile() and not member.issparse():
            yield member
        elif not member.isdir():
            raise DataError(f"{path}: {shown(member.name)} is a link, a device or a sparse file, expected plain files")
    _check_end(archive)


def _check_end(archive: tarfile.TarFile) -> None:
    """After the last member: raise EOFError, or what the decompressor raises, where an archive is cut off or its
    checksum is wrong.

    ``tarfile`` stops quietly at both: at a header that is not whole, and before a gzip file's checksum.
    """
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("ends early, without the mark of a tar's end; copy or download it again")
    while piece := archive.fileobj.read(2**20):
        if piece.strip(b"\0"):
            raise ValueError("goes on after its end; give archives that were put together one by one")


def content(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str, limit: int) -> bytes:
    """A member's bytes, at most ``limit``; DataError naming ``where`` for more."""
    if member.size > limit:
        raise DataError(f"{where}: {member.size:,} bytes found, expected at most {limit:,}")
    return archive.extractfile(member).read()
