"""Index arithmetic against obvious loops."""

import numpy as np
import pytest

from pipelines.sampling import (
    Order,
    class_balanced_subset,
    draw_jitter,
    draw_shift,
    evenly_spread,
    generator,
    permute,
)


def delivered(order: Order, position: int, count: int) -> list[int]:
    """Stream positions to image indices, by way of segments."""
    out = []
    for segment in order.segments(position, count):
        indices, permutation = order.window(segment.epoch, segment.window)
        out += indices[permutation[segment.first:segment.last]].tolist()
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1023, 1024, 1025, 70001])
def test_permute_is_a_bijection(size):
    sent = permute(np.arange(size), size, (1, 2))
    assert sorted(sent.tolist()) == list(range(size))


def test_permute_needs_no_memory_of_the_whole():
    size = 10**12
    some = np.array([0, 1, 2, size - 1])
    sent = permute(some, size, (5,))
    assert len(set(sent.tolist())) == 4
    assert sent.min() >= 0
    assert sent.max() < size
    assert permute(some[2:3], size, (5,))[0] == sent[2]


def test_permute_is_uniform_and_depends_on_the_key():
    size, keys = 10, 4000
    counts = np.zeros((size, size), int)
    for key in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, (key,))] += 1
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 81 + 5 * np.sqrt(2 * 81)  # (size − 1)² degrees of freedom, five standard deviations
    together = np.stack([permute(np.arange(1000), 1000, (key,)) for key in (1, 2)])
    assert abs(np.corrcoef(together)[0, 1]) < 0.15


@pytest.mark.parametrize(("images", "window", "block"),
                         [(1, 8, 4), (7, 3, 2), (97, 20, 4), (100, 1000, 16), (101, 10, 7), (64, 16, 16), (33, 5, 16)])
@pytest.mark.parametrize("most_ranks", [1, 2, 3])
def test_every_image_once_an_epoch(images, window, block, most_ranks):
    ranks = min(most_ranks, -(-images // block))
    shares = [Order(images, window, block, seed=3, rank=rank, ranks=ranks) for rank in range(ranks)]
    for epoch in range(3):
        seen = []
        for order in shares:
            seen += delivered(order, epoch * order.epoch_images, order.epoch_images)
        assert sorted(seen) == list(range(images))


def test_order_matches_an_obvious_loop():
    order = Order(num_images=103, window_images=32, block_images=8, seed=9)
    obvious = []
    for epoch in range(4):
        blocks = [*permute(np.arange(12), 12, (9, epoch, 0)).tolist(), 12]  # twelve full ones, and one of seven
        assert order.windows == 4
        for window in range(4):
            images = []
            for block in sorted(blocks[13 * window // 4:13 * (window + 1) // 4]):
                images += [i for i in range(block * 8, block * 8 + 8) if i < 103]
            shuffled = generator(9, epoch, 1, window, 0).permutation(len(images))
            obvious += [images[i] for i in shuffled]
    for start, count in ((0, 412), (0, 1), (30, 5), (95, 20), (100, 210), (411, 1)):
        assert delivered(order, start, count) == obvious[start:start + count]


def test_epochs_and_seeds_differ():
    def first(seed: int, epoch: int) -> list[int]:
        order = Order(1000, 100, 10, seed=seed)
        return delivered(order, epoch * 1000, 1000)
    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_a_window_is_within_its_size_and_read_in_ascending_order():
    order = Order(10_007, 500, 16)
    for window in range(order.windows):
        indices, permutation = order.window(0, window)
        assert len(indices) <= 500
        assert (np.diff(indices) > 0).all()
        assert sorted(permutation) == list(range(len(indices)))


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"window_images": 0}, {"rank": 2, "ranks": 2}, {"ranks": 99}])
def test_impossible_orders_are_refused(wrong):
    with pytest.raises(ValueError, match=r"rank|sizes"):
        Order(**{"num_images": 10, "window_images": 10, "block_images": 4, **wrong})


def test_shifts_are_uniform_and_jitter_is_never_zero():
    shifts = draw_shift(generator(0), 50_000)
    counts = np.bincount(shifts[0] * 5 + shifts[1], minlength=25)
    assert len(counts) == 25
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)
    jitter = draw_jitter(generator(0), 16_000) - 2
    assert set(np.unique(jitter).tolist()) == {-2, -1, 1, 2}
    assert abs(np.bincount(jitter.reshape(-1) + 2)[[0, 1, 3, 4]] - 8000).max() < 5 * np.sqrt(8000)


@pytest.mark.parametrize("count", [250, 1000, 4000])
def test_label_subset_is_the_reference_s(count):
    labels = np.random.default_rng(0).integers(0, 10, 50_000)
    rng = np.random.RandomState(1)
    expected = []  # as in the reference's stratified_sample
    for cls in range(10):
        inds = np.where(labels == cls)[0]
        rng.shuffle(inds)
        expected.extend(inds[:count // 10].tolist())
    chosen = class_balanced_subset(labels, count, 10)
    assert chosen.tolist() == expected
    assert np.bincount(labels[chosen]).tolist() == [count // 10] * 10


def test_label_subset_stays_what_it_was():
    # One RandomState(1), going on from class to class: NumPy promises that stream for good.
    assert class_balanced_subset(np.array([0, 1, 0, 1, 0, 1]), 4, 2).tolist() == [0, 4, 3, 5]
    assert class_balanced_subset(np.array([0, 1, 0, 1]), 4, 2).tolist() == [0, 1, 2, 3]  # all: as they come


@pytest.mark.parametrize(("count", "message"), [
    (7, "nearest that do: 6 and 8"), (1, "nearest that do: 2"), (13, "13 images asked for, 12 there are"),
    (10, "class 1 has 4")])
def test_label_subset_refuses(count, message):
    with pytest.raises(ValueError, match=message):
        class_balanced_subset(np.array([0] * 8 + [1] * 4), count, 2)


def test_evenly_spread():
    assert evenly_spread(0, 4, 10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spread(0, 5, 5, 5).tolist() == [0, 1, 2, 3, 4]
    assert np.concatenate([evenly_spread(0, 3, 79_302_017, 7), evenly_spread(3, 7, 79_302_017, 7)]).tolist() == \
        [i * 79_302_017 // 7 for i in range(7)]
