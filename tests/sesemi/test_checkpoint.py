"""Checkpoints: how many are kept, and what happens where one is damaged, another's, or half-written."""

import errno
import io
import os
import re
import resource
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from sesemi import checkpoint, cli
from tests.sesemi.runs import CPU, arguments, assert_same_run, files, interrupt_at, train


@pytest.mark.parametrize(("keep", "names"), [
    (1, set()), (2, {"checkpoint-000000009.pt"}), (3, {"checkpoint-000000006.pt", "checkpoint-000000009.pt"})])
def test_so_many_checkpoints_are_kept(prepared, tmp_path, command, keep, names):
    run = tmp_path / "run"
    assert train(command, prepared, run, keep=keep)[0] == 0
    assert {name for name in files(run) if name.startswith("checkpoint-")} == names
    for name in names:
        assert checkpoint.load(run / name, CPU)["trainer"]["step"] == int(name[11:20])
    assert checkpoint.load(run / "checkpoint.pt", CPU)["trainer"]["step"] == 12


def test_without_links_the_checkpoint_before_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    path = tmp_path / "checkpoint.pt"
    for step in range(3):
        checkpoint.save(path, {"step": step}, keep=3, before=step - 1 if step else None)
    assert [checkpoint.load(one, CPU)["step"] for one in (path, *checkpoint.kept(path))] == [2, 1, 0]
    assert not list(tmp_path.glob(".*"))


