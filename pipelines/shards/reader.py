"""The shard set: a folder of plain .npy files and a manifest, written once and streamed many times.

    manifest.json          format and version, classes, image shape, and per file its size and SHA-256
    images-00000.npy ...   uint8, N×H×W×C, in the order of the source
    labels-00000.npy ...   int32, N, where the set has labels

The manifest is written last and the folder renamed into place after it: no manifest, no set. Instead of shards, a
manifest may name a raw file of pixels that is used where it lies.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.common.errors import DataError, shown
from pipelines.common.reading import open_regular, read_npy_header
from pipelines.sampling import evenly_spread
from pipelines.shards.commit import OLD, PARTIAL
from pipelines.shards.manifest import JOURNAL, MANIFEST, MAX_BYTES, Manifest, ShardFile

LABEL_DTYPE = np.dtype("<i4")
SAMPLE_IMAGES = 256  # of a raw file that are hashed


class ImageSource(Protocol):
    """Images by index: a whole shard set, or some images of one."""

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices`` (n,), uint8 (n, H, W, C). Ascending runs are one read each."""
        ...


class Extents:
    """Images of one size in extents of files, read by index; only the positions of the extents are held.

    Args:
        paths: the file of each extent.
        offsets: of its first image in the file, in bytes (k,).
        counts: its images (k,).
        image_shape: (H, W, C).
        layout: how an image's bytes run, slowest axis first: ``HWC`` or ``CWH``.
    """

    def __init__(self, paths: Sequence[Path], offsets: np.ndarray, counts: np.ndarray,
                 image_shape: tuple[int, int, int], layout: str = "HWC"):
        self.image_shape = image_shape
        self._files: dict[Path, tuple[int, int]] = {}  # inode and modification time when first seen
        self._paths, self._offsets, self._layout = paths, offsets, layout
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def of_raw(cls, path: Path, ranges: np.ndarray, image_shape: tuple[int, int, int], layout: str) -> "Extents":
        """Images [first, last) of a raw file, by ``ranges`` (k, 2)."""
        first, last = np.asarray(ranges, dtype=np.int64).T
        return cls([path] * len(first), first * math.prod(image_shape), last - first, image_shape, layout)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices`` (n,), uint8 (n, H, W, C), in the order asked for; ascending runs are one read.

        Plain reads rather than memory maps, so that resident memory does not grow with what has been read.

        Raises:
            IndexError: an index outside the set.
            DataError: a file that ends early.
        """
        indices = np.asarray(indices, dtype=np.int64)
        height, width, channels = self.image_shape
        out = np.empty((len(indices), height * width * channels), np.uint8)
        if len(indices):
            if indices.min() < 0 or indices.max() >= len(self):
                raise IndexError(f"{self._paths[0]}: image index outside 0 to {len(self) - 1}")
            self._read(indices, out)
        if self._layout == "CWH":
            planes, out = out.reshape(-1, channels, width, height), np.empty_like(out)
            copy_pixels(planes.transpose(0, 3, 2, 1), out.reshape(-1, height, width, channels))
        return out.reshape(-1, height, width, channels)

    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        extents = np.searchsorted(self._starts, indices, side="right") - 1
        offsets = self._offsets[extents] + (indices - self._starts[extents]) * out.shape[1]
        breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(extents) != 0)) + 1
        opened, descriptor = None, -1
        try:
            for first, last in pairwise([0, *breaks.tolist(), len(indices)]):
                path = self._paths[extents[first]]
                if path is not opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    opened, descriptor = None, -1
                    opened, descriptor = path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe's end is no wait
                    self.check_unchanged(path, os.fstat(descriptor))
                view, offset = memoryview(out[first:last].reshape(-1)), int(offsets[first])
                while view:
                    got = os.preadv(descriptor, [view], offset)
                    if got == 0:
                        raise DataError(f"{path}: ends early; python -m tools.verify checks a set")
                    view, offset = view[got:], offset + got
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def check_unchanged(self, path: Path, stat: os.stat_result) -> None:
        """Raise DataError where a file is not the one that was first seen."""
        found = stat.st_ino, stat.st_mtime_ns
        if self._files.setdefault(path, found) != found:
            raise DataError(f"{path}: replaced or changed while in use; start again")


def copy_pixels(images: np.ndarray, out: np.ndarray) -> None:
    """Copy images (n, H, W, C); plane by plane where the source is planar, which is faster."""
    if images.strides[-1] > images.strides[-2]:
        for channel in range(images.shape[-1]):
            out[..., channel] = images[..., channel]
    else:
        out[...] = images


def sample_hash(images: ImageSource) -> str:
    """SHA-256 of at most 256 images spread evenly over a source: stands for a raw file too large to hash."""
    count = min(SAMPLE_IMAGES, len(images))
    return hashlib.sha256(images.read(evenly_spread(0, count, len(images), count)).tobytes()).hexdigest()


class ShardSet:
    """A prepared set, opened: sizes checked, nothing loaded.

    Holds the manifest only; pixels are read when asked for.

    Raises:
        DataError: no manifest, a damaged one, a shard file that is missing or has another size, or a conversion that
            died while it put its sets in place.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if any((path.parent / JOURNAL).exists() for path in (self.path, self.path.resolve())):
            raise DataError(f"{self.path}: its conversion was interrupted while its sets were put in place; the same "
                            f"python -m tools.prepare finishes it")
        try:
            with open_regular(manifest, MAX_BYTES) as file:
                text = file.read().decode()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{self.path}: no shard set here ({MANIFEST} not found); "
                            f"python -m tools.prepare makes one") from None
        except UnicodeDecodeError:
            raise DataError(f"{manifest}: not text; prepare the set again") from None
        self.manifest = Manifest.from_json(text, manifest)
        self.image_shape = self.manifest.image_shape
        self.classes = self.manifest.classes
        self.fingerprint = self.manifest.fingerprint
        self._extents = self._find_extents()
        self._check_sizes()

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
        """Images at ``indices`` (n,), uint8 (n, H, W, C), in the order asked for; see ``Extents.read``."""
        return self._extents.read(indices)

    @property
    def bytes_to_verify(self) -> int:
        """Bytes that ``verify`` reads."""
        if self.manifest.raw is not None:
            return min(SAMPLE_IMAGES, len(self)) * math.prod(self.image_shape)
        return sum(file.bytes for file, _, _ in self._files())

    def _files(self) -> list[tuple[ShardFile, np.dtype, tuple[int, ...]]]:
        """All files of the shards, with type and shape of their arrays."""
        return [(file, np.dtype(dtype), (shard.count, *shape)) for shard in self.manifest.shards
                for file, dtype, shape in ((shard.images, np.uint8, self.image_shape), (shard.labels, LABEL_DTYPE, ()))
                if file]

    def _find_extents(self) -> Extents:
        raw, shards = self.manifest.raw, self.manifest.shards
        if raw is not None:
            return Extents.of_raw(Path(raw.path), np.array(raw.ranges), self.image_shape, raw.layout)
        image_bytes = math.prod(self.image_shape)
        counts = np.array([shard.count for shard in shards])
        ends = np.array([shard.images.bytes for shard in shards])  # the pixels end the file
        return Extents([self.path / shard.images.name for shard in shards], ends - counts * image_bytes, counts,
                       self.image_shape)

    def _check_sizes(self) -> None:
        files = [(self.path / file.name, file.bytes) for file, _, _ in self._files()]
        if self.manifest.raw is not None:
            files.append((Path(self.manifest.raw.path), self.manifest.raw.bytes))
        folder = self.path.resolve()
        for path, expected in files:
            try:
                stat = path.stat()
            except FileNotFoundError:
                raise DataError(f"{path}: missing; prepare the set again") from None
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}; prepare the set again") from None
            if path.parent == self.path and path.is_symlink() and path.resolve().parent != folder:
                raise DataError(f"{path}: a link that leaves the set's folder; prepare the set again")
            if stat.st_size != expected:
                raise DataError(f"{path}: {stat.st_size} bytes found, {expected} expected; prepare the set again")
            self._extents.check_unchanged(path, stat)

    def verify(self, progress: Callable[[int], object] = lambda count: None) -> Iterator[str]:
        """Recount and rehash every file, a sample of a raw one; yields one line for each that is not as written.

        ``progress`` is called with the number of bytes hashed since its last call.
        """
        if self.manifest.raw is not None:
            if sample_hash(self) != self.manifest.raw.sample_sha256:
                yield f"{self.manifest.raw.path}: a sample of its images is not as it was; prepare the set again"
            progress(self.bytes_to_verify)
        sound = True
        for file, dtype, shape in self._files():
            path, digest = self.path / file.name, hashlib.sha256()
            with open(path, "rb") as stream:
                while piece := stream.read(2**20):
                    digest.update(piece)
                    progress(len(piece))
            try:
                if digest.hexdigest() != file.sha256:
                    raise DataError(f"{path}: SHA-256 {digest.hexdigest()[:12]}… found, {file.sha256[:12]}… expected")
                load_array(path, dtype, shape)
            except DataError as error:
                sound = False
                yield str(error)
        if sound and self.classes is not None:
            try:
                _ = self.labels
            except DataError as error:
                yield str(error)


def find_sets(path: Path) -> list[Path]:
    """The shard sets at ``path``: itself, or ``train``, ``test``, ... inside it. DataError where there is none."""
    sets = sorted(manifest.parent for manifest in [path / MANIFEST, *path.glob(f"*/{MANIFEST}")]
                  if manifest.exists() and manifest.parent.suffix not in {PARTIAL, OLD})
    if not sets:
        raise DataError(f"{path}: no shard set here ({MANIFEST} not found); python -m tools.prepare makes one")
    return sets


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
        with open_regular(path) as file:
            found, fortran, found_dtype, header = read_npy_header(file)
            if found_dtype != dtype or found != shape:
                raise DataError(f"{path}: {found_dtype} {shown(found)} found, {np.dtype(dtype)} {shape} expected")
            return np.memmap(file, dtype, "r", header, shape, "F" if fortran else "C")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from None
