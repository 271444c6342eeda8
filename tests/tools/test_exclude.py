"""Exact duplicates of another set's images are left out, and counted."""

import json

import numpy as np
import pytest

from pipelines.shards import ShardSet
from tests.conftest import random_images, write_set
from tools import prepare


@pytest.fixture
def evaluated(tmp_path):
    """A dataset of 30 training and 10 test images."""
    images = random_images(40, 8, seed=1)
    for split, part in (("train", images[:30]), ("test", images[30:])):
        write_set(tmp_path / "shards" / "c" / split, part, np.arange(len(part)) % 2, ("a", "b"), split)
    return tmp_path / "shards" / "c", images


def prepared(tmp_path, command, images, *flags) -> tuple[ShardSet, str]:
    np.save(tmp_path / "extra.npy", images)
    status, out, err = command(prepare.main, "numpy", "--source", tmp_path / "extra.npy", "--out", tmp_path / "e",
                               *flags)
    assert status == 0, err
    return ShardSet(tmp_path / "e" / "train"), out


def test_duplicates_of_both_splits_are_dropped(evaluated, tmp_path, command):
    path, theirs = evaluated
    mine = random_images(25, 8, seed=2)
    almost = theirs[5].copy()
    almost[3, 4, 1] ^= 1
    mixed = np.concatenate([mine[:10], theirs[[5, 35]], mine[10:], theirs[[5]], almost[None]])
    shard_set, out = prepared(tmp_path, command, mixed, "--exclude", path)
    assert np.array_equal(shard_set.read(np.arange(len(shard_set))), np.concatenate([mine, almost[None]]))
    assert "3 duplicates left out" in out
    manifest = json.loads((tmp_path / "e" / "train" / "manifest.json").read_text())
    assert manifest["source"]["excluded"] == {"sets": [str(path)], "images": 3}
    assert manifest["num_images"] == 26


def test_off_by_default_and_one_set_alone(evaluated, tmp_path, command):
    path, theirs = evaluated
    shard_set, out = prepared(tmp_path, command, theirs)
    assert len(shard_set) == 40
    assert "left out" not in out
    shard_set, _ = prepared(tmp_path, command, theirs, "--force", "--exclude", path / "test")
    assert np.array_equal(shard_set.read(np.arange(30)), theirs[:30])
    assert len(shard_set) == 30


def test_labels_stay_with_their_images(evaluated, tmp_path, command):
    path, theirs = evaluated
    images = np.concatenate([random_images(4, 8, seed=5), theirs[:2], random_images(4, 8, seed=6)])
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(10) % 3)
    assert command(prepare.main, "numpy", "--source", tmp_path / "data.npz", "--out", tmp_path / "e",
                   "--test-fraction", "0", "--exclude", path)[0] == 0
    assert ShardSet(tmp_path / "e" / "train").labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]


def test_other_sizes_and_nothing_left(evaluated, tmp_path, command):
    path, theirs = evaluated
    for images, status, message in ((random_images(4, 9), 1, "(8, 8, 3) found"), (theirs, 1, "no images found")):
        np.save(tmp_path / "extra.npy", images)
        found, _, err = command(prepare.main, "numpy", "--source", tmp_path / "extra.npy", "--out", tmp_path / "e",
                                "--exclude", path)
        assert found == status
        assert message in err
        assert not (tmp_path / "e").exists()
    found, _, err = command(prepare.main, "numpy", "--source", tmp_path / "extra.npy", "--exclude", tmp_path / "no",
                            "--out", tmp_path / "e")
    assert found == 1
    assert "no shard set here" in err
