"""What streams deliver and in which order, after which interruption, and with how many windows in memory."""

import os
import signal
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from pipelines.batch import StreamOptions
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import UNLABELED, Order, seed_from
from pipelines.shards import Subset
from pipelines.stream import Stream
from pipelines.whitening import Preprocess

PREPROCESS = Preprocess("gcn", (8, 8, 3))


class Watched:
    """A set that knows what was read of it, and how many of the arrays that it returned are alive."""

    def __init__(self, shard_set):
        self.image_shape, self.labels = shard_set.image_shape, shard_set.labels
        self.reads: list[np.ndarray] = []
        self.alive = self.most_alive = 0
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()  # a reader is at the closed gate
        self.failing = False
        self._set = shard_set

    def __len__(self) -> int:
        return len(self._set)

    def read(self, indices: np.ndarray) -> np.ndarray:
        if not self.gate.is_set():
            self.waiting.set()
        self.gate.wait(30)
        if self.failing:
            raise OSError("the disk is gone")
        images = self._set.read(indices)
        self.reads.append(np.array(indices))
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(images.base if images.base is not None else images, self._gone)
        return images

    def _gone(self) -> None:
        self.alive -= 1


@pytest.fixture
def watched(small_set) -> Watched:
    return Watched(small_set)


def stream(source, **options) -> Stream:
    options = {"batch": 10, "views": True, "flip": False, "window_images": 64, "steps_per_superbatch": 4, **options}
    return Stream([source], PREPROCESS, StreamOptions(**options), seed=1, stream_id=UNLABELED,
                  device=torch.device("cpu"))


def take(source, count: int) -> list:
    return [next(source) for _ in range(count)]


def same(left: list, right: list) -> bool:
    return all(torch.equal(a, b) for one, other in zip(left, right, strict=True)
               for a, b in zip(one, other, strict=True))


def interrupt_while_reading(source: Watched, ask) -> None:
    """Call ``ask``, which waits for a read, and send this process Ctrl-C while it does."""
    def send() -> None:
        source.waiting.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
    source.gate.clear()
    source.waiting.clear()
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        ask()
    sender.join()
    source.gate.set()


def test_checkpoints_can_be_visited_in_any_order(small_set):
    one, other = stream(small_set), stream(small_set)
    states, batches = [], []
    for _ in range(40):
        states.append(one.state_dict())
        batches.append(next(one))
    for step in (7, 30, 0, 31, 8, 29, 16):
        other.load_state_dict(states[step])
        assert same(take(other, 3), batches[step:step + 3])
    one.close()
    other.close()


