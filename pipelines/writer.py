"""Writing a shard set: everything beside its place first, the manifest last, then one rename."""

import errno
import hashlib
import io
import math
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipelines.errors import DataError, UsageError
from pipelines.files import sync_folder, write_atomically
from pipelines.manifest import MANIFEST, Manifest, RawFile, Shard, ShardFile
from pipelines.shards import LABEL_DTYPE, Extents, sample_hash

PIECE_BYTES = 2**18  # hashed and written while it is in the CPU's cache
OUR_FILES = re.compile(r"\.?(manifest\.json|(images|labels)-\d+\.npy|(zca|standardize)-\w+\.npz)(\.\d+\.partial)?")
SHARD_BYTES = 64 * 2**20  # pixels per shard file: large enough to copy fast, small enough to buffer


def is_ours(path: Path) -> bool:
    """Whether a folder may be replaced: it is empty, or holds what a conversion and a fit write, and nothing else."""
    return path.is_dir() and all(entry.is_file() and OUR_FILES.fullmatch(entry.name) for entry in path.iterdir())


class ShardWriter:
    """Write a shard set into ``path``, in the order of ``append``; one shard is held in memory.

    Use as a context manager. Everything goes to ``path``.partial; after ``finish()`` leaving the context renames
    that folder to ``path``. Leaving it otherwise, or by an exception, removes what was written.

    Raises:
        UsageError: ``path`` exists and ``replace`` is False, or it holds something else than a shard set.
        DataError: images of another shape or type, labels out of range or absent, or no image at all.
    """

    def __init__(self, path: Path | str, *, dataset: str, split: str, image_shape: tuple[int, int, int],
                 classes: tuple[str, ...] | None, source: dict, replace: bool = False,
                 shard_bytes: int = SHARD_BYTES):
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._old = self.path.with_name(self.path.name + ".old")
        self.num_images = 0
        self.source = dict(source)  # where the images came from; may be added to until ``finish``
        self._fields = {"dataset": dataset, "split": split, "image_shape": tuple(image_shape), "classes": classes}
        self._image_shape, self._classes = tuple(image_shape), classes
        self._replace = replace
        self._shards: list[Shard] = []
        self._finished = False
        self._fill = 0
        capacity = max(1, shard_bytes // math.prod(image_shape))
        self._images = np.empty((capacity, *image_shape), np.uint8)  # takes memory when it is filled
        self._labels = None if classes is None else np.empty(capacity, LABEL_DTYPE)

    def __enter__(self) -> "ShardWriter":
        for path in (self.path, self.partial, self._old):
            if path.exists() and not is_ours(path):
                raise UsageError(f"{path} exists and is no shard set, or holds other files too; choose another --out")
        if self.path.exists() and not self._replace:
            raise UsageError(f"{self.path} exists already; --force replaces it")
        self._created = [folder for folder in self.partial.parents if not folder.exists()]
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
        return self._finish(Manifest(num_images=self.num_images, shards=tuple(self._shards), source=self.source,
                                     **self._fields))

    def finish_in_place(self, path: Path, ranges: np.ndarray, layout: str) -> Manifest:
        """Instead of ``append`` and ``finish``: a manifest over images [first, last) of a raw file, not a copy.

        Args:
            path: a file of nothing but pixels, whose size is a multiple of an image's.
            ranges: (k, 2), ascending.
            layout: see RawFile.
        """
        path = path.resolve()
        images = Extents.of_raw(path, ranges, self._image_shape, layout)
        raw = RawFile(str(path), path.stat().st_size, layout, tuple((int(a), int(b)) for a, b in ranges),
                      sample_hash(images))
        self.num_images = len(images)
        return self._finish(Manifest(num_images=len(images), shards=(), raw=raw, source=self.source, **self._fields))

    def _finish(self, manifest: Manifest) -> Manifest:
        write_atomically(self.partial / MANIFEST, lambda file: file.write(manifest.to_json().encode()))
        self._finished = True
        return manifest

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None and self._finished:
                self._appear()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
            for folder in self._created:  # those that hold nothing go again, the innermost first
                with suppress(OSError):
                    folder.rmdir()

    def _appear(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)  # what a killed conversion left
        if self.path.exists():
            os.replace(self.path, self._old)
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(self._old, ignore_errors=True)

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
        digest = hashlib.sha256()
        with open(self.partial / name, "wb", buffering=0) as file:
            for part in (memoryview(header.getvalue()), pixels):
                for first in range(0, len(part), PIECE_BYTES):
                    piece = part[first:first + PIECE_BYTES]
                    digest.update(piece)
                    if file.write(piece) != len(piece):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.partial / name))
            os.fsync(file.fileno())
        return ShardFile(name, len(header.getvalue()) + len(pixels), digest.hexdigest())
