"""The shard set: a folder of plain .npy files and a manifest, written once and streamed many times.

    manifest.json          format and version, classes, image shape, and per file its size and SHA-256
    images-00000.npy ...   uint8, N×H×W×C, in the order of the source
    labels-00000.npy ...   int32, N, where the set has labels

The manifest is written last and the folder renamed into place after it: no manifest, no set.
"""

import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.errors import DataError, UsageError
from pipelines.files import sync_folder, write_atomically
from pipelines.manifest import MANIFEST, Manifest, Shard, ShardFile

SHARD_BYTES = 64 * 2**20  # pixels per shard file: large enough to copy fast, small enough to buffer
LABEL_DTYPE = np.dtype("<i4")


class ImageSource(Protocol):
    """Images by index: a whole shard set, or some images of one."""

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices`` (n,), uint8 (n, H, W, C). Ascending runs are one read each."""
        ...


class ShardSet:
    """A prepared set, opened: sizes checked, nothing loaded.

    Holds the manifest only; pixels are read when asked for, with plain reads rather than memory maps, so that
    resident memory does not grow with what has been read.

    Raises:
        DataError: no manifest, a damaged one, or a shard file that is missing or has another size.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        manifest = self.path / MANIFEST
        try:
            text = manifest.read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{self.path}: no shard set here ({MANIFEST} not found); "
                            f"python -m tools.prepare makes one") from None
        except UnicodeDecodeError:
            raise DataError(f"{manifest}: not text; prepare the set again") from None
        self.manifest = Manifest.from_json(text, manifest)
        self.image_shape = self.manifest.image_shape
        self.classes = self.manifest.classes
        self.fingerprint = self.manifest.fingerprint
        self._starts = np.cumsum([0] + [shard.count for shard in self.manifest.shards])
        for shard in self.manifest.shards:
            for file in filter(None, (shard.images, shard.labels)):
                self._check_size(file)

    def __len__(self) -> int:
        return self.manifest.num_images

    @cached_property
    def labels(self) -> np.ndarray:
        """All labels, int32 (N,), in source order. Raises DataError for an unlabeled or damaged set."""
        if self.classes is None:
            raise DataError(f"{self.path}: an unlabeled set, expected one with labels")
        parts = [load_array(self.path / shard.labels.name, LABEL_DTYPE, (shard.count,))
                 for shard in self.manifest.shards]
        labels = np.concatenate(parts)
        if labels.min() < 0 or labels.max() >= len(self.classes):
            bad = labels[(labels < 0) | (labels >= len(self.classes))][0]
            raise DataError(f"{self.path}: label {bad} found, expected 0 to {len(self.classes) - 1}")
        return labels

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices`` (n,), uint8 (n, H, W, C), in the order asked for; ascending runs are one read."""
        indices = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(indices), *self.image_shape), np.uint8)
        if not len(indices):
            return out
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"{self.path}: image index outside 0 to {len(self) - 1}")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(shards) != 0)) + 1
        bounds = [0, *breaks.tolist(), len(indices)]
        opened, descriptor = -1, -1
        try:
            for first, last in pairwise(bounds):
                number = int(shards[first])
                if number != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    descriptor = -1
                    descriptor = os.open(self._file(number), os.O_RDONLY)
                    opened = number
                self._read_run(descriptor, number, int(indices[first] - self._starts[number]), out[first:last])
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return out

    def _file(self, number: int) -> Path:
        return self.path / self.manifest.shards[number].images.name

    def _read_run(self, descriptor: int, number: int, first: int, out: np.ndarray) -> None:
        shard = self.manifest.shards[number]
        image_bytes = math.prod(self.image_shape)
        offset = shard.images.bytes - shard.count * image_bytes + first * image_bytes  # the pixels end the file
        view = memoryview(out.reshape(-1))
        while view:
            got = os.preadv(descriptor, [view], offset)
            if got == 0:
                raise DataError(f"{self._file(number)}: ends early; python -m tools.verify {self.path} checks the set")
            view, offset = view[got:], offset + got

    def _check_size(self, file: ShardFile) -> None:
        path = self.path / file.name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise DataError(f"{path}: missing; prepare the set again") from None
        if size != file.bytes:
            raise DataError(f"{path}: {size} bytes found, {file.bytes} expected; prepare the set again")

    def damage(self, progress: Callable[[int], object] = lambda count: None) -> Iterator[str]:
        """Recount and rehash every file; yields one line for each that is not as written.

        ``progress`` is called with the bytes of each piece hashed.
        """
        for shard in self.manifest.shards:
            for file, dtype, shape in ((shard.images, np.uint8, (shard.count, *self.image_shape)),
                                       (shard.labels, LABEL_DTYPE, (shard.count,))):
                if file is None:
                    continue
                path = self.path / file.name
                digest = hashlib.sha256()
                with open(path, "rb") as stream:
                    while piece := stream.read(2**20):
                        digest.update(piece)
                        progress(len(piece))
                if digest.hexdigest() != file.sha256:
                    yield f"{path}: SHA-256 {digest.hexdigest()[:12]}… found, {file.sha256[:12]}… expected"
                    continue
                try:
                    load_array(path, dtype, shape)
                except DataError as error:
                    yield str(error)
        if self.classes is not None:
            try:
                _ = self.labels
            except DataError as error:
                yield str(error)


class Subset:
    """Some images of a shard set, by index: the labeled images of a run, or a sample of a test set."""

    def __init__(self, shard_set: ShardSet, indices: np.ndarray):
        self.indices = np.sort(np.asarray(indices, dtype=np.int64))  # file order; streams shuffle anyway
        self.image_shape = shard_set.image_shape
        self.classes = shard_set.classes
        self._shard_set = shard_set

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of the subset, int32 (n,)."""
        return self._shard_set.labels[self.indices]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices`` into the subset, uint8 (n, H, W, C)."""
        return self._shard_set.read(self.indices[indices])


def load_array(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """Open a .npy file (memory-mapped) that must hold exactly this type and shape; DataError otherwise."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from None
    if array.dtype != dtype or array.shape != shape:
        raise DataError(f"{path}: {array.dtype} {array.shape} found, {np.dtype(dtype)} {shape} expected")
    return array


