"""Sets of somebody else that lie of themselves, lead elsewhere or wait: refused in one line, and nothing is taken."""

import json
import os

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from pipelines.shards.manifest import MANIFEST
from tests.conftest import random_images, write_set
from tests.pipelines.shards.test_reader import edited


def shard(path, **images) -> list[dict]:
    """The shards of a set of one, of which a file's entries are replaced."""
    (only,) = json.loads((path / MANIFEST).read_text())["shards"]
    return [{**only, "images": {**only["images"], **images}}]


@pytest.mark.parametrize("name", ["..", ".", "", "/etc/passwd", "../s/images-00000.npy", "a/b", "images\0.npy", 3, None,
                                  ["x"], "\ud800.npy", "x" * 10**6, "x" * 300])
def test_names_that_leave_the_folder_or_are_none(tmp_path, frugal, name):
    write_set(tmp_path / "s", random_images(10))
    edited(tmp_path / "s", shards=shard(tmp_path / "s", name=name))
    with frugal(), pytest.raises(DataError) as refused:
        ShardSet(tmp_path / "s")
    assert str(tmp_path / "s") in str(refused.value)
    if name != "x" * 10**6:
        assert len(str(refused.value)) < 600


def test_a_link_that_leaves_the_folder(tmp_path):
    write_set(tmp_path / "s", random_images(10))
    outside = tmp_path / "outside.npy"
    (tmp_path / "s" / "images-00000.npy").rename(outside)
    (tmp_path / "s" / "images-00000.npy").symlink_to(outside)
    with pytest.raises(DataError, match=r"images-00000\.npy: a link that leaves the set's folder"):
        ShardSet(tmp_path / "s")


def test_links_to_a_set_and_inside_one(tmp_path):
    images = random_images(10)
    write_set(tmp_path / "s", images)
    (tmp_path / "s" / "images-00000.npy").rename(tmp_path / "s" / "first.npy")
    (tmp_path / "s" / "images-00000.npy").symlink_to("first.npy")
    (tmp_path / "link").symlink_to("s")
    assert np.array_equal(ShardSet(tmp_path / "link").read(np.arange(10)), images)


@pytest.mark.parametrize("name", [MANIFEST, "images-00000.npy", "labels-00000.npy"])
def test_a_pipe_is_not_waited_for(tmp_path, frugal, name):
    write_set(tmp_path / "s", random_images(10), np.zeros(10), ("a",))
    (tmp_path / "s" / name).unlink()
    os.mkfifo(tmp_path / "s" / name)
    with frugal(), pytest.raises(DataError, match=name):
        ShardSet(tmp_path / "s")


def test_a_pipe_in_the_place_of_a_file_while_it_is_read(tmp_path, frugal):
    shard_set = write_set(tmp_path / "s", random_images(10), np.zeros(10), ("a",))
    for name in ("images-00000.npy", "labels-00000.npy"):
        (tmp_path / "s" / name).unlink()
        os.mkfifo(tmp_path / "s" / name)
    with frugal(), pytest.raises(DataError, match="replaced or changed while in use"):
        shard_set.read(np.arange(10))
    with frugal(), pytest.raises(DataError, match="not a regular file"):
        _ = shard_set.labels


