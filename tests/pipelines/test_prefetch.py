"""Things are made by their number, in order, as many ahead as asked for, and again where that failed."""

import threading
import time

import pytest
import torch

from pipelines.prefetch import Prefetcher

CPU = torch.device("cpu")


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_so_many_are_made_ahead_and_each_once(ahead):
    made = []
    prefetcher = Prefetcher(lambda number: made.append(number) or number**2, ahead, CPU)
    for number in range(10):
        assert prefetcher.get(number) == number**2
        assert prefetcher.get(number) == number**2
        prefetcher.settle()
        assert made == list(range(number + ahead + 1))
    prefetcher.close()


def test_what_is_wanted_no_more_is_not_made():
    gate, made = threading.Event(), []
    prefetcher = Prefetcher(lambda number: (gate.wait(30), made.append(number)), 2, CPU)
    prefetcher.start(0)
    time.sleep(0.01)
    prefetcher.start(100)
    gate.set()
    prefetcher.settle()
    assert made in ([0, 100, 101, 102], [100, 101, 102])
    prefetcher.close()


def test_a_failure_reaches_whoever_asks_and_is_tried_again():
    failing = {3}

    def make(number: int) -> int:
        if number in failing:
            raise OSError(f"number {number}")
        return number
    prefetcher = Prefetcher(make, 2, CPU)
    assert prefetcher.get(1) == 1  # 3 fails ahead of time
    prefetcher.settle()
    assert prefetcher.get(2) == 2
    for _ in range(2):
        with pytest.raises(OSError, match="number 3"):
            prefetcher.get(3)
    failing.clear()
    assert prefetcher.get(3) == 3
    prefetcher.close()


def test_any_number_may_come_next():
    prefetcher = Prefetcher(lambda number: -number, 1, CPU)
    assert [prefetcher.get(number) for number in (5, 2, 9, 3, 4, 4)] == [-5, -2, -9, -3, -4, -4]
    prefetcher.close()


def test_operations_split_over_so_many_threads():
    for threads in (1, 2):
        prefetcher = Prefetcher(lambda number: torch.get_num_threads(), 0, CPU, threads)
        assert prefetcher.get(0) == threads
        prefetcher.close()
