"""Index arithmetic against obvious loops."""

from itertools import pairwise

import numpy as np
import pytest

from pipelines.sampling import (
    EVALUATION,
    LABELED,
    STATE_WORDS,
    UNLABELED,
    Order,
    class_balanced_subset,
    evaluation_draws,
    even_shares,
    evenly_spread,
    generator,
    noise_keys,
    permute,
    random_integers,
    training_draws,
    word_from,
)


def delivered(order: Order, position: int, count: int) -> list[int]:
    """The images at stream positions."""
    return order.indices(np.arange(position, position + count)).tolist()


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
def test_every_image_once_an_epoch(images, window, block):
    order = Order(images, window, block, seed=3)
    for epoch in range(3):
        assert sorted(delivered(order, epoch * images, images)) == list(range(images))


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
            shuffled = generator(9, epoch, 1, window).permutation(len(images))
            obvious += [images[i] for i in shuffled]
    for start, count in ((0, 412), (0, 1), (30, 5), (95, 20), (100, 210), (411, 1)):
        assert delivered(order, start, count) == obvious[start:start + count]
    some = np.array([0, 7, 8, 102, 103, 300, 301, 411])  # not one after another
    assert order.indices(some).tolist() == [obvious[position] for position in some]


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
        indices, permutation = order.window(window)
        assert len(indices) <= 500
        assert (np.diff(indices) > 0).all()
        assert sorted(permutation) == list(range(len(indices)))


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"window_images": 0}, {"block_images": 0}])
def test_impossible_orders_are_refused(wrong):
    with pytest.raises(ValueError, match="sizes"):
        Order(**{"num_images": 10, "window_images": 10, "block_images": 4, **wrong})


def test_crop_offsets_are_uniform_and_half_are_flipped():
    draws = training_draws(0, LABELED, np.arange(10**9, 10**9 + 50_000), 192, flip=True)
    counts = np.bincount(draws.offsets[:, 0] * 5 + draws.offsets[:, 1], minlength=25)
    assert len(counts) == 25
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)
    assert set(draws.flip) == {0, 1}
    assert abs(draws.flip.mean() - 0.5) < 5 * 0.5 / np.sqrt(50_000)
    columns = np.column_stack([draws.offsets, draws.flip])
    assert abs(np.corrcoef(columns.T) - np.eye(3)).max() < 5 / np.sqrt(50_000)
    following = np.corrcoef(columns[:-1].T, columns[1:].T)[:3, 3:]
    assert abs(following).max() < 5 / np.sqrt(50_000)
    assert not training_draws(0, LABELED, np.arange(50), 192, flip=False).flip.any()
    assert draws.noisy.all()


def test_draws_belong_to_their_position_stream_and_seed():
    found = [training_draws(seed, stream, np.arange(first, first + 40), 75, flip=True)
             for seed in (0, 1) for stream in (LABELED, UNLABELED) for first in (0, 40)]
    for name in ("offsets", "flip", "noise_keys", "noise_state"):
        assert len({getattr(draws, name).tobytes() for draws in found}) == 8
    assert len(np.unique(np.concatenate([draws.noise_keys for draws in found]))) == 8 * 40
    assert {draws.noise_state.shape for draws in found} == {(STATE_WORDS,)}
    whole = training_draws(1, UNLABELED, np.arange(80), 75, flip=True)  # of whichever superbatch or part
    some = np.array([3, 9, 41, 77])
    picked = training_draws(1, UNLABELED, some, 75, flip=True)
    for name in ("offsets", "flip", "noise_keys"):
        assert np.array_equal(getattr(picked, name), getattr(whole, name)[some])
        assert np.array_equal(getattr(found[-1], name), getattr(whole, name)[40:])


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as Steele, Lea and Flood wrote it down, one number after another."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ z >> 31)
    return numbers


def test_integers_are_bits_of_splitmix64():
    numbers = splitmix64(word_from(3, 1, 4), 9)
    found = random_integers((3, 1, 4), np.arange(9), (5, 4, 1000))
    for i, number in enumerate(numbers):
        for part, size in enumerate((5, 4, 1000)):
            assert found[part][i] == (number >> 21 * part) % 2**21 * size // 2**21


