"""The manifest of a shard set: what it is, without its pixels; checked before anything is believed."""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.common.errors import DataError, shown

FORMAT = "sesemi-shards"
VERSION = 1
MANIFEST = "manifest.json"
JOURNAL = ".commit.json"  # in the folder around sets; see pipelines/shards/commit.py
LAYOUTS = ("HWC", "CWH")  # of a raw file
MAX_BYTES = 2**25  # of a manifest; 80,000 shards, which are 2.6 TB, fit
MAX_CLASSES = 2**20
MAX_IMAGE_BYTES = 2**28
MAX_LABELED = 2**28  # images of a labeled set, since their labels are held in memory, four bytes each


@dataclass(frozen=True)
class ShardFile:
    """One .npy file of a shard: its name in the folder, its size in bytes, its SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """``count`` consecutive images, and their labels where the set has any."""

    count: int
    images: ShardFile
    labels: ShardFile | None


@dataclass(frozen=True)
class RawFile:
    """Images used where they lie, in a file of nothing but pixels: ``tiny_images.bin``, say.

    Args:
        path: absolute; the one file outside the set's folder that a manifest may name.
        bytes: its size, a multiple of an image's.
        layout: how an image's bytes run, slowest axis first: ``HWC``, or ``CWH`` as in Tiny Images.
        ranges: the set's images as [first, last) in the file, ascending.
        sample_sha256: of images spread evenly over the set, since hashing all of them would take hours.
    """

    path: str
    bytes: int
    layout: str
    ranges: tuple[tuple[int, int], ...]
    sample_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard set is, without its pixels.

    ``dataset`` is the kind of data (``cifar10``, ``folder``, ...), which chooses the training defaults;
    ``classes`` is None for an unlabeled set; ``source`` says where the images came from, for people. The pixels are
    in ``shards`` or, for an unlabeled set used in place, in ``raw``.
    """

    dataset: str
    split: str
    classes: tuple[str, ...] | None
    image_shape: tuple[int, int, int]  # height, width, channels
    num_images: int
    shards: tuple[Shard, ...]
    source: dict = field(default_factory=dict)
    raw: RawFile | None = None

    def to_json(self) -> str:
        content = {"format": FORMAT, "version": VERSION, "layout": "NHWC", "dtype": "uint8"} | asdict(self)
        if self.raw is None:
            del content["raw"]
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Manifest":
        """Parse and check a manifest; raises DataError naming ``path`` and the first thing that is wrong."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not valid JSON ({error}); prepare the set again") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise DataError(f"{path}: not a manifest of format {FORMAT!r}")
        if raw.get("version") != VERSION:
            raise DataError(f"{path}: format version {shown(raw.get('version'))}, this program reads version {VERSION}")
        try:
            shards = tuple(Shard(_count(s["count"]), _shard_file(s["images"]),
                                 None if s["labels"] is None else _shard_file(s["labels"]))
                           for s in raw["shards"])
            classes = None if raw["classes"] is None else tuple(map(_text, raw["classes"]))
            height, width, channels = map(_count, raw["image_shape"])
            manifest = cls(_text(raw["dataset"]), _text(raw["split"]), classes, (height, width, channels),
                           _count(raw["num_images"]), shards, dict(raw["source"]), _raw_file(raw.get("raw")))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: damaged manifest ({type(error).__name__}: {error}); "
                            f"prepare the set again") from None
        if math.prod(manifest.image_shape) > MAX_IMAGE_BYTES:
            raise DataError(f"{path}: images of {manifest.image_shape} found, expected at most {MAX_IMAGE_BYTES:,} "
                            f"bytes each")
        manifest._check_raw(path)
        total = sum(shard.count for shard in shards)
        if manifest.raw is not None:
            total += sum(last - first for first, last in manifest.raw.ranges)
        if total != manifest.num_images:
            raise DataError(f"{path}: shards hold {total} images, num_images says {manifest.num_images}")
        if classes is not None and (len(classes) > MAX_CLASSES or manifest.num_images > MAX_LABELED):
            raise DataError(f"{path}: {manifest.num_images:,} images of {len(classes):,} classes found, expected at "
                            f"most {MAX_LABELED:,} of {MAX_CLASSES:,}")
        for shard in shards:
            if (shard.labels is None) != (classes is None):
                raise DataError(f"{path}: {shard.images.name}: labels and classes do not go together")
            if shard.images.bytes <= shard.count * math.prod(manifest.image_shape):
                raise DataError(f"{path}: {shard.images.name} of {shard.images.bytes} bytes cannot hold "
                                f"{shard.count} images of {manifest.image_shape}")
        return manifest

    def _check_raw(self, path: Path) -> None:
        if self.raw is None:
            return
        image_bytes = math.prod(self.image_shape)
        ends = [end for both in self.raw.ranges for end in both]
        if self.shards or self.classes is not None:
            raise DataError(f"{path}: a raw file goes with neither shards nor classes")
        if self.raw.layout not in LAYOUTS:
            raise DataError(f"{path}: raw layout {shown(self.raw.layout)} found, expected one of {', '.join(LAYOUTS)}")
        if self.raw.bytes % image_bytes:
            raise DataError(f"{path}: {self.raw.path} of {self.raw.bytes} bytes is no whole number of images of "
                            f"{image_bytes} bytes")
        if ends != sorted(ends) or ends[0] < 0 or ends[-1] * image_bytes > self.raw.bytes:
            raise DataError(f"{path}: ranges that are out of order or leave {self.raw.path}")

    @property
    def fingerprint(self) -> str:
        """A hash of the pixels and labels this manifest vouches for: equal for equal data."""
        digest = hashlib.sha256(repr(self.image_shape).encode())
        if self.raw is not None:
            digest.update(repr((self.raw.bytes, self.raw.layout, self.raw.ranges, self.raw.sample_sha256)).encode())
        for shard in self.shards:
            digest.update(shard.images.sha256.encode())
            digest.update(shard.labels.sha256.encode() if shard.labels else b"-")
        return digest.hexdigest()


def _count(value: object, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**48:
        raise ValueError(f"found {shown(value)}, expected a {'positive ' * least}integer")
    return value


def _text(value: object) -> str:
    """Text that may be a file's name: without NUL, and of characters that the file system has."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"found {shown(value)}, expected text")
    os.fsencode(value)  # raises ValueError
    return value


def plain_name(value: object) -> str:
    """A name inside a folder, as a manifest or a journal may give it; ValueError for one that leads elsewhere."""
    name = _text(value)
    if name != os.path.basename(name) or name in {"", ".", ".."}:
        raise ValueError(f"file name {shown(name)} leaves the set's folder")
    return name


def _raw_file(raw: dict | None) -> RawFile | None:
    if raw is None:
        return None
    path, ranges = _text(raw["path"]), tuple((_count(first, 0), _count(last, 0)) for first, last in raw["ranges"])
    if not os.path.isabs(path) or path != os.path.normpath(path):
        raise ValueError(f"raw file {shown(path)} is not an absolute path without detours")
    if not ranges:
        raise ValueError("no ranges in the raw file")
    return RawFile(path, _count(raw["bytes"]), _text(raw["layout"]), ranges, _text(raw["sample_sha256"]))


def _shard_file(raw: dict) -> ShardFile:
    return ShardFile(plain_name(raw["name"]), _count(raw["bytes"]), _text(raw["sha256"]))
