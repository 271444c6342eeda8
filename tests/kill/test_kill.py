"""Conversion and training survive SIGKILL: a few kills here, fifty each in the slow tests."""

import pytest

from tests.kill.harness import Harness, Result, opened
from tests.kill.prepare import Prepare
from tests.kill.train import Train


@pytest.fixture(scope="module")
def preparing():
    with opened(Prepare) as harness:
        yield harness


@pytest.fixture(scope="module")
def training():
    with opened(Train) as harness:
        yield harness


def killed(harness: Harness, kills: int, seed: int) -> list[Result]:
    """Results of so many kills; fails by the first command line that reproduces a violation, and what it is."""
    results = [harness.kill(case, seed) for case in harness.choose(kills, seed)]
    wrong = {f"python -m tests.kill {harness.subject.kind} --moment {result.case}": result.problems
             for result in results if result.problems}
    assert wrong == {}
    assert len(results) == kills
    return results


def between(results: list[Result]) -> int:
    """How many were killed between a file's opening and its rename."""
    return sum(result.moment.between is not None for result in results)


def test_prepare_survives_a_few_kills(preparing):
    assert between(killed(preparing, 6, seed=1)) >= 3


def test_train_survives_a_few_kills(training):
    assert between(killed(training, 2, seed=1)) >= 1


@pytest.mark.slow
def test_prepare_survives_50_kills(preparing):
    assert between(killed(preparing, 50, seed=0)) >= 20


@pytest.mark.slow
def test_train_survives_50_kills(training):
    assert between(killed(training, 50, seed=0)) >= 20
