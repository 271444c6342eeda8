"""Wrong use and bad data: one line that names the flag or file, the right status, nothing half-written."""

import io
import json
import os
import shutil

import numpy as np
import pytest
import torch

from sesemi import cli
from sesemi.config import Config
from sesemi.device import parse_device
from sesemi.resolve import resolve
from tests.conftest import random_images, write_set
from tests.sesemi.runs import arguments


def complaint(command, *argv, status: int) -> str:
    """The one line on stderr of a command that must fail so."""
    found, out, err = command(cli.main, *argv)
    assert found == status, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(("flags", "words"), [
    ({"labels": 1}, ["--labels", "1", "from 2, one of each class"]),
    ({"labels": 61}, ["--labels", "61", "to 60, all of"]),
    ({"labels": 0}, ["--labels", "at least 1"]), ({"labels": "many"}, ["--labels", "many"]),
    ({"eval-images": 22}, ["--eval-images", "22", "has 20"]),
    ({"network": "resnet"}, ["--network", "resnet", "wrn"]), ({"network": "wrn-9-1"}, ["--network", "wrn-9-1"]),
    ({"method": "magic"}, ["--method", "magic", "sesemi"]), ({"lr": "-1"}, ["--lr", "-1"]),
    ({"lr": "nan"}, ["--lr", "nan"]), ({"steps": 0}, ["--steps"]), ({"batch-unlabeled": 0}, ["--batch-unlabeled"]),
    ({"gpu": "3"}, ["--gpu", "3", "none for the CPU"]), ({"gpu": "x"}, ["--gpu", "x"]), ({"gpu": "-1"}, ["--gpu"]),
    ({"dataset": None}, ["--dataset", "tools.prepare"]), ({"precision": "fp8"}, ["--precision", "fp8"]),
    ({"seed": "-1"}, ["--seed", "-1"]), ({"ema": 1}, ["--ema", "1.0", "0.999"]), ({"ema": 0}, ["--ema"]),
    ({"dropout": "1"}, ["--dropout", "1.0"]),
    ({"trunk-dropout": "-0.1"}, ["--trunk-dropout", "-0.1"]), ({"preprocess": "pca"}, ["--preprocess", "pca"]),
    ({"extra": "toy", "method": "asl"}, ["--extra", "asl"]),
    ({"extra": "toy", "batch-unlabeled": 3}, ["--batch-unlabeled", "3", "even"]),
    ({"seed": 2**63}, ["--seed", str(2**63)]), ({"network": "convnet", "dataset": "tiny"}, ["convnet", "too small"]),
    ({"nonsense": 1}, ["--nonsense"])])
def test_wrong_use(prepared, tmp_path, command, flags, words):
    for split in ("train", "test"):
        write_set(prepared / "tiny" / split, random_images(20, 8), np.arange(20) % 2, ("even", "odd"), split)
    line = complaint(command, *arguments(prepared, tmp_path / "run", **flags), status=2)
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_gpu_beyond_those_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert parse_device("0") == "cuda:0"
    with pytest.raises(Exception, match=r"--gpu: found '3', expected a GPU's number \(0\)"):
        parse_device("3")
    assert parse_device("none") == "cpu"
    assert parse_device(None) is None


def test_no_command_and_resume_without_run(command):
    assert "train|evaluate" in complaint(command, status=2)
    assert "--run" in complaint(command, "train", "--resume", status=2)


def test_missing_and_damaged_sets(prepared, tmp_path, command):
    run = tmp_path / "run"
    line = complaint(command, *arguments(prepared, run, dataset="nothing"), status=1)
    assert "nothing/train: no shard set here" in line
    shutil.copytree(prepared / "toy" / "train", prepared / "lone" / "train")
    (prepared / "lone" / "test").mkdir()  # and not: no test set
    assert "lone/test: no shard set" in complaint(command, *arguments(prepared, run, dataset="lone"), status=1)
    write_set(prepared / "flat" / "train", random_images(60, 12))
    shutil.copytree(prepared / "toy" / "test", prepared / "flat" / "test")
    assert "has no labels" in complaint(command, *arguments(prepared, run, dataset="flat"), status=2)
    images = prepared / "toy" / "train" / "images-00000.npy"
    images.write_bytes(images.read_bytes()[:-100])
    assert "images-00000.npy" in complaint(command, *arguments(prepared, run), status=1)
    assert not run.exists()


def test_extra_images_that_are_missing_or_of_another_size(prepared, tmp_path, command):
    run = tmp_path / "run"
    line = complaint(command, *arguments(prepared, run, extra="nothing"), status=1)
    assert "--extra nothing: no shard set" in line
    assert "tinyimages-77" in complaint(command, *arguments(prepared, run, extra=77), status=1)
    write_set(prepared / "large" / "train", random_images(20, 16))
    line = complaint(command, *arguments(prepared, run, extra="large"), status=2)
    assert "--extra large: images of 16×16×3 found, 12×12×3 expected" in line
    assert not run.exists()


