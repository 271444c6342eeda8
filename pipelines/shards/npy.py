"""An .npy file that is written, hashed and synced by other threads, piece by piece, while the next piece is made."""

import hashlib
import io
import os
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.common.files import named
from pipelines.shards.manifest import ShardFile


class Threads(NamedTuple):
    """One thread for each part of the work; each does its part of one piece after another."""

    hasher: Executor
    writer: Executor
    syncer: Executor


class NpyFile:
    """An .npy file in the making.

    Args:
        path: where; nothing may be there.
        dtype: of the array.
        row: shape of the array but for its length.
        rows: its length, as far as known. Where it turns out otherwise, the file's start is written again, and the
            file is read for its hash once it is complete.
        threads: that do the work.

    What goes wrong in it, a full disk say, is raised as an OSError that names the file, by the futures of ``write`` and
    by ``result``.
    """

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...], rows: int, threads: Threads):
        self._path, self._dtype, self._row, self._expected = path, dtype, row, rows
        self._threads = threads
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed when it is synced, or by ``close``
        self._digest = hashlib.sha256()
        self._rows = self._bytes = 0
        self._last: Future[None] | None = None  # the newest write; it fails where one before it did
        self._append(self._header(rows))

    def write(self, rows: np.ndarray) -> tuple[Future[None], Future[None]]:
        """Have more rows of the array, contiguous in memory, hashed and written: done when both futures are."""
        self._rows += len(rows)
        return self._append(memoryview(rows).cast("B"))

    def finish(self) -> None:
        """That was all of it."""
        if self._rows == self._expected:
            self._sha256 = self._threads.hasher.submit(self._digest.hexdigest)
        else:
            self._last = self._threads.writer.submit(self._rewrite_header, self._last)
            self._sha256 = self._threads.hasher.submit(self._hash_again, self._last)
        self._synced = self._threads.syncer.submit(self._sync, self._last)

    def result(self) -> ShardFile:
        """After ``finish``: the file's name, size and hash, once it is on the disk."""
        self._synced.result()
        return ShardFile(self._path.name, self._bytes, self._sha256.result())

    def close(self) -> None:
        """Let go of a file that will not be finished, once the threads have ended."""
        self._file.close()

    def _append(self, part: memoryview) -> tuple[Future[None], Future[None]]:
        self._bytes += len(part)
        self._last = self._threads.writer.submit(self._write, part, self._last)
        return self._threads.hasher.submit(self._digest.update, part), self._last

    def _write(self, part: memoryview, before: Future[None] | None) -> None:
        if before is not None:
            before.result()
        with named(self._path):
            while part:
                part = part[self._file.write(part):]

    def _header(self, rows: int) -> memoryview:
        """The file's start. NumPy leaves room in it, so that it is as long for any number of rows."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {
            "descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (rows, *self._row)})
        return memoryview(header.getvalue())

    def _rewrite_header(self, before: Future[None]) -> None:
        before.result()
        with named(self._path):
            os.pwrite(self._file.fileno(), self._header(self._rows), 0)

    def _hash_again(self, written: Future[None]) -> str:
        written.result()
        with named(self._path), open(self._path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _sync(self, written: Future[None]) -> None:
        with named(self._path), self._file:
            written.result()
            os.fsync(self._file.fileno())