class ShardWriter:
    """Write a shard set into ``path``, in the order of ``append``; one shard is held in memory.

    Use as a context manager. Everything goes to ``path``.partial; after ``finish()`` leaving the context renames
    that folder to ``path``. Leaving it otherwise, or by an exception, removes what was written.

    Raises:
        UsageError: ``path`` exists and ``replace`` is False.
        DataError: images of another shape or type, labels out of range or absent, or no image at all.
    """

    def __init__(self, path: Path | str, *, dataset: str, split: str, image_shape: tuple[int, int, int],
                 classes: tuple[str, ...] | None, source: dict, replace: bool = False,
                 shard_bytes: int = SHARD_BYTES):
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.num_images = 0
        self._fields = {"dataset": dataset, "split": split, "image_shape": tuple(image_shape),
                        "classes": classes, "source": source}
        self._image_shape, self._classes = tuple(image_shape), classes
        self._replace = replace
        self._shards: list[Shard] = []
        self._finished = False
        self._fill = 0
        capacity = max(1, shard_bytes // math.prod(image_shape))
        self._images = np.empty((capacity, *image_shape), np.uint8)
        self._labels = None if classes is None else np.empty(capacity, LABEL_DTYPE)

    def __enter__(self) -> "ShardWriter":
        if self.path.exists() and not self._replace:
            raise UsageError(f"{self.path} exists already; --force replaces it")
        if self.partial.exists():
            shutil.rmtree(self.partial)  # what a killed conversion left
        self.partial.mkdir(parents=True)
        return self

    def append(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Add images, uint8 (n, H, W, C), and their labels (n,) where the set has classes."""
        if images.dtype != np.uint8 or images.shape[1:] != self._image_shape:
            raise DataError(f"{self.path}: images {images.dtype} {images.shape[1:]} found, "
                            f"uint8 {self._image_shape} expected")
        if self._classes is not None:
            labels = np.asarray(labels)
            if labels.shape != (len(images),):
                raise DataError(f"{self.path}: {labels.shape} labels found for {len(images)} images")
            if len(labels) and (labels.min() < 0 or labels.max() >= len(self._classes)):
                raise DataError(f"{self.path}: labels {labels.min()} to {labels.max()} found, "
                                f"0 to {len(self._classes) - 1} expected")
        done = 0
        while done < len(images):
            take = min(len(images) - done, len(self._images) - self._fill)
            self._images[self._fill:self._fill + take] = images[done:done + take]
            if self._labels is not None:
                self._labels[self._fill:self._fill + take] = labels[done:done + take]
            self._fill += take
            done += take
            if self._fill == len(self._images):
                self._flush()
        self.num_images += len(images)

    def finish(self) -> Manifest:
        """Write the last shard and then the manifest; the set appears when the context is left."""
        if self._fill:
            self._flush()
        if not self.num_images:
            raise DataError(f"{self.path}: no images found for split {self._fields['split']!r}")
        manifest = Manifest(num_images=self.num_images, shards=tuple(self._shards), **self._fields)
        write_atomically(self.partial / MANIFEST, lambda file: file.write(manifest.to_json().encode()))
        self._finished = True
        return manifest

    def __exit__(self, kind, value, traceback) -> None:
        if kind is not None or not self._finished:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        old = self.path.with_name(self.path.name + ".old")
        if self.path.exists():
            os.replace(self.path, old)
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _flush(self) -> None:
        number = len(self._shards)
        images = self._write(f"images-{number:05d}.npy", self._images[:self._fill])
        labels = None
        if self._labels is not None:
            labels = self._write(f"labels-{number:05d}.npy", self._labels[:self._fill])
        self._shards.append(Shard(self._fill, images, labels))
        self._fill = 0

    def _write(self, name: str, array: np.ndarray) -> ShardFile:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        pixels = memoryview(np.ascontiguousarray(array)).cast("B")
        digest = hashlib.sha256(header.getvalue())
        digest.update(pixels)
        with open(self.partial / name, "wb") as file:
            file.write(header.getvalue())
            file.write(pixels)
            file.flush()
            os.fsync(file.fileno())
        return ShardFile(name, len(header.getvalue()) + len(pixels), digest.hexdigest())
