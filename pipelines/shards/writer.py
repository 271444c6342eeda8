"""Writing a shard set: everything beside its place first, the manifest last, then a rename."""

import math
import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError, UsageError
from pipelines.common.files import made, write_atomically
from pipelines.shards.commit import PARTIAL, beside, clean, commit, is_ours
from pipelines.shards.manifest import JOURNAL, MANIFEST, MAX_BYTES, Manifest, RawFile, Shard
from pipelines.shards.npy import NpyFile, Threads
from pipelines.shards.reader import LABEL_DTYPE, Extents, copy_pixels, sample_hash

SHARD_BYTES = 32 * 2**20  # pixels per shard file: large enough to copy fast, small enough to send or to hash again
PIECE_BYTES, PIECES = 2**22, 4  # pixels are hashed and written by so many, and so many pieces are in memory


class ShardWriter:
    """Write a shard set into ``path``, in the order of ``append``; four pieces of 4 MiB are held in memory.

    Use as a context manager. Everything goes to ``path``.partial; after ``finish()`` leaving the context renames
    that folder to ``path``, unless ``pipelines.shards.commit`` did so together with others before. Leaving it
    otherwise, or by an exception, removes what was written.

    Args:
        path: the set's folder.
        dataset, split, image_shape, classes, source: see Manifest.
        replace: a set that is there.
        expected: how many images will come, where that is known: the last shard is then hashed while it is filled.
        shard_bytes: of pixels in a shard.

    Raises:
        UsageError: ``path`` exists and ``replace`` is False, or it holds something else than a shard set.
        DataError: images of another shape or type, labels out of range or absent, or no image at all.
    """

    def __init__(self, path: Path | str, *, dataset: str, split: str, image_shape: tuple[int, int, int],
                 classes: tuple[str, ...] | None, source: dict, replace: bool = False,
                 expected: int | None = None, shard_bytes: int = SHARD_BYTES):
        self.path = Path(path)
        self.partial = beside(self.path, PARTIAL)
        self.num_images = 0
        self.source = dict(source)  # where the images came from; may be added to until ``finish``
        self._fields = {"dataset": dataset, "split": split, "image_shape": tuple(image_shape), "classes": classes}
        self._image_shape, self._classes = tuple(image_shape), classes
        self._replace = replace
        self._shards: list[Shard] = []
        self._finished = False
        self._expected = expected
        self._capacity = max(1, shard_bytes // math.prod(image_shape))
        self._piece_images = max(1, min(self._capacity, PIECE_BYTES // math.prod(image_shape)))
        self._piece: np.ndarray | None = None  # that is filled; None before the first image of a shard
        self._fill = 0  # images in the piece
        self._busy: deque[tuple[np.ndarray, tuple[Future[None], Future[None]]]] = deque()  # pieces on their way
        self._open: NpyFile | None = None  # the shard that is filled
        self._in_shard = 0  # images in it and in the piece
        self._labels = None if classes is None else np.empty(self._capacity, LABEL_DTYPE)  # theirs
        self._last: tuple[int, NpyFile, NpyFile | None] | None = None  # the shard before it, on its way to the disk

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
            stack.callback(self._abandon)
            self._threads = Threads(*(stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix=name))
                                      for name in Threads._fields))
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
            if self._piece is None:
                self._piece = self._next_piece()
            take = min(len(images) - done, len(self._piece) - self._fill, self._capacity - self._in_shard)
            copy_pixels(images[done:done + take], self._piece[self._fill:self._fill + take])
            if self._labels is not None:
                self._labels[self._in_shard:self._in_shard + take] = labels[done:done + take]
            self._fill += take
            self._in_shard += take
            self.num_images += take
            done += take
            if self._in_shard == self._capacity:
                self.flush()
            elif self._fill == len(self._piece):
                self._hand_over()

    def flush(self) -> None:
        """Have what there is written as a shard, in the background; waits for the shard before it."""
        if not self._in_shard:
            return
        if self._fill:
            self._hand_over()
        self._settle()
        self._open.finish()
        label_file = None
        if self._labels is not None:
            label_file = NpyFile(self._path_of("labels"), self._labels.dtype, (), self._in_shard, self._threads)
            label_file.write(self._labels[:self._in_shard].copy())
            label_file.finish()
        self._last, self._open, self._in_shard = (self._in_shard, self._open, label_file), None, 0

    def finish(self) -> Manifest:
        """Write the last shard and then the manifest; the set appears when the context is left."""
        self.flush()
        self._settle()
        self._busy.clear()
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

    def _abandon(self) -> None:
        """Leave nothing behind, unless it is in place."""
        if self._open is not None:
            self._open.close()
        if not (self.path.parent / JOURNAL).exists():  # else it is complete, and to be put in place by ``recover``
            shutil.rmtree(self.partial, ignore_errors=True)

    def _next_piece(self) -> np.ndarray:
        """One to fill: a new one, or where there are enough, the oldest once it is hashed and written."""
        if len(self._busy) < PIECES - 1:
            return np.empty((self._piece_images, *self._image_shape), np.uint8)
        piece, parts = self._busy.popleft()
        for part in parts:
            part.result()
        return piece

    def _path_of(self, kind: str) -> Path:
        number = len(self._shards) + (self._last is not None)
        return self.partial / f"{kind}-{number:05d}.npy"

    def _hand_over(self) -> None:
        """Have the piece hashed and written."""
        if self._open is None:
            left = self._capacity if self._expected is None else self._expected - self.num_images + self._in_shard
            self._open = NpyFile(self._path_of("images"), self._piece.dtype, self._image_shape,
                                 max(self._in_shard, min(self._capacity, left)), self._threads)
        self._busy.append((self._piece, self._open.write(self._piece[:self._fill])))
        self._piece, self._fill = None, 0

    def _settle(self) -> None:
        """Wait for the shard before this one. Raises what went wrong while writing: a full disk, say."""
        if self._last is not None:
            count, image_file, label_file = self._last
            self._last = None
            self._shards.append(Shard(count, image_file.result(), label_file and label_file.result()))
