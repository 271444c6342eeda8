"""Fuzzing of shard sets by their manifests: JSON whose values are replaced, left out, doubled and swapped."""

import copy
import functools
import json
import random
import tempfile
from pathlib import Path

import numpy as np

from pipelines.shards import ShardSet, manifest
from pipelines.shards.writer import ShardWriter
from tests.fuzz.mutate import INTEGERS, bytewise
from tests.fuzz.target import READ, Target, pixels


@functools.cache
def manifest_seeds() -> list[bytes]:
    """One of a labeled set in two shards, and one over a raw file; ``manifest_reader`` makes the files they name."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        make_sets(Path(name))
        for path in ("labeled", "raw"):
            content = (Path(name) / path / manifest.MANIFEST).read_text()
            found.append(content.replace(name, "/@").encode())
    return found


def make_sets(path: Path) -> None:
    """``labeled`` and ``raw``, and the file that ``raw`` is over."""
    fields = {"dataset": "folder", "split": "train", "image_shape": (4, 4, 3)}
    with ShardWriter(path / "labeled", **fields, classes=("a", "b"), source={"path": "x"},
                     shard_bytes=8 * 48) as writer:
        writer.append(pixels(12, 4), np.arange(12) % 2)
        writer.finish()
    (path / "raw.bin").write_bytes(pixels(12, 4).tobytes())
    with ShardWriter(path / "raw", **fields, classes=None, source={}) as writer:
        writer.finish_in_place(path / "raw.bin", np.array([[0, 3], [4, 12]]), "CWH")


VALUES = (None, True, False, "", "x", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "é" * 300, 0.5, 1e999, [], {},
          [[]], [None], [0, 1], {"": None}, [0] * 300, *INTEGERS)


def places(value: object) -> list[tuple]:
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutate_manifest(draw: random.Random, seed: bytes) -> bytes:
    """Values replaced, left out, doubled and swapped; or bytes."""
    if draw.random() < 0.25:
        return bytewise(draw, seed, draw.choice(manifest_seeds()))
    content = json.loads(seed)
    for _ in range(draw.choice((1, 1, 2, 4))):
        container, key = draw.choice(places(content) or [([0], 0)])
        match draw.randrange(6):
            case 0 | 1 | 2:
                container[key] = copy.deepcopy(draw.choice(VALUES))
            case 3:
                del container[key]
            case 4 if isinstance(container, list):
                container.insert(key, container[key])
            case 5:
                other, place = draw.choice(places(content))
                container[key] = json.loads(json.dumps(other[place]))
            case _ if isinstance(container[key], int):
                container[key] += draw.choice((-1, 1))
            case _:
                container[key] = [container[key]]
    return json.dumps(content).encode()


def manifest_reader(path: Path) -> READ:
    """Past the header: JSON of our format and version, whose fields are looked at."""
    if not (path / "labeled").exists():
        make_sets(path)
    noted, original = [], json.loads

    class Fields(dict):
        def __getitem__(self, key):
            noted.append(key)
            return super().__getitem__(key)

    def loads(text, **options):
        value = original(text, **options)
        return Fields(value) if isinstance(value, dict) else value
    manifest.json = type("json", (), {"loads": staticmethod(loads), "dumps": json.dumps})

    def read(content: bytes, past: list) -> None:
        noted.clear()
        where = path / ("raw" if b'"ranges"' in content else "labeled")
        (where / manifest.MANIFEST).write_bytes(content.replace(b"/@", str(path).encode()))
        try:
            found = ShardSet(where)
            assert len(found) == found.manifest.num_images > 0
            assert len(found.fingerprint) == 64
            some = np.unique(np.linspace(0, len(found) - 1, 5).astype(int))
            assert found.read(some).shape == (len(some), *found.image_shape)
            if found.classes is not None:
                assert len(found.labels) == len(found)
            for line in found.verify():
                assert "\n" not in line
        finally:
            past += noted
    return read


TARGETS = {"manifest": Target(manifest_seeds, mutate_manifest, manifest_reader)}
