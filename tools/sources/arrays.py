"""NumPy arrays: an .npz, a folder of .npy files, or one .npy of unlabeled images; read piece by piece."""

import math
import os
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pipelines.common.errors import DataError, UsageError, damage, shown
from pipelines.common.reading import open_regular, read_npy_header
from pipelines.shards.manifest import MAX_CLASSES, MAX_LABELED
from tools.sources import Batches, Source, Split
from tools.sources.images import MAX_PIXELS, RESIZED, TEST_NAMES, to_square

CHUNK = 1024  # images at a time, or fewer where they are large
CHUNK_BYTES = 2**26
LABELS = 2**16  # at a time
DEFLATE = 1032  # to one is the most that zip files compress
CHANNELS = (1, 3, 4)  # gray, RGB, RGB with transparency
PATTERNS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y"))  # MedMNIST, Keras, and the obvious third
PLAIN = (("images", "labels"), ("x", "y"))  # one set, for training


@dataclass(frozen=True)
class Array:
    """An array in a file: for messages, its shape and type, and how its bytes are opened, past the header."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    open: Callable

    def read(self, stream: BinaryIO, size: int) -> bytes:
        """Bytes of what ``open`` gave; DataError where the file is damaged."""
        with damage(f"{self.where}: damaged"):
            return stream.read(size)


def read(path: Path, size: int | None = None) -> Source:
    """Recognise NumPy arrays by their names: ``train_images``, ``train_labels`` (MedMNIST), ``x_train``, ``y_train``
    (Keras), ``images``, ``labels``; test sets likewise.

    Args:
        path: an .npz, a folder of .npy files of those names, or one .npy.
        size: height and width to resize to; None to keep square images as they are.

    Raises:
        DataError: no such arrays, or not uint8 images (N,H,W), (N,H,W,C), (N,C,H,W) with class numbers (N,).
        UsageError: images that are not square, without ``size``.
    """
    arrays = _find(path)
    names = _sets(arrays, path)
    images = {split: arrays[image] for split, (image, _) in names.items()}
    shapes = {_height_width(array) for array in images.values()}
    labels = {split: _labels(arrays[label], images[split]) for split, (_, label) in names.items() if label}
    classes = None
    if "train" in labels:
        count = int(labels["train"].max()) + 1
        classes = tuple(map(str, range(count)))
        for split, values in labels.items():
            if values.max() >= count:
                raise DataError(f"{arrays[names[split][1]].where}: class {values.max()} found, train has 0 to "
                                f"{count - 1}")
    if size is None:
        size = next(iter(shapes))[0]
        if shapes != {(size, size)}:
            raise UsageError(f"--size: needed, since the images are {' and '.join(f'{h}×{w}' for h, w in shapes)}; "
                             f"expected squares of one size")
    splits = tuple(Split(split, array.shape[0], _batches(array, labels.get(split), size), classes)
                   for split, array in images.items())
    return Source("folder", (size, size, 3), splits, {"path": str(path.resolve()), "resized": RESIZED.format(size)})


def _find(path: Path) -> dict[str, Array]:
    """The arrays at ``path`` by name, headers read."""
    with damage(f"{path}: not a readable .npz or .npy",
                missing=f"{path}: not found; --source is an .npz, an .npy or a folder of .npy files"):
        return _archived(path) if path.suffix == ".npz" else _filed(path)


def _archived(path: Path) -> dict[str, Array]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]

    def opener(member: zipfile.ZipInfo) -> Callable:
        @contextmanager
        def opened():
            with open_regular(path) as file, zipfile.ZipFile(file) as archive, archive.open(member) as stream:
                yield stream
        return opened
    return {member.filename[:-4]: _array(f"{path}:{member.filename}", opener(member), _unpacked(member, path))
            for member in members}


def _filed(path: Path) -> dict[str, Array]:
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    return {file.stem if path.is_dir() else "images":
            _array(str(file), lambda file=file: open_regular(file), os.path.getsize(file)) for file in files}


def _unpacked(member: zipfile.ZipInfo, path: Path) -> int:
    """Bytes of a zip file's member, as it says; DataError where no so short one has them, or NumPy does not pack so."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}:{member.filename}: compressed by method {member.compress_type}, expected none or "
                        f"deflate")
    if member.file_size > DEFLATE * min(member.compress_size, os.path.getsize(path)):
        raise DataError(f"{path}:{member.filename}: {member.file_size:,} bytes in {member.compress_size:,} found, more "
                        f"than deflate can hold")
    return member.file_size