@pytest.mark.parametrize("steps", [0, 6, 20, 33])
def test_a_resumed_stream_reads_only_what_it_delivers(small_set, steps):
    """300 images in windows of 64 or fewer: five an epoch, of 48 to 64 images; 6 steps a window or so."""
    one, source = stream(small_set), Watched(small_set)
    take(one, steps)
    other = stream(source)
    other.load_state_dict(one.state_dict())
    take(other, 8)
    other.settle()
    other.close()
    order = Order(300, 64, 1, seed_from(1, UNLABELED, 0))
    superbatches = np.arange(steps // 4 * 40, -(-(steps + 8) // 4) * 40)  # the images of those, of 40 each
    needed = [number for number, _ in order.parts(superbatches)]
    expected = [order.window(number)[0] for number in [*needed, needed[-1] + 1]]  # and the window after them
    assert len(source.reads) >= len(needed)
    for read, window in zip(source.reads, expected[:len(source.reads)], strict=True):
        assert np.array_equal(read, window)
    one.close()


def test_the_next_window_is_read_once_half_of_one_is_drawn(watched):
    """No sooner, since a short run may not need it: of windows of 60 images, steps of ten."""
    one = stream(watched, window_images=60, block_images=1, steps_per_superbatch=1)
    for step, reads in enumerate((1, 1, 1, 2, 2, 2, 2, 2, 2, 3)):
        next(one)
        one.settle()
        assert len(watched.reads) == reads, step
    one.close()


@pytest.mark.parametrize("batch", [5, 8, 12, 16])
def test_two_windows_at_most_are_in_memory(watched, batch):
    """Windows of 48 to 64 images, drawn from by less or more than half of one at a time."""
    one = stream(watched, batch=batch)
    take(one, 300)
    assert len(watched.reads) > 20
    assert watched.most_alive == 2
    one.close()


def test_each_window_is_read_once(watched):
    one = stream(watched)
    take(one, 300)  # 3,000 images: ten epochs
    one.settle()
    one.close()
    assert 50 <= len(watched.reads) <= 52
    for epoch in range(10):
        assert sorted(np.concatenate(watched.reads[5 * epoch:5 * epoch + 5])) == list(range(300))


@pytest.mark.parametrize("images", [1, 2, 7, 39, 40, 41, 300])
def test_a_set_that_fits_one_window_is_read_once(small_set, images):
    """However many of its epochs are in one superbatch, here of 40 images."""
    source = Watched(Subset(small_set, np.arange(images)))
    one = stream(source, window_images=300)
    take(one, 100)
    assert len(source.reads) == 1
    one.close()


@pytest.mark.parametrize("steps", [0, 4, 12])
def test_a_stream_that_was_interrupted_goes_on_where_it_was(small_set, watched, steps):
    one, other = stream(watched), stream(small_set)
    expected = take(other, 40)
    other.load_state_dict(one.state_dict())
    assert same(take(one, steps), expected[:steps])
    for _ in range(2):  # twice in the same place
        found = steps
        try:
            watched.gate.clear()
            watched.waiting.clear()
            threading.Thread(target=lambda: (watched.waiting.wait(30), os.kill(os.getpid(), signal.SIGINT))).start()
            for _ in range(30):
                assert same([next(one)], [expected[found]])
                found += 1
        except KeyboardInterrupt:
            watched.gate.set()
        else:
            raise AssertionError("never interrupted")
        steps = found
    state = one.state_dict()
    assert state["step"] == steps
    assert same(take(one, 8), expected[steps:steps + 8])
    one.load_state_dict(state)
    assert same(take(one, 8), expected[steps:steps + 8])
    one.close()
    other.close()


def test_an_interrupted_loader_keeps_its_pairs(small_set):
    """Interrupted while it waits for the unlabeled stream, it has not gone on in the labeled one."""
    source = Watched(small_set)
    loader, other = (SemiSupervisedLoader(small_set, [extra], PREPROCESS, batch_unlabeled=4)
                     for extra in (source, small_set))
    interrupt_while_reading(source, lambda: next(loader))
    for _ in range(5):
        for ours, expected in zip(next(loader), next(other), strict=True):
            assert same([ours], [expected])
    loader.close()
    other.close()


def test_an_interrupt_at_any_line_keeps_the_pairs(small_set):
    """Before either stream has gone on the same pair is delivered again; after that, at worst, none of a pair is."""
    loader, other = (SemiSupervisedLoader(small_set, [small_set], PREPROCESS, batch_unlabeled=4) for _ in range(2))
    expected = [[part.clone() for examples in next(other) for part in examples] for _ in range(60)]
    lines, finished = 0, 0

    def interrupt_at(number: int):
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if "pipelines/" not in frame.f_code.co_filename or frame.f_code.co_name == "advance":
                return None if event == "call" else trace
            if event == "line":
                seen += 1
                if seen == number:
                    raise KeyboardInterrupt
            return trace
        return trace
    for number in range(1, 50):
        try:
            sys.settrace(interrupt_at(number))
            batch = next(loader)
        except KeyboardInterrupt:
            sys.settrace(None)
            lines += 1
            state = loader.state_dict()
            steps = {state["labeled"]["step"], state["unlabeled"]["step"]}
            if len(steps) == 1 and steps != {finished}:
                finished += 1  # interrupted on its way out, after both went on
            assert abs(state["labeled"]["step"] - state["unlabeled"]["step"]) <= 1
            if len(steps) == 2:  # between the two, which is one line
                loader.load_state_dict({name: {**one, "step": finished} for name, one in state.items()})
            continue
        finally:
            sys.settrace(None)
        found = [part for examples in batch for part in examples]
        assert same([found], [expected[finished]])
        finished += 1
    assert lines > 10
    assert same([[part for examples in next(loader) for part in examples]], [expected[finished]])
    loader.close()
    other.close()


def test_what_a_caller_wrote_into_is_made_anew(small_set):
    one, other = stream(small_set), stream(small_set)
    state = one.state_dict()
    batch = next(one)
    batch.images.zero_()
    batch.labels.fill_(9)
    one.load_state_dict(state)
    assert same(take(one, 2), take(other, 2))
    one.close()
    other.close()


def test_an_error_while_reading_reaches_the_caller_and_can_be_got_over(small_set, watched):
    one, other = stream(watched), stream(small_set)
    state = other.state_dict()
    expected = take(other, 20)
    watched.failing = True
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(one)
    watched.failing = False
    assert same(take(one, 20), expected)
    one.load_state_dict(state)
    assert same(take(one, 20), expected)
    one.close()
    other.close()


def test_both_streams_are_made_at_once(small_set):
    """The unlabeled batch is on its way while the labeled one is waited for."""
    labeled, unlabeled = Watched(small_set), Watched(small_set)
    loader = SemiSupervisedLoader(labeled, [unlabeled], PREPROCESS, batch_unlabeled=4)
    labeled.gate.clear()
    unlabeled.gate.clear()
    asking = threading.Thread(target=lambda: next(loader))
    asking.start()
    assert labeled.waiting.wait(30)
    assert unlabeled.waiting.wait(30)
    labeled.gate.set()
    unlabeled.gate.set()
    asking.join()
    loader.close()