def deep(depth: int) -> list:
    """A list in a list in a list, as deep as JSON's reader goes along."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("fields", "message"), [
    ({"num_images": 10**12}, "shards hold 10 images, num_images says 1000000000000"),
    ({"num_images": 10**30}, "positive integer"), ({"num_images": True}, "positive integer"),
    ({"num_images": 10.0}, "positive integer"), ({"num_images": 1e999}, "positive integer"),
    ({"image_shape": [2**40, 2**40, 2**40]}, "expected at most 268,435,456 bytes"),
    ({"image_shape": [2**14, 2**15, 1]}, "expected at most 268,435,456 bytes"),
    ({"classes": [["a"]]}, "expected text"), ({"classes": deep(900)}, "expected text"),
    ({"classes": [1]}, "expected text"), ({"classes": {"a": 1}}, "do not go together"),
    ({"classes": ["a"] * (2**20 + 1)}, r"expected at most .* of 1,048,576"),
    ({"version": deep(900)}, r"format version \(a list\)"), ({"version": "2" * 10**6}, "format version '2222"),
    ({"version": 3}, "format version 3, this program reads version 1"), ({"dataset": None}, "expected text"),
    ({"split": deep(5)}, "expected text"), ({"source": 3}, "damaged manifest"), ({"shards": [[]]}, "damaged manifest"),
    ({"shards": {}}, "shards hold 0 images"), ({"shards": []}, "shards hold 0 images"),
    ({"raw": {"path": "/x", "bytes": 1, "layout": "HWC", "ranges": [[0, 1e999]], "sample_sha256": ""}}, "damaged"),
    ({"raw": {"path": "/x/../y", "bytes": 192, "layout": "HWC", "ranges": [[0, 1]], "sample_sha256": ""}}, "detours"),
    ({"raw": {"path": "/x\0", "bytes": 192, "layout": "HWC", "ranges": [[0, 1]], "sample_sha256": ""}}, "text"),
    ({"raw": {"path": "/x", "bytes": 192, "layout": "HWC", "ranges": [[0.5, 1]], "sample_sha256": ""}}, "integer")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_manifests_that_lie(tmp_path, frugal, fields, message):
    write_set(tmp_path / "s", random_images(10))
    edited(tmp_path / "s", **fields)
    with frugal(128), pytest.raises(DataError, match=message) as refused:
        ShardSet(tmp_path / "s")
    assert len(str(refused.value)) < 600


def test_a_manifest_larger_than_any(tmp_path, frugal):
    write_set(tmp_path / "s", random_images(10))
    with open(tmp_path / "s" / MANIFEST, "w") as file:
        file.truncate(10**11)
    with frugal(), pytest.raises(DataError, match=r"manifest\.json: 100,000,000,000 bytes found, expected at most"):
        ShardSet(tmp_path / "s")


def test_a_sparse_set_of_10_12_labeled_images(tmp_path, frugal):
    """Its files are as large as it says, and take no room on the disk: its labels would take 4 TB of memory."""
    count = 10**12
    write_set(tmp_path / "s", np.zeros((1, 1, 1, 1), np.uint8), [0], ("a",))
    (only,) = json.loads((tmp_path / "s" / MANIFEST).read_text())["shards"]
    only["count"] = count
    for kind, size in (("images", count), ("labels", 4 * count)):
        only[kind]["bytes"] = size + 128
        try:
            os.truncate(tmp_path / "s" / only[kind]["name"], size + 128)
        except OSError as error:
            pytest.skip(f"needs a file system that holds a sparse file of 4 TB: {error}")
    edited(tmp_path / "s", shards=[only], num_images=count)
    with frugal(), pytest.raises(DataError, match="1,000,000,000,000 images of 1 classes found, expected at most"):
        ShardSet(tmp_path / "s")


@pytest.mark.parametrize("header", [b"PK\x03\x04", b"\x80\x04]", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"])
def test_labels_that_are_no_npy(tmp_path, frugal, header):
    write_set(tmp_path / "s", random_images(10), np.zeros(10), ("a",))
    path = tmp_path / "s" / "labels-00000.npy"
    path.write_bytes(header + path.read_bytes()[len(header):])
    with frugal(), pytest.raises(DataError, match=r"labels-00000\.npy: not a readable \.npy"):
        _ = ShardSet(tmp_path / "s").labels


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(4611686018427387904, 4)", "(-10,)", "(11,)", "(10, 1)"])
def test_labels_whose_shape_lies(tmp_path, frugal, shape):
    write_set(tmp_path / "s", random_images(10), np.zeros(10), ("a",))
    path = tmp_path / "s" / "labels-00000.npy"
    content = path.read_bytes()
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path.write_bytes(content[:10] + header + content[128:])
    with frugal(), pytest.raises(DataError, match=r"labels-00000\.npy"):
        _ = ShardSet(tmp_path / "s").labels


@pytest.mark.parametrize("label", [-1, 1, 2**31 - 1])
def test_labels_out_of_range(tmp_path, label):
    write_set(tmp_path / "s", random_images(10), np.zeros(10), ("a",))
    path = tmp_path / "s" / "labels-00000.npy"
    path.write_bytes(path.read_bytes()[:-4] + np.int32(label).tobytes())
    with pytest.raises(DataError, match=f"label {label} found, expected 0 to 0"):
        _ = ShardSet(tmp_path / "s").labels
