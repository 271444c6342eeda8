"""The manifest of a shard set: what it is, without its pixels; checked before anything is believed."""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.errors import DataError

FORMAT = "sesemi-shards"
VERSION = 1
MANIFEST = "manifest.json"


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
class Manifest:
    """What a shard set is, without its pixels.

    ``dataset`` is the kind of data (``cifar10``, ``folder``, ...), which chooses the training defaults;
    ``classes`` is None for an unlabeled set; ``source`` says where the images came from, for people.
    """

    dataset: str
    split: str
    classes: tuple[str, ...] | None
    image_shape: tuple[int, int, int]  # height, width, channels
    num_images: int
    shards: tuple[Shard, ...]
    source: dict = field(default_factory=dict)

    def to_json(self) -> str:
        head = {"format": FORMAT, "version": VERSION, "layout": "NHWC", "dtype": "uint8"}
        return json.dumps(head | asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Manifest":
        """Parse and check a manifest; raises DataError naming ``path`` and the first thing that is wrong."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}); prepare the set again") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise DataError(f"{path}: not a manifest of format {FORMAT!r}")
        if raw.get("version") != VERSION:
            raise DataError(f"{path}: format version {raw.get('version')!r}, this program reads version {VERSION}")
        try:
            shards = tuple(Shard(_count(s["count"]), _shard_file(s["images"]),
                                 None if s["labels"] is None else _shard_file(s["labels"]))
                           for s in raw["shards"])
            classes = None if raw["classes"] is None else tuple(map(str, raw["classes"]))
            height, width, channels = map(_count, raw["image_shape"])
            manifest = cls(str(raw["dataset"]), str(raw["split"]), classes, (height, width, channels),
                           _count(raw["num_images"]), shards, dict(raw["source"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: damaged manifest ({type(error).__name__}: {error}); "
                            f"prepare the set again") from None
        total = sum(shard.count for shard in shards)
        if total != manifest.num_images:
            raise DataError(f"{path}: shards hold {total} images, num_images says {manifest.num_images}")
        for shard in shards:
            if (shard.labels is None) != (classes is None):
                raise DataError(f"{path}: {shard.images.name}: labels and classes do not go together")
            if shard.images.bytes <= shard.count * math.prod(manifest.image_shape):
                raise DataError(f"{path}: {shard.images.name} of {shard.images.bytes} bytes cannot hold "
                                f"{shard.count} images of {manifest.image_shape}")
        return manifest

    @property
    def fingerprint(self) -> str:
        """A hash of the pixels and labels this manifest vouches for: equal for equal data."""
        digest = hashlib.sha256(repr(self.image_shape).encode())
        for shard in self.shards:
            digest.update(shard.images.sha256.encode())
            digest.update(shard.labels.sha256.encode() if shard.labels else b"-")
        return digest.hexdigest()


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**48:
        raise ValueError(f"found {value!r}, expected a positive integer")
    return value


def _shard_file(raw: dict) -> ShardFile:
    name = str(raw["name"])
    if name != os.path.basename(name) or name in {"", ".", ".."}:
        raise ValueError(f"file name {name!r} leaves the set's folder")
    return ShardFile(name, _count(raw["bytes"]), str(raw["sha256"]))
