"""Whole runs from prepared shards to result.json, on the CPU: training, evaluating, interrupting, resuming."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipelines.whitening import Preprocess
from sesemi import checkpoint, cli, experiment, task
from sesemi import run as run_module
from sesemi.config import Config
from tests.conftest import random_images, write_set
from tests.sesemi.runs import (
    arguments,
    interrupt_at,
    metrics,
)

RESULT_FIELDS = {"test_error", "test_images", "labels", "network", "dataset", "method", "steps", "seconds",
                 "images_per_second", "data_wait_fraction", "peak_rss_bytes", "device"}


@pytest.mark.parametrize("method", ["sesemi", "asl", "supervised"])
def test_train_then_evaluate(prepared, tmp_path, command, method):
    run = tmp_path / "run"
    status, out, _ = command(cli.main, *arguments(prepared, run, method=method))
    assert status == 0
    result = json.loads((run / "result.json").read_text())
    assert set(result) == RESULT_FIELDS
    assert (result["labels"], result["steps"], result["test_images"], result["method"]) == (8, 6, 20, method)
    assert 0 <= result["test_error"] <= 1
    assert result["seconds"] > 0
    assert f"test error {result['test_error']:.4f} on 20 images" in out
    lines = metrics(run)
    assert [(line["type"], line["step"]) for line in lines] == [("train", 2), ("train", 4), ("train", 6), ("eval", 6)]
    assert (lines[0]["proxy_loss"] is None) == (method == "supervised")
    config = json.loads((run / "config.json").read_text())
    assert config["preprocess"] == "zca"  # 12×12 pixels of an own folder
    assert None not in [value for name, value in config.items() if name not in {"eval_images", "extra", "ema", "init"}]
    assert list(run.glob("events.out.tfevents.*"))
    status, out, _ = command(cli.main, "evaluate", run)
    assert status == 0
    assert f"test error {result['test_error']:.4f} on 20 images" in out


def test_a_second_run_does_not_overwrite_the_first(prepared, tmp_path, command):
    run = tmp_path / "run"
    assert command(cli.main, *arguments(prepared, run))[0] == 0
    before = (run / "result.json").read_bytes()
    status, _, err = command(cli.main, *arguments(prepared, run))
    assert status == 2
    assert "holds a finished run" in err
    status, out, _ = command(cli.main, "train", "--resume", "--run", run)
    assert status == 0
    assert "is finished: test error" in out
    (run / "result.json").unlink()
    status, _, err = command(cli.main, *arguments(prepared, run))
    assert status == 2
    assert "--resume" in err
    assert command(cli.main, "train", "--resume", "--run", run)[0] == 0  # died before its result: only that is missing
    assert json.loads((run / "result.json").read_text())["test_error"] == json.loads(before)["test_error"]


def test_other_settings_and_other_shards_are_refused(prepared, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    interrupt_at(monkeypatch, 3)
    command(cli.main, *arguments(prepared, run))
    status, _, err = command(cli.main, "train", "--resume", "--run", run, "--lr", "0.1")
    assert status == 2
    assert "--lr: found 0.1" in err
    assert "started with 0.05" in err
    (prepared / "toy" / "train").rename(tmp_path / "old")
    (prepared / "toy" / "test").rename(prepared / "toy" / "train")
    (tmp_path / "old").rename(prepared / "toy" / "test")
    for arguments_ in (["train", "--resume", "--run", run], ["evaluate", run]):
        status, _, err = command(cli.main, *arguments_)
        assert status == 1
        assert "not the shards" in err


@pytest.mark.parametrize(("kind", "flags", "expected"), [
    ("svhn", {}, {"flip": False, "dropout": 0.5, "dtype": torch.float32, "seed": 0, "lr": 0.05}),
    ("cifar10", {}, {"flip": True, "dropout": 0.2, "dtype": torch.float32, "seed": 0, "lr": 0.05}),
    ("svhn", {"flips": True, "dropout": 0.1, "precision": "bf16", "seed": 3, "lr": 0.01},
     {"flip": True, "dropout": 0.1, "dtype": torch.bfloat16, "seed": 3, "lr": 0.01}),
    ("cifar10", {"flips": False, "trunk_dropout": 0.3, "precision": "fp16"},
     {"flip": False, "dropout": 0.2, "trunk_dropout": 0.3, "dtype": torch.float16, "seed": 0, "lr": 0.05})])
def test_settings_reach_what_they_set(tmp_path, monkeypatch, kind, flags, expected):
    """Loader, evaluation, task and trainer as a run makes them."""
    for split in ("train", "test"):
        write_set(tmp_path / kind / split, random_images(20, 12), np.arange(20) % 2, ("a", "b"), split, kind)
    made = {}

    def spy(module, name):
        real = getattr(module, name)

        def make(*positional, **named):
            made[name] = real(*positional, **named), positional, named
            return made[name][0]
        monkeypatch.setattr(module, name, make)
    for name in ("SemiSupervisedLoader", "EvaluationLoader", "Trainer"):
        spy(run_module, name)
    spy(task, "SesemiTask")
    experiment.train(Config(kind, "wrn-16-1", labels=8, steps=1, batch_unlabeled=2, preprocess="gcn", device="cpu",
                            data=str(tmp_path), run=str(tmp_path / "run"), **flags))
    _, _, loader = made["SemiSupervisedLoader"]
    _, _, evaluation = made["EvaluationLoader"]
    model, trainer = made["SesemiTask"][0], made["Trainer"][0]
    assert loader["flip"] == evaluation["flip"] == expected["flip"]
    assert loader["seed"] == evaluation["seed"] == expected["seed"]
    assert loader["noise"] == evaluation["noise"] == 0.15
    assert model.dropout.p == expected["dropout"]
    inside = {layer.p for layer in model.trunk.modules() if isinstance(layer, torch.nn.Dropout)}
    assert inside == ({expected["trunk_dropout"]} if "trunk_dropout" in expected else set())
    assert trainer.base_lr == expected["lr"]
    assert trainer.autocast.fast_dtype == expected["dtype"] or expected["dtype"] == torch.float32
    assert trainer.scaler.is_enabled() == (expected["dtype"] == torch.float16)
    assert trainer.autocast._enabled == (expected["dtype"] != torch.float32)


@pytest.fixture
def extra(prepared):
    """A second set, unlabeled: 40 images of 12×12 as ``more``."""
    return write_set(prepared / "more" / "train", random_images(40, 12, 5))


def proxy_sets(monkeypatch) -> list:
    """Collects what each run's proxy branch is given: a list of sources a run."""
    given = []
    real = run_module.SemiSupervisedLoader

    def loader(labeled, unlabeled, *rest, **options):
        given.append((labeled, unlabeled))
        return real(labeled, unlabeled, *rest, **options)
    monkeypatch.setattr(run_module, "SemiSupervisedLoader", loader)
    return given


