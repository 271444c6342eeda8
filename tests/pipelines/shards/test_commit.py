"""The sets of one conversion appear together or not at all, wherever it dies."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet, commit, writer
from pipelines.shards.manifest import JOURNAL
from pipelines.shards.writer import ShardWriter
from tests.conftest import random_images, write_set

NAMES = ("train", "test")


class Killed(BaseException):
    """In the place of a signal that nobody can catch: passes through every ``except Exception``."""


def complete(out: Path, name: str, seed: int) -> None:
    """A set that is complete but not in place, as before a commit."""
    write_set(out / "elsewhere" / name, random_images(20, 8, seed))
    os.replace(out / "elsewhere" / name, commit.beside(out / name, commit.PARTIAL))


def opened(out: Path) -> dict[str, np.ndarray]:
    """The images of every set that opens."""
    found = {}
    for name in (*NAMES, "extra"):
        try:
            found[name] = ShardSet(out / name).read(np.arange(20))
        except DataError:
            continue
    return found


def die_at(monkeypatch, moment: int) -> None:
    """Have the process die at this rename or removal, before it is done."""
    done = []

    def dying(real):
        def call(*args, **options):
            done.append(real)
            if len(done) == moment:
                raise Killed
            return real(*args, **options)
        return call
    for owner, name in ((os, "replace"), (Path, "unlink"), (commit.shutil, "rmtree"), (commit, "sync_folder")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("replacing", [False, True])
def test_wherever_it_dies_all_sets_are_old_or_new_or_none_opens(tmp_path, monkeypatch, replacing):
    """And whoever comes next finishes what was begun, also after dying at it once more."""
    old = {name: random_images(20, 8, seed) for seed, name in enumerate((*NAMES, "extra"))} if replacing else {}
    new = {name: random_images(20, 8, seed) for seed, name in enumerate(NAMES, 10)}
    begun_and_not_finished = 0
    for moment in range(1, 100):
        out = tmp_path / str(moment)
        for name, images in old.items():
            write_set(out / name, images)
        for seed, name in enumerate(NAMES, 10):
            complete(out, name, seed)
        with monkeypatch.context() as patch:
            die_at(patch, moment)
            try:
                commit.commit(out, NAMES, list(old.keys() - new.keys()))
                died = False
            except Killed:
                died = True
        begun = (out / JOURNAL).exists()
        found = opened(out)
        assert same(found, {}) if begun else same(found, old) or same(found, new), f"at {moment}: {sorted(found)}"
        if begun:
            begun_and_not_finished += 1
            with monkeypatch.context() as patch:
                die_at(patch, 1 + moment % 3)
                with pytest.raises(Killed):
                    commit.recover(out)
            found = opened(out)
            assert same(found, {}) or same(found, new)
        finished_now = commit.recover(out)
        assert not (out / JOURNAL).exists()
        if begun or same(found, new):
            assert same(opened(out), new)
            assert finished_now in ([], list(NAMES))
        else:  # it had not begun: all is as it was, and the new sets still lie beside their places
            assert same(opened(out), old)
            assert all(commit.beside(out / name, commit.PARTIAL).exists() for name in NAMES)
        if not died:
            break
    assert not died
    assert begun_and_not_finished >= (9 if replacing else 4)
    assert sorted(path.name for path in out.iterdir()) == ["elsewhere", *sorted(NAMES)]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"sets": 3, "removed": []}', '{"sets": ["../x"], "removed": []}',
                                     '{"sets": [], "removed": ["/"]}', '{"sets": [".."], "removed": []}'])
def test_a_damaged_journal_touches_nothing(tmp_path, content):
    write_set(tmp_path / "train", random_images(20, 8))
    (tmp_path / JOURNAL).write_text(content)
    with pytest.raises(DataError, match=JOURNAL):
        commit.recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOURNAL, "train"]


def test_a_set_whose_conversion_was_interrupted_says_what_finishes_it(tmp_path):
    write_set(tmp_path / "train", random_images(20, 8))
    (tmp_path / JOURNAL).write_text(json.dumps({"sets": ["train", "test"], "removed": []}))
    with pytest.raises(DataError, match=r"train: its conversion was interrupted.*tools\.prepare finishes it"):
        ShardSet(tmp_path / "train")


def test_what_fails_in_the_background_is_raised(tmp_path, monkeypatch):
    """A shard is written while the next is filled; its error is the caller's, and nothing is left."""
    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(writer.os, "fsync", full)

    def convert():
        with ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None, source={},
                         shard_bytes=2000) as out:
            for _ in range(9):
                out.append(random_images(5, 8))
            out.finish()
    with pytest.raises(OSError, match=r"No space left.*images-00000\.npy"):
        convert()
    assert list(tmp_path.iterdir()) == []