def damaged(content: bytes, how: str) -> bytes:
    """A checkpoint with one wrong bit in its weights, or cut short, or empty."""
    if how == "bit":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            middle = content.index(archive.read(largest)) + largest.file_size // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
    return content[:len(content) * 2 // 3] if how == "cut" else b""


@pytest.mark.parametrize("how", ["bit", "cut", "empty"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_goes_on(prepared, tmp_path, command, monkeypatch, how):
    """A wrong bit in the weights is no error to PyTorch, whose reader does not look at the checksums."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert train(command, prepared, whole, keep=3)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert train(command, prepared, part, keep=3)[0] == 130
    newest = part / "checkpoint.pt"
    newest.write_bytes(damaged(newest.read_bytes(), how))
    status, _, err = command(cli.main, "evaluate", part)
    assert status == 1
    assert f"{newest}: not a readable checkpoint" in err
    status, _, err = command(cli.main, "train", "--resume", "--run", part)
    assert status == 0
    assert f"{newest}: not a readable checkpoint" in err
    assert "going on from checkpoint-000000006.pt" in err
    assert_same_run(part, whole)
    for path in part.glob("checkpoint*.pt"):  # the damaged one has not taken the place of one before
        checkpoint.load(path, CPU)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), OSError(errno.EIO, "bad sector")])
def test_what_is_not_the_checkpoint_s_fault_loses_none(prepared, tmp_path, command, monkeypatch, error):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        train(command, prepared, run)
    before = {path.name: path.read_bytes() for path in run.glob("checkpoint*")}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
        with suppress(torch.OutOfMemoryError):
            assert command(cli.main, "train", "--resume", "--run", run)[0] == 1
    assert {path.name: path.read_bytes() for path in run.glob("checkpoint*")} == before


def test_an_earlier_checkpoint_of_another_run_takes_nobody_s_place(prepared, tmp_path, command, monkeypatch):
    for name, flags in (("one", {}), ("other", {"lr": 0.1})):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 8)
            train(command, prepared, tmp_path / name, **flags)
    one, (kept,) = tmp_path / "one", checkpoint.kept(tmp_path / "one" / "checkpoint.pt")
    kept.write_bytes((tmp_path / "other" / kept.name).read_bytes())
    (one / "checkpoint.pt").write_bytes(b"damaged")
    status, _, err = command(cli.main, "train", "--resume", "--run", one)
    assert status == 1
    assert f"{kept}: of another run: lr 0.1 found, 0.05 expected" in err
    assert (one / "checkpoint.pt").read_bytes() == b"damaged"


def test_checkpoints_of_steps_that_were_not_gone_on_from_go(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (14, 20):
        checkpoint.save(path.with_name(f"checkpoint-{step:09d}.pt"), {"step": step})
    checkpoint.save(path, {"step": 18}, keep=3)
    checkpoint.save(path, {"step": 19}, keep=3, before=18)
    assert [one.name for one in checkpoint.kept(path)] == ["checkpoint-000000018.pt", "checkpoint-000000014.pt"]


def test_where_every_checkpoint_is_damaged_it_says_so(prepared, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        train(command, prepared, run)
    for path in run.glob("checkpoint*.pt"):
        path.write_bytes(b"junk")
    status, _, err = command(cli.main, "train", "--resume", "--run", run)
    assert status == 1
    assert f"{run / 'checkpoint.pt'}: not a readable checkpoint" in err
    status, _, err = train(command, prepared, run)  # nor is it overwritten
    assert status == 2
    assert "holds an unfinished run" in err


@pytest.mark.parametrize(("flags", "difference"), [({"lr": 0.1}, "lr 0.1 found, 0.05 expected"),
                                                   ({"labels": 4}, "labels 4 found, 8 expected")])
def test_a_checkpoint_of_another_run_is_refused_by_its_difference(prepared, tmp_path, command, monkeypatch, flags,
                                                                  difference):
    """One with other settings, which would fit, copied over this run's."""
    for run, others in (("one", {}), ("other", flags)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4)
            train(command, prepared, tmp_path / run, **others)
    os.replace(tmp_path / "other" / "checkpoint.pt", tmp_path / "one" / "checkpoint.pt")
    for argv in (["train", "--resume", "--run", tmp_path / "one"], ["evaluate", tmp_path / "one"]):
        status, _, err = command(cli.main, *argv)
        assert status == 1
        assert difference in err
        assert "checkpoint.pt: of another run" in err


def test_a_checkpoint_of_other_images_is_refused(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    state = checkpoint.load(run / "checkpoint.pt", CPU)
    state["run"]["images of train"] = "others"
    checkpoint.save(run / "checkpoint.pt", state)
    status, _, err = command(cli.main, "evaluate", run)
    assert status == 1
    assert "checkpoint.pt: of another run: images of train 'others' found, " in err


def limited_child(argv: list, file_bytes: int | None = None, **options) -> subprocess.CompletedProcess:
    """python -m sesemi in a process whose files can grow to so many bytes: what a full disk does to a write."""
    def limit():
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    return subprocess.run([sys.executable, "-m", "sesemi", *map(str, argv)], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, preexec_fn=limit, **options)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_full_disk_leaves_the_checkpoint_before(prepared, tmp_path, command, monkeypatch, share):
    """Wherever in the file the disk is full: PyTorch raises an error of its own over that of the last write."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(command, prepared, whole)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(command, prepared, run)
    before = (run / "checkpoint.pt").read_bytes()
    done = limited_child(["train", "--resume", "--run", run], file_bytes=int(len(before) * share))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert str(run / "checkpoint.pt") in lines[0]
    assert "Traceback" not in done.stderr
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not [name for name in files(run) if name.endswith(".partial")]
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0  # with space again
    assert_same_run(run, whole)


def test_a_checkpoint_of_another_version_is_refused(prepared, tmp_path, command):
    """By both commands, saying what to do; a checkpoint without a version is of the first."""
    run = tmp_path / "run"
    assert train(command, prepared, run)[0] == 0
    state = checkpoint.load(run / "checkpoint.pt", CPU)
    (run / "result.json").unlink()
    for path in run.glob("checkpoint*.pt"):
        torch.save({name: value for name, value in state.items() if name != "version"}, path)
    for words in (("train", "--resume", "--run", run), ("evaluate", run)):
        status, _, err = command(cli.main, *words)
        assert status == 1
        assert re.search(r"error: .*checkpoint\.pt: checkpoint of version 1 found, 4 expected: .*start a new --run$",
                         err.strip().splitlines()[-1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "no space")])
def test_what_ends_a_checkpoint_s_writing_is_what_is_raised(tmp_path, monkeypatch, error):
    """Not PyTorch's own error over it; the checkpoint before stays."""
    path, real, writes = tmp_path / "checkpoint.pt", checkpoint._Watched.write, []
    checkpoint.save(path, {"weights": torch.zeros(9999)})
    before = path.read_bytes()

    def write(self, data):
        writes.append(len(data))
        if len(writes) == 4:
            monkeypatch.setattr(self, "_file", type("Full", (), {"write": staticmethod(fail)}))
        return real(self, data)

    def fail(data):
        raise error
    monkeypatch.setattr(checkpoint._Watched, "write", write)
    with pytest.raises(error if isinstance(error, type) else OSError):
        checkpoint.save(path, {"weights": torch.ones(9999)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