def test_extra_images_interrupted_and_resumed(prepared, extra, tmp_path, command, monkeypatch):
    """Half of the proxy branch's images, and of what ZCA is fitted on; to the bit as uninterrupted."""
    flags = {"steps": 12, "extra": "more"}
    given = proxy_sets(monkeypatch)
    assert command(cli.main, *arguments(prepared, tmp_path / "whole", **flags))[0] == 0
    (_, unlabeled), = given
    assert [one.path for one in unlabeled] == [prepared / "toy" / "train", extra.path]
    fitted_on = Preprocess.load(tmp_path / "whole" / "whitening.npz").fitted_on
    assert fitted_on["images"] == [60, 40]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["extra"] == "more"
    assert set(config["data_fingerprints"]) == {"train", "test", "extra"}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert command(cli.main, *arguments(prepared, tmp_path / "part", **flags))[0] == 130
    assert command(cli.main, "train", "--resume", "--run", tmp_path / "part")[0] == 0
    whole, part = (checkpoint.load(tmp_path / name / "checkpoint.pt", torch.device("cpu"))
                   for name in ("whole", "part"))
    assert all(torch.equal(part["trainer"]["task"][name], value) for name, value in whole["trainer"]["task"].items())
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    assert command(cli.main, "evaluate", tmp_path / "part")[0] == 0


def test_a_run_with_other_extra_images_is_not_gone_on_with(prepared, extra, tmp_path, command, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        command(cli.main, *arguments(prepared, tmp_path / "run", extra="more"))
    shutil.rmtree(extra.path)
    write_set(extra.path, random_images(40, 12, 6))
    status, _, err = command(cli.main, "train", "--resume", "--run", tmp_path / "run")
    assert status == 1
    assert f"{extra.path}: not the shards" in err


def test_asl_sees_the_labeled_images_only(prepared, tmp_path, command, monkeypatch):
    given = proxy_sets(monkeypatch)
    assert command(cli.main, *arguments(prepared, tmp_path / "run", method="asl", steps=None, epochs=2))[0] == 0
    (labeled, unlabeled), = given
    assert unlabeled == [labeled]
    assert len(labeled) == 8
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2 * (8 // 2)
    assert [line["step"] for line in metrics(tmp_path / "run") if line["type"] == "eval"] == [8]
    assert Preprocess.load(tmp_path / "run" / "whitening.npz").fitted_on["images"] == [60]  # all training images


def test_extra_by_number_goes_with_cifar_100(prepared, tmp_path, command):
    (prepared / "toy").rename(prepared / "cifar100")
    write_set(prepared / "tinyimages-30" / "train", random_images(30, 12, 5))
    flags = arguments(prepared, tmp_path / "run", dataset=None, labels=None, extra=30)
    assert command(cli.main, *flags)[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["dataset"], result["labels"]) == ("cifar100", 60)


@pytest.mark.parametrize("preprocess", ["gcn", "standardize"])
def test_other_preprocessing(prepared, tmp_path, command, preprocess):
    assert command(cli.main, *arguments(prepared, tmp_path / "run", preprocess=preprocess))[0] == 0
    assert Preprocess.load(tmp_path / "run" / "whitening.npz").kind == preprocess
    assert command(cli.main, "evaluate", tmp_path / "run")[0] == 0


def test_the_test_sample_is_kept(prepared, tmp_path, command):
    assert command(cli.main, *arguments(prepared, tmp_path / "run", **{"eval-images": 10}))[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_images"] == 10
    _, out, _ = command(cli.main, "evaluate", tmp_path / "run")
    assert f"test error {result['test_error']:.4f} on 10 images" in out


def test_the_seed_does_not_change_the_labels_but_all_else(prepared, tmp_path, monkeypatch):
    chosen = []
    real = run_module.Subset
    monkeypatch.setattr(run_module, "Subset", lambda s, indices: chosen.append(indices.tolist()) or real(s, indices))
    results = []
    for seed in (0, 0, 1):
        run = tmp_path / f"run{len(results)}"
        experiment.train(Config("toy", "wrn-10-1", labels=8, steps=2, batch_unlabeled=2, seed=seed, data=str(prepared),
                                run=str(run), device="cpu"))
        results.append(checkpoint.load(run / "checkpoint.pt", torch.device("cpu"))["trainer"]["task"])
    assert len({tuple(one) for one in chosen if len(one) == 8}) == 1
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    assert not torch.equal(results[0]["class_head.weight"], results[2]["class_head.weight"])