def _array(where: str, opened: Callable, size: int) -> Array:
    """Read an array's header, and compare it with the ``size`` of its file in bytes."""
    with damage(f"{where}: not a readable NumPy array", passes=(FileNotFoundError,)), opened() as stream:
        shape, fortran, dtype, start = read_npy_header(stream)
    if fortran and len(shape) > 1:
        raise DataError(f"{where}: in Fortran order; save it again by np.ascontiguousarray")
    if not dtype.hasobject and dtype.itemsize * math.prod(shape) > size - start:
        count = dtype.itemsize * math.prod(shape[1:])
        raise DataError(f"{where}: ends early, at image {(size - start) // count:,} of {shown(shape[0])}" if shape else
                        f"{where}: ends early")

    @contextmanager
    def past_header():
        with opened() as stream:
            stream.read(start)
            yield stream
    return Array(where, shape, dtype, past_header)


def _sets(arrays: dict[str, Array], path: Path) -> dict[str, tuple[str, str | None]]:
    """By split, the names of its images and of its labels, if any."""
    for images, labels in PATTERNS:
        found = {}
        for split, names in (("train", ("train",)), ("test", TEST_NAMES)):
            name = next((name for name in names if images.format(name) in arrays), None)
            if name is not None:
                found[split] = images.format(name), labels.format(name) if labels.format(name) in arrays else None
        if "train" in found:
            break
    else:
        images, labels = next(((i, k) for i, k in PLAIN if i in arrays), (None, None))
        if images is None:
            raise DataError(f"{path}: arrays {', '.join(sorted(arrays)) or 'none'} found; expected train_images and "
                            f"train_labels, x_train and y_train, or images and labels")
        found = {"train": (images, labels if labels in arrays else None)}
    if len({labels is None for _, labels in found.values()}) > 1:
        raise DataError(f"{path}: labels for one of train and test only; expected both or neither")
    return found


def _height_width(array: Array) -> tuple[int, int]:
    """Of (N,H,W), (N,H,W,C) or (N,C,H,W) in uint8; DataError for anything else."""
    shape = array.shape
    if array.dtype == np.uint8 and min(shape, default=0) > 0:
        found = None
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in CHANNELS):
            found = shape[1:3]
        elif len(shape) == 4 and shape[1] in CHANNELS:
            found = shape[2:4]
        if found and math.prod(found) > MAX_PIXELS:
            raise DataError(f"{array.where}: images of {found[0]}×{found[1]} found, expected at most {MAX_PIXELS:,} "
                            f"pixels")
        if found:
            return found
    raise DataError(f"{array.where}: {array.dtype} {shown(shape)} found, expected uint8 images (N, H, W), "
                    f"(N, H, W, C) or (N, C, H, W)")


def _labels(array: Array, images: Array) -> np.ndarray:
    """Class numbers (N,), int32: four bytes an image for the time of the conversion."""
    count = images.shape[0] if images.shape else 0
    if array.dtype.kind not in "iu" or array.shape not in ((count,), (count, 1)):
        raise DataError(f"{array.where}: {array.dtype} {shown(array.shape)} found, expected integers {(count,)}")
    if not 0 < count <= MAX_LABELED:
        raise DataError(f"{array.where}: {count:,} labels found, expected 1 to {MAX_LABELED:,}")
    labels = np.empty(count, np.int32)
    with array.open() as stream:
        for first in range(0, count, LABELS):
            part = labels[first:first + LABELS]
            content = array.read(stream, len(part) * array.dtype.itemsize)
            if len(content) != len(part) * array.dtype.itemsize:
                raise DataError(f"{array.where}: ends early")
            values = np.frombuffer(content, array.dtype)
            if values.min() < 0 or values.max() >= MAX_CLASSES:
                wrong = values[(values < 0) | (values >= MAX_CLASSES)][0]
                raise DataError(f"{array.where}: {wrong} found, expected class numbers from 0 to {MAX_CLASSES - 1:,}")
            part[:] = values
    return labels


def _batches(array: Array, labels: np.ndarray | None, size: int) -> Callable[[], Batches]:
    image_bytes = math.prod(array.shape[1:])
    channels_first = len(array.shape) == 4 and array.shape[3] not in CHANNELS
    chunk = max(1, min(CHUNK, CHUNK_BYTES // image_bytes))

    def batches() -> Batches:
        with array.open() as stream:
            for first in range(0, array.shape[0], chunk):
                count = min(chunk, array.shape[0] - first)
                content = array.read(stream, count * image_bytes)
                if len(content) != count * image_bytes:
                    raise DataError(f"{array.where}: ends early, at image {first + len(content) // image_bytes:,} of "
                                    f"{array.shape[0]:,}")
                images = np.frombuffer(content, np.uint8).reshape(count, *array.shape[1:])
                images = images.transpose(0, 2, 3, 1) if channels_first else images
                yield _squares(images, size), None if labels is None else labels[first:first + count]
    return batches


def _squares(images: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) or (n, H, W, C) to uint8 (n, size, size, 3)."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.shape[1:3] == (size, size):
        if images.ndim == 3:
            return np.repeat(images[..., None], 3, axis=3)
        if images.shape[3] == 3:
            return images
    return np.stack([to_square(Image.fromarray(np.ascontiguousarray(image)), size) for image in images])
