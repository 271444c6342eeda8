"""CIFAR-10 from its pickles or binaries, in a folder or in the .tar.gz they are downloaded as."""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.errors import DataError
from tools.sources import Batches, Source, Split

IMAGE_SHAPE = (32, 32, 3)
ROW_BYTES = 32 * 32 * 3
BATCH_IMAGES = 10_000
FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
MAX_PICKLE_BYTES = 2**28  # the real ones are 31 MB; CIFAR-100's training file is 155 MB

# All that NumPy's arrays in CIFAR's pickles need, under Python 2's and today's module names.
ALLOWED_GLOBALS = {(module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray")
                   for name in ("_reconstruct", "scalar")} | {("numpy", "ndarray"), ("numpy", "dtype"),
                                                              ("_codecs", "encode")}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickle plain containers and NumPy arrays; anything that could run code is refused by name."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no CIFAR file does")
        return super().find_class(module, name)


def read(path: Path) -> Source:
    """Recognise and open CIFAR-10 at ``path``; raises DataError that says what was expected."""
    for suffix, reader, layout in (("", _pickled, "python"), (".bin", _binary, "binary")):
        names = [name + suffix for split in FILES.values() for name in split]
        meta = "batches.meta" + (".txt" if suffix else "")
        opened = _folder(path, [*names, meta]) if path.is_dir() else _archive(path, [*names, meta])
        if opened is None:
            continue
        classes = _classes(opened, meta)
        splits = tuple(Split(split, BATCH_IMAGES * len(files), _batches(opened, files, suffix, reader), classes)
                       for split, files in FILES.items())
        return Source("cifar10", IMAGE_SHAPE, splits, {"path": str(path.resolve()), "layout": layout})
    raise DataError(f"{path}: no CIFAR-10 here; expected cifar-10-batches-py (data_batch_1 to _5, test_batch), "
                    f"cifar-10-batches-bin (the same as .bin), or the .tar.gz of either")


Opener = Callable[[str], tuple[str, BinaryIO]]


def _folder(path: Path, names: list[str]) -> Opener | None:
    """Opens files of a folder by name; None where it is not this layout at all, DataError where part is missing."""
    present = [name for name in names if (path / name).is_file()]
    if not any(name.startswith("data_batch") for name in present):
        return None
    for name in names:
        if name not in present:
            raise DataError(f"{path / name}: missing; the other files of CIFAR-10 are here")
    return lambda name: (str(path / name), open(path / name, "rb"))


def _archive(path: Path, names: list[str]) -> Opener | None:
    """Opens members of a .tar.gz by name, without extracting; None where it holds another layout."""
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
    except FileNotFoundError:
        raise DataError(f"{path}: not found; --source is CIFAR-10's folder or .tar.gz") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable folder or tar archive ({error})") from None
    if not any(name in members for name in names):
        return None
    for name in names:
        if name not in members:
            raise DataError(f"{path}: {name} missing in the archive; the other files of CIFAR-10 are there")

    def open_member(name: str) -> tuple[str, BinaryIO]:
        where = f"{path}:{members[name].name}"
        if members[name].size > MAX_PICKLE_BYTES:
            raise DataError(f"{where}: {members[name].size} bytes, more than any file of CIFAR-10 has")
        try:
            with tarfile.open(path) as archive:
                return where, io.BytesIO(archive.extractfile(members[name]).read())
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{where}: unreadable ({error}); download it again") from None
    return open_member


def _batches(opened: Opener, files: tuple[str, ...], suffix: str,
             reader: Callable[[str, BinaryIO], tuple[np.ndarray, np.ndarray]]) -> Callable[[], Batches]:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in files:
            where, stream = opened(name + suffix)
            with stream:
                rows, labels = reader(where, stream)
            if labels.min() < 0 or labels.max() > 9:
                raise DataError(f"{where}: labels {labels.min()} to {labels.max()} found, 0 to 9 expected")
            yield rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
    return batches


def _unpickle(where: str, stream: BinaryIO) -> dict:
    try:
        content = RestrictedUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{where}: not a readable CIFAR pickle ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: a pickled {type(content).__name__} found, a dictionary expected")
    return content


def _pickled(where: str, stream: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(where, stream)
    if "fine_labels" in content:
        raise DataError(f"{where}: this is CIFAR-100, expected CIFAR-10")
    rows, labels = content.get("data"), content.get("labels")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != (BATCH_IMAGES, ROW_BYTES):
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise DataError(f"{where}: data is {found}, expected uint8 {(BATCH_IMAGES, ROW_BYTES)}")
    if not isinstance(labels, list) or len(labels) != BATCH_IMAGES or not all(isinstance(n, int) for n in labels):
        raise DataError(f"{where}: labels are not a list of {BATCH_IMAGES} integers")
    return rows, np.array(labels, dtype=np.int64)


def _binary(where: str, stream: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    expected = BATCH_IMAGES * (1 + ROW_BYTES)
    content = stream.read(expected + 1)
    if len(content) != expected:
        found = "more" if len(content) > expected else f"{len(content):,} bytes"
        raise DataError(f"{where}: {found} found, {expected:,} bytes expected")
    rows = np.frombuffer(content, np.uint8).reshape(BATCH_IMAGES, 1 + ROW_BYTES)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _classes(opened: Opener, meta: str) -> tuple[str, ...]:
    where, stream = opened(meta)
    with stream:
        if meta.endswith(".txt"):
            names = stream.read(2**16).decode("utf-8", "replace").split()
        else:
            names = _unpickle(where, stream).get("label_names")
    if not isinstance(names, list) or len(names) != 10 or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: 10 class names expected")
    return tuple(names)
