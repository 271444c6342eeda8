"""Datasets as people have them: with an unlabeled set, without a test set, with few images, with unequal classes."""

import json
import re
import shutil

import numpy as np
import pytest

from pipelines.loader import SemiSupervisedLoader
from pipelines.shards import Joined, ShardSet, Subset
from pipelines.whitening import Preprocess
from sesemi import cli
from tests.conftest import random_images, write_set
from tests.sesemi.runs import arguments, assert_same_run, interrupt_at, metrics

SIZE = 12


def coloured(numbers: np.ndarray) -> np.ndarray:
    """Images of one colour each, by which they can be told apart under noise: uint8 (n, 12, 12, 3)."""
    colours = np.stack([numbers // 256, numbers // 16 % 16, numbers % 16], axis=1) * 16
    return np.broadcast_to(colours.astype(np.uint8)[:, None, None], (len(numbers), SIZE, SIZE, 3)).copy()


def numbers_of(images: np.ndarray, run) -> np.ndarray:
    """Which images these are, (n, 3, 12, 12), standardised as the run did."""
    fitted = Preprocess.load(run / "whitening.npz").fitted
    pixels = images.mean(axis=(2, 3)) * fitted["deviation"].numpy() + fitted["mean"].numpy()
    red, green, blue = np.round(pixels / 16).astype(int).T
    return red * 256 + green * 16 + blue


@pytest.fixture
def mine(tmp_path):
    """shards/mine: 30 labeled images of three classes, 70 unlabeled ones and 6 test images, and shards/other."""
    for split, first, count, labeled in (("train", 0, 30, True), ("unlabeled", 30, 70, False), ("test", 100, 6, True)):
        write_set(tmp_path / "shards" / "mine" / split, coloured(np.arange(first, first + count)),
                  np.arange(count) % 3 if labeled else None, ("ant", "bee", "cow") if labeled else None, split)
    for split, first, count in (("train", 200, 20), ("unlabeled", 220, 28)):
        write_set(tmp_path / "shards" / "other" / split, coloured(np.arange(first, first + count)), split=split)
    return tmp_path / "shards"


def seen(monkeypatch) -> tuple[list, list]:
    """What every step's batch has of labeled images, and of unlabeled ones (the first of their six views)."""
    labeled, unlabeled, real = [], [], SemiSupervisedLoader.__next__

    def next_batch(self):
        batch = real(self)
        labeled.append(batch.labeled.images.numpy().copy())
        if batch.unlabeled is not None:
            unlabeled.append(batch.unlabeled.images[::6].numpy().copy())
        return batch
    monkeypatch.setattr(SemiSupervisedLoader, "__next__", next_batch)
    return labeled, unlabeled


def said(err: str) -> list[str]:
    """The parts of the line about the data."""
    (line,) = [line for line in err.splitlines() if line.startswith("data: ")]
    return line.removeprefix("data: ").split("; ")


def test_every_image_is_seen_as_often_as_the_line_says(mine, tmp_path, command, monkeypatch):
    labeled, unlabeled = seen(monkeypatch)
    run = tmp_path / "run"
    status, _, err = command(cli.main, *arguments(mine, run, dataset="mine", labels=6, steps=None, epochs=2,
                                                  preprocess="standardize", **{"batch-unlabeled": 10}))
    assert status == 0, err
    assert said(err) == ["6 labeled images (ant 2, bee 2, cow 2), each seen 200 times",
                         "in the proxy branch 100 of train and unlabeled, each seen 2 times", "20 steps, 10 an epoch",
                         "6 test images"]
    counts = np.bincount(numbers_of(np.concatenate(unlabeled), run), minlength=300)
    assert counts.tolist() == [2] * 100 + [0] * 200
    assert np.bincount(numbers_of(np.concatenate(unlabeled[:10]), run)).tolist() == [1] * 100  # once an epoch
    found, counts = np.unique(numbers_of(np.concatenate(labeled), run), return_counts=True)
    assert (len(found), counts.tolist()) == (6, [200] * 6)
    config = json.loads((run / "config.json").read_text())
    assert config["labels_by_class"] == {"ant": 2, "bee": 2, "cow": 2}
    assert list(config["data_fingerprints"]) == ["train", "unlabeled", "test"]
    assert [line["epoch"] for line in metrics(run) if line["type"] == "train"][-1] == 2


def test_extra_images_are_half_of_each_step(mine, tmp_path, command, monkeypatch):
    _, unlabeled = seen(monkeypatch)
    run = tmp_path / "run"
    status, _, err = command(cli.main, *arguments(mine, run, dataset="mine", extra="other", labels=30, steps=30,
                                                  preprocess="standardize", **{"batch-unlabeled": 10}))
    assert status == 0, err
    assert said(err)[1:3] == ["in the proxy branch 100 of train and unlabeled, each seen 1.5 times + 48 of extra and "
                              "extra_unlabeled, each seen 3.1 times", "30 steps, 20 an epoch"]
    numbers = numbers_of(np.concatenate(unlabeled), run).reshape(30, 10)
    assert ((numbers < 100).sum(axis=1) == 5).all()
    counts = np.bincount(numbers.ravel(), minlength=248)
    assert set(counts[:100]) == {1, 2}
    assert not counts[100:200].any()
    assert set(counts[200:]) == {3, 4}


@pytest.mark.parametrize("method", ["supervised", "asl"])
def test_methods_without_unlabeled_images(mine, tmp_path, command, monkeypatch, method):
    _, unlabeled = seen(monkeypatch)
    run = tmp_path / "run"
    status, _, err = command(cli.main, *arguments(mine, run, dataset="mine", labels=6, steps=None, epochs=2,
                                                  method=method, preprocess="standardize", **{"batch-unlabeled": 10}))
    assert status == 0, err
    steps = {"supervised": 20, "asl": 2}[method]  # 100 // 10 an epoch, and at least one
    assert said(err)[-2] == f"{steps} steps, {steps // 2} an epoch"
    assert len(unlabeled) == (method == "asl") * steps
    if unlabeled:
        assert len(np.unique(numbers_of(np.concatenate(unlabeled), run))) == 6
    fitted_on = Preprocess.load(run / "whitening.npz").fitted_on  # on all images, whatever the method
    assert fitted_on["images"] == [30, 70]


def test_zca_is_fitted_on_all_but_the_test_images(mine, tmp_path, command):
    status, _, err = command(cli.main, *arguments(mine, tmp_path / "run", dataset="mine", extra="other", labels=6,
                                                  steps=1, preprocess="zca"))
    assert status == 0, err
    assert Preprocess.load(tmp_path / "run" / "whitening.npz").fitted_on["images"] == [30, 70, 20, 28]


def test_resumed_on_the_same_unlabeled_images_only(mine, tmp_path, command, monkeypatch):
    flags = {"dataset": "mine", "labels": 6, "steps": 12, "checkpoint-every": 3}
    assert command(cli.main, *arguments(mine, tmp_path / "whole", **flags))[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert command(cli.main, *arguments(mine, tmp_path / "part", **flags))[0] == 130
    resume = ("train", "--resume", "--run", tmp_path / "part")
    (mine / "mine" / "unlabeled").rename(tmp_path / "away")
    status, _, err = command(cli.main, *resume)
    assert (status, "no unlabeled set here" in err) == (1, True)
    write_set(mine / "mine" / "unlabeled", random_images(70, SIZE), split="unlabeled")
    status, _, err = command(cli.main, *resume)
    assert (status, "unlabeled: not the shards that" in err) == (1, True)
    shutil.rmtree(mine / "mine" / "unlabeled")
    (tmp_path / "away").rename(mine / "mine" / "unlabeled")
    assert command(cli.main, *resume)[0] == 0
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_without_a_test_set(mine, tmp_path, command, monkeypatch):
    shutil.rmtree(mine / "mine" / "test")
    run, flags = tmp_path / "run", {"dataset": "mine", "labels": 6, "steps": 12, "checkpoint-every": 3}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert command(cli.main, *arguments(mine, run, **flags))[0] == 130
    status, out, err = command(cli.main, "train", "--resume", "--run", run)
    assert status == 0, err
    assert out.startswith("no test error, since there is no test set: sesemi, wrn-10-1, 6 labels, 12 steps")
    assert said(err)[-1] == "no test set"
    result = json.loads((run / "result.json").read_text())
    assert (result["test_error"], result["test_images"], result["steps"]) == (None, None, 12)
    assert {line["type"] for line in metrics(run)} == {"train"}
    status, out, err = command(cli.main, "evaluate", run)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "no test set" in err
    assert "--test-fraction" in err
    status, _, err = command(cli.main, *arguments(mine, tmp_path / "other", dataset="mine", **{"eval-images": 3}))
    assert (status, "there is no test set" in err) == (2, True)
    shutil.copytree(mine / "mine" / "train", mine / "mine" / "test")  # a set that came later is not the run's
    assert command(cli.main, "evaluate", run)[0] == 2


@pytest.mark.parametrize(("method", "extra"), [("supervised", None), ("sesemi", None), ("asl", None),
                                               ("sesemi", "other")])
def test_nine_images_train(mine, tmp_path, command, method, extra):
    """Fewer than one batch has of either kind."""
    write_set(mine / "nine" / "train", coloured(np.arange(9)), np.arange(9) % 3, ("ant", "bee", "cow"))
    status, _, err = command(cli.main, *arguments(mine, tmp_path / "run", dataset="nine", labels=None, method=method,
                                                  extra=extra, steps=None, epochs=2, **{"batch-unlabeled": 16}))
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["labels"], result["steps"]) == (9, 2)


@pytest.mark.parametrize(("labels", "by_class"), [
    (100, {"cat": 47, "dog": 7, "owl": 46}), (99, {"cat": 46, "dog": 7, "owl": 46}),
    (30, {"cat": 12, "dog": 7, "owl": 11}),
    (None, {"cat": 200, "dog": 7, "owl": 50})])
def test_unequal_classes(mine, tmp_path, command, labels, by_class):
    of = np.repeat(np.arange(3), [200, 7, 50])
    for split in ("train", "test"):
        write_set(mine / "photos" / split, coloured(np.arange(257)), of, ("cat", "dog", "owl"), split)
    status, _, err = command(cli.main, *arguments(mine, tmp_path / "run", dataset="photos", labels=labels, steps=1,
                                                  **{"eval-images": 2}))
    assert status == 0, err
    total = sum(by_class.values())
    assert said(err)[0].startswith(f"{total} labeled images (" + ", ".join(f"{k} {v}" for k, v in by_class.items()))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["labels_by_class"] == by_class
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_images"] == 2


def test_a_single_class_and_too_few_labels_are_refused(mine, tmp_path, command):
    write_set(mine / "one" / "train", coloured(np.arange(9)), np.zeros(9, int), ("ant",))
    for flags, words in (({"dataset": "one", "labels": None}, "single class, ant"),
                         ({"dataset": "mine", "labels": 2}, "--labels: found 2, expected from 3, one of each "
                                                            "class, to 30, all of")):
        status, _, err = command(cli.main, *arguments(mine, tmp_path / "run", **flags))
        assert (status, len(err.splitlines())) == (2, 1)
        assert words in err


def test_the_dataset_s_own_images_are_no_extra_ones(mine, tmp_path, command):
    for extra in ("mine", mine / "mine" / "unlabeled"):
        status, _, err = command(cli.main, *arguments(mine, tmp_path / "run", dataset="mine", extra=extra))
        assert (status, "which the proxy branch sees anyway; leave it out" in err) == (2, True)


def test_how_long_it_will_take_is_said_after_20_steps(mine, tmp_path, command):
    flags = {"dataset": "mine", "labels": 6, "batch-unlabeled": 1, "eval-every": 0}
    _, _, err = command(cli.main, *arguments(mine, tmp_path / "long", steps=40, **flags))
    assert re.search(r"about \d+ s for the other 20 steps, evaluations not counted", err)
    _, _, err = command(cli.main, *arguments(mine, tmp_path / "short", steps=20, **flags))
    assert "for the other" not in err


def test_joined_sources_read_as_one(tmp_path):
    images = random_images(60, 8)
    parts = [write_set(tmp_path / str(first), images[first:last], shard_bytes=5 * 192)
             for first, last in ((0, 17), (17, 18), (18, 60))]
    parts[2] = Subset(ShardSet(parts[2].path), np.arange(0, 42, 2))
    expected = np.concatenate([images[:18], images[18::2]])
    joined = Joined(parts)
    assert len(joined) == len(expected) == 39
    draw = np.random.default_rng(0)
    for indices in (np.arange(39), np.array([], int), np.array([17]), np.array([16, 17, 18]), np.array([38, 0, 17, 5]),
                    *(draw.integers(0, 39, 20) for _ in range(20))):
        assert np.array_equal(joined.read(indices), expected[indices])
    for wrong in (-1, 39):
        with pytest.raises(IndexError):
            joined.read(np.array([wrong]))
    with pytest.raises(ValueError, match="in one source"):
        Joined([parts[0], write_set(tmp_path / "x", random_images(3, 12))])
