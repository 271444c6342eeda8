"""The shard format: what is written is read back, and what is damaged is noticed."""

import hashlib
import json
from contextlib import suppress

import numpy as np
import pytest

from pipelines.common.errors import DataError, UsageError
from pipelines.shards import ShardSet, Subset, find_sets
from pipelines.shards.manifest import MANIFEST
from pipelines.shards.writer import ShardWriter
from tests.conftest import random_images, write_set


def test_read_back_in_any_order(tmp_path):
    images, labels = random_images(1000), np.arange(1000) % 4
    shard_set = write_set(tmp_path / "s", images, labels, tuple("abcd"), shard_bytes=130 * 192)
    assert len(shard_set.manifest.shards) == 8
    assert np.array_equal(shard_set.read(np.arange(1000)), images)
    assert np.array_equal(shard_set.labels, labels)
    mixed = np.random.default_rng(0).integers(0, 1000, 400)
    assert np.array_equal(shard_set.read(mixed), images[mixed])
    assert shard_set.read(np.array([], int)).shape == (0, 8, 8, 3)
    for outside in (-1, 1000):
        with pytest.raises(IndexError):
            shard_set.read(np.array([outside]))


def test_files_are_plain_numpy_and_hashed(tmp_path):
    images = random_images(100)
    shard_set = write_set(tmp_path / "s", images, np.zeros(100), ("only",), shard_bytes=30 * 192)
    files = [np.load(tmp_path / "s" / f"images-{i:05d}.npy") for i in range(4)]
    assert np.array_equal(np.concatenate(files), images)
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert manifest["num_images"] == 100
    assert [shard["count"] for shard in manifest["shards"]] == [30, 30, 30, 10]
    for shard in manifest["shards"]:
        for file in (shard["images"], shard["labels"]):
            content = (tmp_path / "s" / file["name"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    assert list(shard_set.verify()) == []


def test_subset(tmp_path):
    images, labels = random_images(50), np.arange(50) % 5
    subset = Subset(write_set(tmp_path / "s", images, labels, tuple("abcde")), np.array([40, 3, 17]))
    assert len(subset) == 3
    assert np.array_equal(subset.read(np.array([2, 0])), images[[40, 3]])
    assert subset.labels.tolist() == [3, 2, 0]


def test_unlabeled_set_has_no_labels(tmp_path):
    shard_set = write_set(tmp_path / "s", random_images(5))
    assert shard_set.classes is None
    with pytest.raises(DataError, match="unlabeled"):
        _ = shard_set.labels


def test_an_exception_leaves_nothing(tmp_path):
    def dies():
        with ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None,
                         source={}) as writer:
            writer.append(random_images(10))
            raise RuntimeError
    with pytest.raises(RuntimeError):
        dies()
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_finish_leaves_nothing(tmp_path):
    with ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None,
                     source={}) as writer:
        writer.append(random_images(10))
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_conversion_is_no_set_and_starts_clean(tmp_path):
    stale = tmp_path / "s.partial"
    stale.mkdir()
    (stale / "images-00099.npy").write_bytes(b"left by a killed conversion")
    with pytest.raises(DataError, match="no shard set here"):
        ShardSet(tmp_path / "s")
    write_set(tmp_path / "s", random_images(10))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["images-00000.npy", MANIFEST, "s"]


def test_existing_set_is_kept_unless_replaced(tmp_path):
    write_set(tmp_path / "s", random_images(10))
    with pytest.raises(UsageError, match="--force"):
        write_set(tmp_path / "s", random_images(20))
    assert len(ShardSet(tmp_path / "s")) == 10
    with ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None, source={},
                     replace=True) as writer:
        writer.append(random_images(20))
        writer.finish()
    assert len(ShardSet(tmp_path / "s")) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(("images", "labels", "message"), [
    (random_images(4, 9), [0] * 4, "expected"), (random_images(4).astype(float), [0] * 4, "uint8"),
    (random_images(4), [0, 1, 2, 3], "0 to 2 expected"), (random_images(4), [0, -1, 2, 1], "0 to 2 expected"),
    (random_images(4), [0], "for 4 images")])
def test_writer_refuses(tmp_path, images, labels, message):
    with pytest.raises(DataError, match=message), ShardWriter(
            tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=("a", "b", "c"),
            source={}) as writer:
        writer.append(images, np.array(labels))
    assert list(tmp_path.iterdir()) == []


