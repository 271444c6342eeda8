"""What a conversion promises when its process or its disk fails, or a second one comes along."""

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from pipelines.shards.manifest import JOURNAL
from tests.conftest import random_images, write_set
from tools import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path) -> Path:
    """Arrays of 90 training and 30 test images of 16×16."""
    path = tmp_path / "data.npz"
    np.savez(path, train_images=random_images(90, 16, 1), train_labels=np.arange(90) % 3,
             test_images=random_images(30, 16, 2), test_labels=np.arange(30) % 3)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_conversion_into_one_folder_is_refused(source, tmp_path, command):
    out = tmp_path / "sets"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)  # a lock is of an open file, so this is another's
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    status, _, err = command(prepare.main, "numpy", "--source", source, "--out", out)
    assert status == 2
    assert err == f"error: {out}: another process is at work in it; wait for its end, or choose another folder\n"
    assert names(out) == []
    os.close(descriptor)
    assert command(prepare.main, "numpy", "--source", source, "--out", out)[0] == 0


def test_what_a_killed_conversion_left_is_said_and_goes(source, tmp_path, command):
    out = tmp_path / "sets"
    write_set(out / "x", random_images(5, 16))
    os.replace(out / "x", out / "test.partial")
    status, stdout, _ = command(prepare.main, "numpy", "--source", source, "--out", out)
    assert status == 0
    assert f"{out / 'test.partial'}: left by a conversion that did not finish; starting clean" in stdout
    assert names(out) == ["test", "train"]


@pytest.mark.parametrize("died_at", ["os.replace", "commit.sync_folder"])
def test_an_interrupted_commit_is_finished_and_said(source, tmp_path, command, died_at):
    """The same conversion has then nothing left to do; another one says that there are sets already."""
    out = tmp_path / "sets"
    words = ["numpy", "--source", str(source), "--out", str(out)]
    program = f"""if True:
        import os
        from pipelines.shards import commit
        from tools import prepare
        begin = commit.recover
        def die(*_):
            {died_at} = lambda *_: os._exit(9)
            begin(*_)
        commit.recover = die
        prepare.main({words!r})"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 9
    assert JOURNAL in names(out)
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"was interrupted|no shard set here"):
            ShardSet(out / split)
    status, stdout, _ = command(prepare.main, *words)
    assert status == 0
    assert f"{out}: an interrupted conversion was complete; its sets are now in place: train, test" in stdout
    assert names(out) == ["test", "train"]
    assert np.array_equal(ShardSet(out / "train").read(np.arange(90)), random_images(90, 16, 1))
    assert command(prepare.main, *words)[0] == 2  # that was all: they exist, and are not converted again unasked


def test_force_converts_anew_after_an_interrupted_commit(source, tmp_path, command):
    """The same path with other content: what was complete is not what is asked for."""
    out = tmp_path / "sets"
    words = ["numpy", "--source", source, "--out", out]
    assert command(prepare.main, *words)[0] == 0
    for split in ("train", "test"):
        os.rename(out / split, out / f"{split}.partial")
    (out / JOURNAL).write_text('{"sets": ["train", "test"], "removed": []}')
    np.savez(source, train_images=random_images(50, 16, 3), train_labels=np.arange(50) % 3,
             test_images=random_images(30, 16, 2), test_labels=np.arange(30) % 3)
    assert command(prepare.main, *words, "--force")[0] == 0
    assert len(ShardSet(out / "train")) == 50


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_set_that_is_a_link_is_not_replaced(source, tmp_path, command, target):
    """A link around it, ``shards`` or ``shards/photos``, is followed; this one would leave half of a conversion."""
    out = tmp_path / "sets"
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (out / "train").symlink_to(tmp_path / target)
    status, _, err = command(prepare.main, "numpy", "--source", source, "--out", out, "--force")
    assert status == 2
    assert f"{out / 'train'} exists and is no shard set, is a link" in err
    assert names(out) == ["train"]


def test_the_journal_is_seen_through_links_and_from_inside(source, tmp_path, command, monkeypatch):
    out = tmp_path / "sets"
    assert command(prepare.main, "numpy", "--source", source, "--out", out)[0] == 0
    (out / JOURNAL).write_text('{"sets": ["train", "test"], "removed": []}')
    (tmp_path / "link").symlink_to(out / "train")
    monkeypatch.chdir(out / "train")
    for path in (tmp_path / "link", "."):
        with pytest.raises(DataError, match="was interrupted"):
            ShardSet(path)


def test_nothing_is_written_that_would_be_refused(tmp_path):
    with pytest.raises(DataError, match="manifest"):
        write_set(tmp_path / "s", random_images(4), np.zeros(4), tuple(f"class {n}" for n in range(2**20 + 1)))
    assert names(tmp_path) == []


def test_a_rename_that_fails_loses_nothing(source, tmp_path, command, monkeypatch):
    out = tmp_path / "sets"
    real = os.replace

    def fail(path, to):
        if Path(to).name == "test":
            raise OSError(5, "Input/output error", str(to))
        real(path, to)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        status, _, err = command(prepare.main, "numpy", "--source", source, "--out", out)
    assert status == 1
    assert "Input/output error" in err
    status, stdout, _ = command(prepare.main, "numpy", "--source", source, "--out", out)
    assert status == 0
    assert "its sets are now in place" in stdout
    assert len(ShardSet(out / "test")) == 30


def test_an_interrupted_commit_of_another_source_is_finished_too(source, tmp_path, command):
    out = tmp_path / "sets"
    for split in ("train", "test"):
        write_set(tmp_path / split, random_images(7, 16), np.arange(7) % 2, ("a", "b"), split)
        os.renames(tmp_path / split, out / f"{split}.partial")
    (out / JOURNAL).write_text('{"sets": ["train", "test"], "removed": []}')
    status, stdout, err = command(prepare.main, "numpy", "--source", source, "--out", out)
    assert status == 2
    assert "its sets are now in place: train, test" in stdout
    assert "train exists already; --force replaces it" in err
    assert len(ShardSet(out / "test")) == 7


def test_a_full_disk_leaves_nothing_half_written(source, tmp_path, command):
    """Files can grow to 20,000 bytes here: the first shard of 69,120 does not fit, as on a full disk."""
    out = tmp_path / "sets"
    assert command(prepare.main, "numpy", "--source", source, "--out", out)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for flags, expected in ((["--out", tmp_path / "new"], None), (["--out", out, "--force"], before)):
        done = subprocess.run(
            [sys.executable, "-m", "tools.prepare", "numpy", "--source", source, *map(str, flags)], cwd=ROOT,
            capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "images-00000.npy" in errors[0]
        assert "Traceback" not in done.stderr
        if expected is None:
            assert not (tmp_path / "new").exists()
        else:
            assert {path: path.read_bytes() for path in out.rglob("*.*")} == expected
    assert len(ShardSet(out / "train")) == 90