def saved(content) -> bytes:
    """What torch.save makes of it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def npy_bytes() -> bytes:
    """An array file where an archive of them belongs."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"junk", saved([1]), saved({}), saved({"trainer": 1, "loader": 2})])
def test_a_checkpoint_that_does_not_fit_changes_nothing(prepared, tmp_path, command, content):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    (run / "result.json").unlink()
    (run / "checkpoint.pt").write_bytes(content)
    before = (run / "config.json").read_bytes()
    assert "checkpoint.pt" in complaint(command, "train", "--resume", "--run", run, "--log-every", 7, status=1)
    assert (run / "config.json").read_bytes() == before


def test_half_a_line_of_metrics_is_dropped(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    (run / "result.json").unlink()
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + "[" * 100_000 + '\n{"type": "train", "st')
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0
    assert (run / "metrics.jsonl").read_text() == whole


def test_a_result_that_is_none(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    sound = json.loads((run / "result.json").read_text())
    for content in ("{}", json.dumps(sound | {"test_error": 10**400})):
        (run / "result.json").write_text(content)
        assert "result.json" in complaint(command, "train", "--resume", "--run", run, status=1)
    (run / "result.json").unlink()
    os.mkfifo(run / "result.json")
    assert "result.json: not a regular file" in complaint(command, "train", "--resume", "--run", run, status=1)


def test_a_run_started_on_a_gpu_does_not_go_on_without(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "device": "cuda:0"}))
    line = complaint(command, "train", "--resume", "--run", run, "--gpu", "none", status=2)
    assert "--gpu" in line
    assert "started on cuda:0" in line


def test_a_file_where_the_run_should_be(prepared, tmp_path, command):
    (tmp_path / "run").write_text("mine")
    assert "--run: " in complaint(command, *arguments(prepared, tmp_path / "run"), status=2)
    assert (tmp_path / "run").read_text() == "mine"


def test_damaged_runs(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert "config.json: not found" in complaint(command, "evaluate", run, status=1)
    assert "config.json: not found" in complaint(command, "train", "--resume", "--run", run, status=1)
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    for name, content in (("checkpoint.pt", b""), ("checkpoint.pt", b"junk" * 99), ("whitening.npz", b"junk"),
                          ("config.json", b"{"), ("config.json", b"{}"), ("config.json", b"[]"),
                          ("config.json", b"[" * 100_000),

                          ("config.json", b'{"data_fingerprints": 3}'), ("whitening.npz", npy_bytes()),
                          ("checkpoint.pt", saved([1])), ("checkpoint.pt", saved({})),
                          ("checkpoint.pt", saved({"trainer": {"model": {}}}))):
        kept = (run / name).read_bytes()
        (run / name).write_bytes(content)
        assert name in complaint(command, "evaluate", run, status=1)
        (run / name).write_bytes(kept)
    (run / "checkpoint.pt").unlink()
    assert "no checkpoint here" in complaint(command, "evaluate", run, status=1)


@pytest.mark.parametrize("value", [None, 3, 0, "x", "a\0b", "\ud800", [1], {}, True, 1e999])
def test_a_damaged_configuration_is_one_line(prepared, tmp_path, command, value):
    """Each of its settings, replaced by anything else."""
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    (run / "result.json").unlink()
    sound = json.loads((run / "config.json").read_text())
    for name in Config.__dataclass_fields__:
        (run / "config.json").write_text(json.dumps({**sound, name: value}))
        status, _, err = command(cli.main, "train", "--resume", "--run", run)  # no exception is what is tested
        assert status in (0, 1, 2)
        assert status == 0 or len(err.strip().splitlines()) == 1
        (run / "result.json").unlink(missing_ok=True)


def test_help_has_examples(command):
    for argv in (["train", "--help"], ["evaluate", "--help"]):
        status, out, _ = command(cli.main, *argv)
        assert status == 0
        assert f"python -m sesemi {argv[0]}" in out.split("example")[1]


def test_presets(prepared):
    from pipelines.shards import ShardSet
    train, test = ShardSet(prepared / "toy" / "train"), ShardSet(prepared / "toy" / "test")
    config = resolve(Config("toy", data=str(prepared), device="cpu"), train, test)
    assert (config.steps, config.labels, config.eval_every) == (50 * (60 // 16), 60, 3)
    assert (config.preprocess, config.flips, config.precision) == ("zca", True, "fp32")
    flags = {"steps": 7, "flips": False, "preprocess": "gcn"}
    changed = resolve(Config("toy", data=str(prepared), device="cpu", **flags), train, test)
    assert changed.as_dict() == {**config.as_dict(), **flags}