def damaged(shard_set: ShardSet) -> list[str]:
    return list(ShardSet(shard_set.path).verify())


def test_changed_bytes_are_named(small_set, tmp_path):
    shard_set = write_set(tmp_path / "s", random_images(100), np.zeros(100), ("a",), shard_bytes=30 * 192)
    path = tmp_path / "s" / "images-00002.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    (line,) = damaged(shard_set)
    assert "images-00002.npy" in line
    assert "SHA-256" in line


@pytest.mark.parametrize("change", ["shorter", "longer", "missing", "swapped"])
def test_other_files_are_noticed_at_open(tmp_path, change):
    write_set(tmp_path / "s", random_images(100), np.zeros(100), ("a",), shard_bytes=30 * 192)
    path = tmp_path / "s" / "images-00003.npy"
    match change:
        case "shorter":
            path.write_bytes(path.read_bytes()[:-1])
        case "longer":
            path.write_bytes(path.read_bytes() + b"x")
        case "missing":
            path.unlink()
        case "swapped":
            path.write_bytes((tmp_path / "s" / "images-00000.npy").read_bytes())
    with pytest.raises(DataError, match=r"images-00003\.npy"):
        ShardSet(tmp_path / "s")


def edited(path, **fields):
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.update(fields)
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(("fields", "message"), [
    ({"format": "other"}, "format"), ({"version": 2}, "reads version 1"), ({"num_images": 11}, "num_images says 11"),
    ({"image_shape": [8, 8]}, "damaged manifest"), ({"shards": "x"}, "damaged manifest"),
    ({"num_images": -1}, "positive integer"), ({"image_shape": [80, 80, 3]}, "cannot hold"),
    ({"classes": ["a"]}, "do not go together"),
    ({"shards": [{"count": 10, "labels": None, "images": {"name": "../x.npy", "bytes": 9, "sha256": ""}}]},
     "leaves the set's folder")])
def test_damaged_manifests(tmp_path, fields, message):
    write_set(tmp_path / "s", random_images(10))
    edited(tmp_path / "s", **fields)
    with pytest.raises(DataError, match=message):
        ShardSet(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_unreadable_manifests(tmp_path, text):
    write_set(tmp_path / "s", random_images(10))
    (tmp_path / "s" / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="manifest"):
        ShardSet(tmp_path / "s")


def test_fingerprint_is_of_the_data(tmp_path):
    images = random_images(10)
    same = [write_set(tmp_path / name, images).fingerprint for name in "ab"]
    assert same[0] == same[1]
    images[3, 2, 1, 0] ^= 1
    assert write_set(tmp_path / "c", images).fingerprint != same[0]


def write_raw(path, images: np.ndarray, ranges, layout: str = "CWH") -> ShardSet:
    """A set over a raw file that holds these images, and some bytes of its own before nothing."""
    file = path.with_suffix(".bin")
    file.write_bytes((images.transpose(0, 3, 2, 1) if layout == "CWH" else images).tobytes())
    with ShardWriter(path, dataset="d", split="train", image_shape=images.shape[1:], classes=None, source={}) as writer:
        writer.finish_in_place(file, np.array(ranges), layout)
    return ShardSet(path)


@pytest.mark.parametrize("layout", ["CWH", "HWC"])
def test_a_raw_file_in_place(tmp_path, layout):
    images = random_images(400, 9)
    images = images[:, :, :6]  # not square, so that rows and columns cannot be taken for one another
    shard_set = write_raw(tmp_path / "s", images, [[3, 50], [50, 51], [200, 400]], layout)
    chosen = np.concatenate([images[3:51], images[200:400]])
    assert len(shard_set) == len(chosen)
    assert np.array_equal(shard_set.read(np.arange(len(chosen))), chosen)
    mixed = np.random.default_rng(0).integers(0, len(chosen), 300)
    assert np.array_equal(shard_set.read(mixed), chosen[mixed])
    with pytest.raises(IndexError):
        shard_set.read(np.array([len(chosen)]))
    assert damaged(shard_set) == []


def test_a_raw_file_that_changed_or_went(tmp_path):
    images = random_images(300)
    shard_set = write_raw(tmp_path / "s", images, [[0, 300]])
    same = write_raw(tmp_path / "same", images, [[0, 300]])
    assert same.fingerprint == shard_set.fingerprint
    assert write_raw(tmp_path / "other", images, [[0, 299]]).fingerprint != shard_set.fingerprint
    file = tmp_path / "s.bin"
    content = file.read_bytes()
    file.write_bytes(content[1:] + b"x")
    (line,) = damaged(shard_set)
    assert "s.bin" in line
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"s\.bin: 57599 bytes found, 57600 expected"):
        ShardSet(tmp_path / "s")
    file.unlink()
    with pytest.raises(DataError, match=r"s\.bin: missing"):
        ShardSet(tmp_path / "s")