def test_an_image_s_noise_begins_after_that_of_those_before_it():
    """An image of 75 values takes 19 numbers."""
    keys = noise_keys((5, 1, 4), np.array([0, 1, 2, 2**40]), 75).astype(object)
    gamma = 0x9E3779B97F4A7C15
    assert keys[0] == word_from(5, 1, 4)
    assert [(key - keys[0]) % 2**64 for key in keys] == [0, 19 * gamma % 2**64, 38 * gamma % 2**64,
                                                         19 * 2**40 * gamma % 2**64]


@pytest.mark.parametrize("flip", [True, False])
def test_the_evaluation_s_jitter_is_never_zero(flip):
    draws = evaluation_draws(0, np.arange(500, 8500), 192, flip)
    views = 8 if flip else 4
    offsets = draws.offsets.reshape(8000, views, 2) - 2
    assert not offsets[:, ::2].any()
    jitter = offsets[:, 1::2]
    assert (jitter == jitter[:, :1]).all()  # one for each image
    assert set(np.unique(jitter).tolist()) == {-2, -1, 1, 2}
    assert abs(np.bincount(jitter[:, 0].reshape(-1) + 2)[[0, 1, 3, 4]] - 4000).max() < 5 * np.sqrt(4000)
    assert draws.noisy.reshape(8000, views).tolist()[0] == [0, 0, 1, 1] * (views // 4)
    assert draws.flip.reshape(8000, views).tolist()[0] == [0] * 4 + [1] * (views - 4)
    assert len(np.unique(draws.noise_keys)) == 8000 * views
    assert EVALUATION not in (LABELED, UNLABELED)
    following = evaluation_draws(0, np.arange(8500, 8510), 192, flip)
    assert not set(following.noise_keys) & set(draws.noise_keys)


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


@pytest.mark.parametrize(("available", "count", "shares"), [
    ([200, 7, 50], 100, [47, 7, 46]),  # level 46: 46 + 7 + 46 = 99, and the one left is of the first class
    ([200, 7, 50], 30, [12, 7, 11]), ([200, 7, 50], 21, [7, 7, 7]), ([200, 7, 50], 22, [8, 7, 7]),
    ([200, 7, 50], 257, [200, 7, 50]), ([5, 5, 5], 7, [3, 2, 2]), ([5, 5, 5], 8, [3, 3, 2]), ([5, 0, 5], 3, [2, 0, 1]),
    ([5, 5, 5], 2, [1, 1, 0]), ([1, 9, 1, 9], 8, [1, 3, 1, 3]), ([1, 9, 1, 9], 9, [1, 4, 1, 3]), ([3], 0, [0])])
def test_labels_are_as_even_as_the_classes_allow(available, count, shares):
    assert even_shares(np.array(available), count).tolist() == shares


def test_even_shares_one_image_at_a_time():
    """By a loop: round after round, each class in order gives one more, if it has one."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        available = draw.integers(0, 9, draw.integers(1, 7))
        for count in range(available.sum() + 1):
            shares, left = [0] * len(available), count
            while left:
                for label, most in enumerate(available):
                    if left and shares[label] < most:
                        shares[label] += 1
                        left -= 1
            assert even_shares(available, count).tolist() == shares


def test_a_larger_label_subset_contains_a_smaller():
    labels = np.array([0] * 8 + [1] * 3 + [2] * 20)
    subsets = [set(class_balanced_subset(labels, count, 3).tolist()) for count in range(32)]
    assert [len(subset) for subset in subsets] == list(range(32))
    assert all(small < large for small, large in pairwise(subsets))


def test_more_labels_than_there_are():
    with pytest.raises(ValueError, match="13 images asked for, 12 there are"):
        class_balanced_subset(np.array([0] * 8 + [1] * 4), 13, 2)


def test_evenly_spread():
    assert evenly_spread(0, 4, 10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spread(0, 5, 5, 5).tolist() == [0, 1, 2, 3, 4]
    assert np.concatenate([evenly_spread(0, 3, 79_302_017, 7), evenly_spread(3, 7, 79_302_017, 7)]).tolist() == \
        [i * 79_302_017 // 7 for i in range(7)]
