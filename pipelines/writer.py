"""Writing a shard set: everything beside its place first, the manifest last, then a rename."""

import hashlib
import io
import math
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np

from pipelines.commit import PARTIAL, beside, clean, commit, is_ours
from pipelines.errors import DataError, UsageError
from pipelines.files import made, named, write_atomically
from pipelines.manifest import JOURNAL, MANIFEST, MAX_BYTES, Manifest, RawFile, Shard, ShardFile
from pipelines.shards import LABEL_DTYPE, Extents, copy_pixels, sample_hash

PIECE_BYTES = 2**22  # written at a time, while another thread hashes the shard
SHARD_BYTES = 32 * 2**20  # pixels per shard file: large enough to copy fast, small enough to buffer two


class ShardWriter:
    """Write a shard set into ``path``, in the order of ``append``; two shards are held in memory.

    Use as a context manager. Everything goes to ``path``.partial; after ``finish()`` leaving the context renames
    that folder to ``path``, unless ``pipelines.commit`` did so together with others before. Leaving it otherwise, or by
    an exception, removes what was written.

    Raises:
        UsageError: ``path`` exists and ``replace`` is False, or it holds something else than a shard set.
        DataError: images of another shape or type, labels out of range or absent, or no image at all.
    """

    def __init__(self, path: Path | str, *, dataset: str, split: str, image_shape: tuple[int, int, int],
                 classes: tuple[str, ...] | None, source: dict, replace: bool = False,
                 shard_bytes: int = SHARD_BYTES):
        self.path = Path(path)
        self.partial = beside(self.path, PARTIAL)
        self.num_images = 0
        self.source = dict(source)  # where the images came from; may be added to until ``finish``
        self._fields = {"dataset": dataset, "split": split, "image_shape": tuple(image_shape), "classes": classes}
        self._image_shape, self._classes = tuple(image_shape), classes
        self._replace = replace
        self._shards: list[Shard] = []
        self._finished = False
        self._fill = 0
        capacity = max(1, shard_bytes // math.prod(image_shape))

        def buffers() -> tuple[np.ndarray, np.ndarray | None]:  # they take memory when they are filled
            return (np.empty((capacity, *image_shape), np.uint8),
                    None if classes is None else np.empty(capacity, LABEL_DTYPE))
        self._images, self._labels = buffers()
        self._spare = buffers()  # filled while the others are hashed and written
        self._writing: Future[None] | None = None
        self._syncing: list[Future[None]] = []  # files of the last shard, on their way to the disk

    def __enter__(self) -> "ShardWriter":
        if os.path.lexists(self.path) and not is_ours(self.path):
            raise UsageError(f"{self.path} exists and is no shard set, is a link, or holds other files too; choose "
                             f"another --out")
        if self.path.exists() and not self._replace:
            raise UsageError(f"{self.path} exists already; --force replaces it")
        clean([self.path])
        with ExitStack() as stack:
            stack.enter_context(made(self.path.parent))
            self.partial.mkdir()
            stack.callback(self._remove_partial)
            self._hasher = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="hasher"))
            self._syncer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="syncer"))
            self._writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="writer"))
            self._exit = stack.pop_all()
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
            copy_pixels(images[done:done + take], self._images[self._fill:self._fill + take])
            if self._labels is not None:
                self._labels[self._fill:self._fill + take] = labels[done:done + take]
            self._fill += take
            done += take
            if self._fill == len(self._images):
                self.flush()
        self.num_images += len(images)

    def finish(self) -> Manifest:
        """Write the last shard and then the manifest; the set appears when the context is left."""
        self.flush()
        self._wait()
        for sync in self._syncing:
            sync.result()
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
        content = manifest.to_json()
        if len(content) > MAX_BYTES:
            raise DataError(f"{self.path}: a manifest of {len(content):,} bytes, expected at most {MAX_BYTES:,}")
        Manifest.from_json(content, self.path / MANIFEST)  # nothing is written that would be refused
        write_atomically(self.partial / MANIFEST, lambda file: file.write(content.encode()))
        self._finished = True
        return manifest

    def __exit__(self, kind, value, traceback) -> None:
        with self._exit:
            if kind is None and self._finished and self.partial.exists():
                commit(self.path.parent, [self.path.name])

    def _remove_partial(self) -> None:
        if not (self.path.parent / JOURNAL).exists():  # else it is complete, and to be put in place by ``recover``
            shutil.rmtree(self.partial, ignore_errors=True)

    def flush(self) -> None:
        """Have what there is written as a shard, in the background, once those before it are."""
        if not self._fill:
            return
        self._wait()
        buffers = self._images, self._labels
        labels = None if self._labels is None else self._labels[:self._fill]
        self._writing = self._writer.submit(self._write_shard, self._images[:self._fill], labels)
        (self._images, self._labels), self._spare = self._spare, buffers
        self._fill = 0

    def _wait(self) -> None:
        """Raises what went wrong while writing: a full disk, say."""
        if self._writing is not None:
            self._writing.result()

    def _write_shard(self, images: np.ndarray, labels: np.ndarray | None) -> None:
        number = len(self._shards)
        before, self._syncing = self._syncing, []
        image_file = self._write(f"images-{number:05d}.npy", images)
        label_file = None if labels is None else self._write(f"labels-{number:05d}.npy", labels)
        self._shards.append(Shard(len(images), image_file, label_file))
        for sync in before:
            sync.result()

    def _write(self, name: str, array: np.ndarray) -> ShardFile:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        pixels = memoryview(np.ascontiguousarray(array)).cast("B")
        parts = memoryview(header.getvalue()), pixels
        digest = self._hasher.submit(_sha256, parts)
        with named(self.partial / name), ExitStack() as stack:
            file = stack.enter_context(open(self.partial / name, "wb", buffering=0))
            for part in parts:
                while part:
                    part = part[file.write(part[:PIECE_BYTES]):]
            self._syncing.append(self._syncer.submit(_sync, file))
            stack.pop_all()  # it is closed there
        return ShardFile(name, sum(map(len, parts)), digest.result())


def _sync(file: FileIO) -> None:
    with file, named(Path(file.name)):
        os.fsync(file.fileno())


def _sha256(parts: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
