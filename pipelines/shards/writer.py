"""Writing a shard set: into a temporary folder, the manifest last, then a rename."""

import dataclasses
import hashlib
import io
import math
import os
import shutil
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError, UsageError
from pipelines.common.files import created_dirs, naming_errors, write_atomically
from pipelines.shards.commit import PARTIAL, beside, clean, commit, is_ours
from pipelines.shards.manifest import JOURNAL, MANIFEST, MAX_BYTES, Manifest, RawFile, Shard, ShardFile
from pipelines.shards.reader import LABEL_DTYPE, Extents, copy_pixels, sample_hash

SHARD_BYTES = 32 * 2**20  # pixels per shard file: large enough to copy fast, small enough to send or to hash again


class ShardWriter:
    """Write a shard set into ``path``, in the order of ``append``.

    Two shards are in memory: one is filled while another thread writes the other, and a third hashes it.

    Use as a context manager. Everything goes to ``path``.partial; after ``finish()`` leaving the context renames that
    folder to ``path``, unless ``commit`` did so together with others. Leaving it otherwise removes what was written.

    Args:
        path: the set's folder.
        dataset, split, image_shape, classes, source: see Manifest.
        replace: a set that is there.
        shard_bytes: of pixels in a shard.

    Raises:
        UsageError: ``path`` exists and ``replace`` is False, or it holds something else than a shard set.
        DataError: images of another shape or type, labels out of range or absent, or no image at all.
        OSError: a full disk, say; it names the file. Raised by the call that waits for the shard.
    """

    def __init__(self, path: Path | str, *, dataset: str, split: str, image_shape: tuple[int, int, int],
                 classes: tuple[str, ...] | None, source: dict, replace: bool = False, shard_bytes: int = SHARD_BYTES):
        self.path, self.partial = Path(path), beside(Path(path), PARTIAL)
        self.num_images = 0
        self.source = dict(source)  # where the images came from; may be added to until ``finish``
        self._set = Manifest(dataset, split, classes, tuple(image_shape), num_images=0, shards=())
        self._replace = replace
        self._capacity = max(1, shard_bytes // math.prod(image_shape))
        self._images = np.empty((2, self._capacity, *image_shape), np.uint8)  # shard n is in n % 2
        self._labels = np.empty((2, self._capacity), LABEL_DTYPE)
        self._filled = 0  # images in the shard that is filled
        self._shards: list[Future[Shard]] = []  # those before it, of which the last may be on its way to the disk
        self._finished = False

    def __enter__(self) -> "ShardWriter":
        if os.path.lexists(self.path) and not is_ours(self.path):
            raise UsageError(f"{self.path} exists and is no shard set, is a link, or holds other files too; choose "
                             f"another --out")
        if self.path.exists() and not self._replace:
            raise UsageError(f"{self.path} exists already; --force replaces it")
        clean([self.path])
        with ExitStack() as stack:
            stack.enter_context(created_dirs(self.path.parent))
            self.partial.mkdir()
            stack.callback(self._abandon)
            self._threads = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="shards"))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, kind, value, traceback) -> None:
        with self._exit:
            if kind is None and self._finished and self.partial.exists():
                commit(self.path.parent, [self.path.name])

    def _abandon(self) -> None:
        if not (self.path.parent / JOURNAL).exists():  # else it is complete, and to be put in place by ``recover``
            shutil.rmtree(self.partial, ignore_errors=True)

    def append(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Add images, uint8 (n, H, W, C), and their labels (n,) where the set has classes."""
        shape, classes = self._set.image_shape, self._set.classes
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise DataError(f"{self.path}: images {images.dtype} {images.shape[1:]} found, uint8 {shape} expected")
        labels = np.zeros(len(images)) if classes is None else np.asarray(labels)
        if labels.shape != (len(images),):
            raise DataError(f"{self.path}: {labels.shape} labels found for {len(images)} images")
        if classes is not None and len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
            raise DataError(f"{self.path}: labels {labels.min()} to {labels.max()} found, "
                            f"0 to {len(classes) - 1} expected")
        self.num_images += len(images)
        while len(images):
            take = min(len(images), self._capacity - self._filled)
            place = len(self._shards) % 2, slice(self._filled, self._filled + take)
            copy_pixels(images[:take], self._images[place])
            self._labels[place] = labels[:take]
            images, labels = images[take:], labels[take:]
            self._filled += take
            if self._filled == self._capacity:
                self._hand_over()

    def _hand_over(self) -> None:
        """Have the shard written, once the one before it is: its memory is the next to be filled."""
        if self._shards:
            self._shards[-1].result()
        number, filled = len(self._shards), slice(self._filled)
        labels = None if self._set.classes is None else self._labels[number % 2, filled]
        self._shards.append(self._threads.submit(_write, self.partial, number, self._images[number % 2, filled], labels,
                                                 self._threads))
        self._filled = 0

    def flush(self) -> None:
        """Write the last shard and free the memory; nothing is appended after it."""
        if self._filled:
            self._hand_over()
        for shard in self._shards:
            shard.result()
        self._filled, self._images, self._labels = 0, None, None

    def finish(self) -> Manifest:
        """``flush``, and write the manifest; the set appears when the context is left."""
        if not self.num_images:
            raise DataError(f"{self.path}: no images found for split {self._set.split!r}")
        self.flush()
        return self._finish(shards=tuple(shard.result() for shard in self._shards))

    def finish_in_place(self, path: Path, ranges: np.ndarray, layout: str) -> Manifest:
        """Instead of ``append`` and ``finish``: a manifest over a raw file's images [first, last) in ``ranges`` (k, 2),
        not a copy; see RawFile.
        """
        path = path.resolve()
        images = Extents.of_raw(path, ranges, self._set.image_shape, layout)
        self.num_images = len(images)
        return self._finish(raw=RawFile(str(path), path.stat().st_size, layout,
                                        tuple((int(a), int(b)) for a, b in ranges), sample_hash(images)))

    def _finish(self, **pixels) -> Manifest:
        manifest = dataclasses.replace(self._set, num_images=self.num_images, source=self.source, **pixels)
        content = manifest.to_json()
        if len(content) > MAX_BYTES:
            raise DataError(f"{self.path}: a manifest of {len(content):,} bytes, expected at most {MAX_BYTES:,}")
        Manifest.from_json(content, self.path / MANIFEST)  # nothing is written that would be refused
        write_atomically(self.partial / MANIFEST, lambda file: file.write(content.encode()))
        self._finished = True
        return manifest


def _write(folder: Path, number: int, images: np.ndarray, labels: np.ndarray | None, helper: Executor) -> Shard:
    return Shard(len(images), _write_npy(folder / f"images-{number:05d}.npy", images, helper),
                 None if labels is None else _write_npy(folder / f"labels-{number:05d}.npy", labels, helper))


def _write_npy(path: Path, array: np.ndarray, helper: Executor) -> ShardFile:
    """Write an array as ``np.save`` would, while ``helper`` hashes it; returns when it is on the disk."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256(header.getvalue())
    hashed = helper.submit(digest.update, array)
    with naming_errors(path), open(path, "xb") as file:
        file.write(header.getvalue())
        file.write(array)
        file.flush()
        os.fsync(file.fileno())
    hashed.result()
    return ShardFile(path.name, len(header.getvalue()) + array.nbytes, digest.hexdigest())
