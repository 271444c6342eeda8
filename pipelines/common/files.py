"""Files that appear whole or not at all, and folders that one process at a time works in."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipelines.common.errors import UsageError

NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF}  # of some network file systems


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a neighbouring temporary file, then rename it to ``path``.

    A reader of ``path`` sees the old content or the new, never a part. On an error the temporary file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming_errors(path), open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Context in which an OSError without a file name, such as a full disk's, gets this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary files of ``write_atomically`` to files of that name, left by killed processes."""
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
def created_dirs(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; on exit remove those created here that are still empty."""
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
    """Lock a folder against other processes. The lock ends with the process, however it ends.

    Raises UsageError where another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        failed = _lock(descriptor, folder)
        if failed == errno.EBADF:  # NFS locks only what can be written
            writable = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            os.close(descriptor)
            descriptor = writable
            failed = _lock(descriptor, folder)
        if failed:
            print(f"{folder}: this file system has no locks; do not start a second process on it", file=sys.stderr)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> int:
    """Lock what is open; returns 0, or the error number where such a thing cannot be locked here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{folder}: another process is at work in it; wait for its end, or choose another "
                         f"folder") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return error.errno
    return 0