@pytest.mark.parametrize(("fields", "message"), [
    ({"path": "relative.bin"}, "absolute"), ({"layout": "WHC"}, "layout"), ({"bytes": 57601}, "whole number"),
    ({"ranges": [[0, 301]]}, "num_images|leave"), ({"ranges": [[290, 300], [0, 290]]}, "out of order"),
    ({"ranges": []}, "no ranges"), ({"ranges": [[0, 150], [140, 290]]}, "out of order"), ({"ranges": 3}, "damaged"),
    ({"bytes": "x"}, "positive integer")])
def test_damaged_manifests_of_raw_files(tmp_path, fields, message):
    write_raw(tmp_path / "s", random_images(300), [[0, 300]])
    raw = json.loads((tmp_path / "s" / MANIFEST).read_text())["raw"]
    edited(tmp_path / "s", raw={**raw, **fields})
    with pytest.raises(DataError, match=message):
        ShardSet(tmp_path / "s")


def test_a_raw_file_beside_shards_is_refused(tmp_path):
    write_raw(tmp_path / "s", random_images(300), [[0, 300]])
    edited(tmp_path / "s", classes=["a"])
    with pytest.raises(DataError, match="neither shards nor classes"):
        ShardSet(tmp_path / "s")


def test_a_set_that_is_replaced_while_it_is_read(tmp_path):
    shard_set = write_set(tmp_path / "s", random_images(100), shard_bytes=30 * 192)
    shard_set.read(np.arange(40))
    with ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None, source={},
                     replace=True, shard_bytes=30 * 192) as writer:
        writer.append(random_images(100, seed=1))
        writer.finish()
    for part in (np.arange(10), np.arange(90, 100)):  # read before or not
        with pytest.raises(DataError, match="replaced or changed while in use"):
            shard_set.read(part)


def test_what_a_killed_conversion_left_is_in_nobody_s_way(tmp_path):
    write_set(tmp_path / "d" / "train", random_images(10))
    for leftover in ("train.old", "train.partial"):
        write_set(tmp_path / "x" / "train", random_images(5)).path.rename(tmp_path / "d" / leftover)
    assert [path.name for path in find_sets(tmp_path / "d")] == ["train"]
    with ShardWriter(tmp_path / "d" / "train", dataset="d", split="train", image_shape=(8, 8, 3), classes=None,
                     source={}, replace=True) as writer:
        writer.append(random_images(20))
        writer.finish()
    assert len(ShardSet(tmp_path / "d" / "train")) == 20
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["train"]


def test_folders_made_for_a_set_that_failed_go_again(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError), ShardWriter(tmp_path / "there" / "new" / "deep" / "s", dataset="d", split="train",
                                               image_shape=(8, 8, 3), classes=None, source={}) as writer:
        writer.finish()
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("position", range(0, 128, 3))
def test_a_damaged_header_of_labels(tmp_path, position):
    shard_set = write_set(tmp_path / "s", random_images(10), np.zeros(10), ("a",))
    path = tmp_path / "s" / "labels-00000.npy"
    content = bytearray(path.read_bytes())
    content[position] = ord("[" if content[position] == ord("(") else "(")
    path.write_bytes(content)
    (line,) = damaged(shard_set)
    assert "labels-00000.npy: SHA-256" in line
    with suppress(DataError):  # that, or a change that does not matter, and nothing else
        assert len(ShardSet(tmp_path / "s").labels) == 10


def test_a_manifest_nested_to_the_sky(tmp_path):
    write_set(tmp_path / "s", random_images(10))
    (tmp_path / "s" / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        ShardSet(tmp_path / "s")
