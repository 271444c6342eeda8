"""Conversion and training survive SIGKILL: a few kills, at renames above all; fifty each in the slow tests."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import random_images, write_set
from tests.kill.harness import Case, Harness, Result, opened
from tests.kill.prepare import Prepare
from tests.kill.train import Train, difference


@pytest.fixture(scope="module")
def preparing():
    with opened(Prepare) as harness:
        yield harness


@pytest.fixture(scope="module")
def training():
    with opened(Train) as harness:
        yield harness


def killed(harness: Harness, kills: int, seed: int) -> list[Result]:
    """Results of so many kills; see ``all_right``."""
    results = [harness.kill(case, seed) for case in harness.choose(kills, seed)]
    assert len(results) == kills
    all_right(harness, results)
    return results


def all_right(harness: Harness, results: list[Result]) -> None:
    """Fails by the command lines that reproduce the violations, and what they are."""
    wrong = [f"python -m tests.kill {harness.subject.kind} --moment {result.case}: {problem}"
             for result in results for problem in result.problems]
    assert not wrong, "\n".join(wrong)


def between(results: list[Result]) -> int:
    """How many were killed between a file's opening and its rename."""
    return sum(result.moment.between is not None for result in results)


def test_prepare_survives_a_few_kills(preparing):
    assert between(killed(preparing, 6, seed=1)) >= 3


def rename(harness: Harness, scenario: str, to: str) -> Case:
    """The kill at the last rename of a run whose new path ends like this pattern."""
    numbers = [event.number for event in harness.counted[scenario].events
               if event.what == "rename" and re.search(f"{to}$", event.to)]
    return Case(scenario, numbers[-1])


@pytest.mark.parametrize("scenario", ["fresh", "force"])
@pytest.mark.parametrize("to", [".commit.json", "toy/train", "toy/test"])
def test_prepare_survives_a_kill_at_the_rename_of(preparing, scenario, to):
    all_right(preparing, [preparing.kill(rename(preparing, scenario, to))])


@pytest.mark.parametrize("to", ["train/zca-[0-9a-f]+.npz", "run/checkpoint.pt"])
def test_train_survives_a_kill_at_the_rename_of(training, to):
    """The whitening kept beside the shards; the last checkpoint, after the last evaluation."""
    all_right(training, [training.kill(rename(training, "train", to))])


@pytest.mark.slow
def test_prepare_survives_50_kills(preparing):
    assert between(killed(preparing, 50, seed=0)) >= 20


@pytest.mark.slow
def test_prepare_survives_a_kill_before_and_after_every_change_of_the_folder(preparing):
    cases = [Case(scenario, moment.number) for scenario, counted in preparing.counted.items()
             for moment in counted.moments if moment.edge]
    assert len(cases) > 50
    all_right(preparing, [preparing.kill(case) for case in cases])


@pytest.mark.slow
def test_train_survives_50_kills(training):
    assert between(killed(training, 50, seed=0)) >= 20


def test_a_kill_elsewhere_than_counted_is_found(preparing):
    moments = preparing.counted["fresh"].moments
    preparing.counted["fresh"].moments = [replace(moment, line="elsewhere") for moment in moments]
    try:
        result = preparing.kill(Case("fresh", len(moments) // 2))
    finally:
        preparing.counted["fresh"].moments = moments
    assert len(result.problems) == 1
    assert "harness: killed in" in result.problems[0]


def test_a_command_that_outlives_its_moment_is_found(preparing):
    counted = preparing.counted["fresh"]
    counted.moments.append(counted.moments[-1])
    try:
        result = preparing.kill(Case("fresh", len(counted.moments)))
    finally:
        counted.moments.pop()
    assert "harness: ended with 0 instead of -9" in result.problems[0]


def put(subject: Prepare, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    shutil.rmtree(subject.out / split)
    write_set(subject.out / split, images, labels, ("0", "1", "2"), split)


def after_kill(subject: Prepare, change) -> list[str]:
    """What is found wrong in the old sets after a change."""
    subject.lay("force")
    subject.before_kill()
    change()
    return list(subject.after_kill("force", []))


def test_old_sets_that_nobody_touched_are_as_they_must_be(preparing):
    assert after_kill(preparing.subject, lambda: None) == []


def test_a_new_set_beside_old_ones_is_found(preparing):
    subject = preparing.subject
    found = after_kill(subject, lambda: put(subject, "train", *subject.images["new"]["train"]))
    assert found[0] == "(b) unlabeled and test and extra old, train new, and all open"
    assert found[1].startswith("(c)")


def test_images_or_labels_of_nobody_are_found(preparing):
    subject = preparing.subject
    labels = subject.images["old"]["test"][1]
    for images, others in ((random_images(100, 12, 7), labels), (subject.images["old"]["test"][0], labels[::-1])):
        found = after_kill(subject, lambda images=images, others=others: put(subject, "test", images, others))
        assert found[0] == "(a) test: opens with 100 images that are neither the old nor the new ones"


def test_a_damaged_set_that_opens_is_found(preparing):
    def damage():
        path = preparing.subject.out / "train" / "images-00000.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert "(a) train: opens, but tools.verify finds it damaged" in after_kill(preparing.subject, damage)[0]


def test_checkpoints_are_compared_to_the_bit():
    def state(last):
        return {"model": {"a": torch.zeros(2), "b": torch.tensor([1.0, last])}, "steps": [1, 2]}
    assert difference(state(2.0), state(2.0)) == ""
    assert difference(state(2.0), state(2.0000002)) == "model.b"
    assert difference({**state(2.0), "steps": [1, 3]}, state(2.0)) == "steps.1"
    assert difference({"model": {}, "steps": [1, 2]}, state(2.0)) == "model"
