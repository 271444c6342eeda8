"""Pure index arithmetic: which image comes when, which are labeled, which random numbers a step uses.

Nothing here has a cursor. A stream's order is a function of (seed, epoch, position), so any step can be
computed without the ones before it, and no permutation of the images is ever held: blocks of consecutive
images are permuted by a keyed bijection, evaluated only for the blocks asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FEISTEL_ROUNDS = 6
MAX_SHIFT = 2  # pixels on each axis
LABELED, UNLABELED, EVALUATION = range(3)  # streams
AUGMENTATION, DALI_NOISE, CPU_NOISE = range(2, 5)  # what a random number is for (an order's own are 0 and 1)
STATE_WORDS = 7  # of DALI's random generator
GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step
NOISE_A_WORD = 4  # values of noise from one 64-bit number of SplitMix64
QUANTILES = 2**16  # equally likely values of noise: one for each 16 bits of that number


def generator(*key: int) -> np.random.Generator:
    """The counter-based random generator that belongs to a key of non-negative integers, always the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def seed_from(*key: int) -> int:
    """A 31-bit seed that belongs to a key of non-negative integers, for libraries that want one number."""
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


def word_from(*key: int) -> int:
    """64 bits that belong to a key of non-negative integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def permute(positions: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a permutation of range(size), chosen by ``key``, sends each of ``positions`` (n,) int64.

    A Feistel network over the next power of four, walked until it lands inside (cycle walking, Black and
    Rogaway 2002): a bijection for every size, in memory for the positions asked for only.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = np.random.SeedSequence(key).generate_state(FEISTEL_ROUNDS, np.uint64)
    out = np.asarray(positions).astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        left, right = out[outside] >> shift, out[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        out[outside] = (left << shift) | right
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """The order in which an endless stream delivers ``num_images`` images, every one exactly once an epoch.

    Blocks of ``block_images`` consecutive images are permuted anew each epoch; consecutive permuted blocks form
    windows of at most ``window_images`` images (a block at least), equal to within a block, and each window is
    permuted image by image. A window is read in one call, sorted by index. Windows are numbered on through the epochs.
    """

    num_images: int
    window_images: int
    block_images: int
    seed: int = 0

    def __post_init__(self):
        if min(self.num_images, self.window_images, self.block_images) < 1:
            raise ValueError(f"sizes must be at least 1: {self}")

    @property
    def blocks(self) -> int:
        """Blocks in an epoch."""
        return -(-self.num_images // self.block_images)

    @property
    def windows(self) -> int:
        """Windows in an epoch."""
        if self.num_images <= self.window_images:
            return 1
        return -(-self.blocks // max(1, self.window_images // self.block_images))

    @property
    def largest_window(self) -> int:
        """Images in a window at most."""
        return min(max(self.window_images, self.block_images), self.num_images)

    def parts(self, positions: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Where ascending stream positions (n,) int64 are, which count on through the epochs.

        Returns:
            numbers of windows, and the places in each, int64, that hold them in this order.
        """
        epoch, inside = np.divmod(positions, self.num_images)
        block = np.minimum(inside // self.block_images, self.blocks - 1)
        window = ((block + 1) * self.windows - 1) // self.blocks
        start = self.blocks * window // self.windows * self.block_images
        numbers = epoch * self.windows + window
        firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
        return list(zip(numbers[firsts].tolist(), np.split(inside - start, firsts[1:]), strict=True))

    def indices(self, positions: np.ndarray, window: Callable | None = None) -> np.ndarray:
        """Which images are at ascending stream positions, int64 (n,) both; ``window``: ``self.window``, cached."""
        parts = [(*(window or self.window)(number), places) for number, places in self.parts(positions)]
        return np.concatenate([indices[permutation[places]] for indices, permutation, places in parts])

    def window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What a window holds and how it is delivered, both int64 (n,).

        Returns:
            the indices of its images, ascending: the order in which to read them; and a permutation of
            range(n): place i of the window delivers ``indices[permutation[i]]``.
        """
        epoch, window = divmod(number, self.windows)
        first, last = (self.blocks * (window + i) // self.windows for i in (0, 1))
        full = self.num_images // self.block_images
        blocks = permute(np.arange(first, min(last, full)), full, (self.seed, epoch, 0))
        if last > full:  # the short last block of the source keeps the last place, so that positions stay simple
            blocks = np.append(blocks, full)
        blocks.sort()
        indices = (blocks[:, None] * self.block_images + np.arange(self.block_images)).reshape(-1)
        indices = indices[indices < self.num_images]
        return indices, generator(self.seed, epoch, 1, window).permutation(len(indices))


class Draws(NamedTuple):
    """What is random about n images: on a CPU all of it a function of an image's position in its stream.

    Args:
        offsets: where in an image with its border of MAX_SHIFT the crop begins, y and x, int64 (n, 2).
        flip: which images are flipped left to right, 0 or 1, int64 (n,).
        noisy: which get noise, 0 or 1, int64 (n,).
        noise_keys: uint64 (n,): each image's state of SplitMix64, from which a CPU draws its noise.
        noise_state: uint32 (STATE_WORDS,): DALI's state, from which a GPU draws the noise of all of them.
    """

    offsets: np.ndarray
    flip: np.ndarray
    noisy: np.ndarray
    noise_keys: np.ndarray
    noise_state: np.ndarray


def training_draws(seed: int, stream_id: int, positions: np.ndarray, values: int, flip: bool) -> Draws:
    """For the images of ``values`` values at stream positions (n,): any crop offset, flipped with probability 1/2."""
    y, x, side = random_integers((seed, stream_id, AUGMENTATION), positions, (2 * MAX_SHIFT + 1, 2 * MAX_SHIFT + 1, 2))
    return Draws(np.column_stack([y, x]), side * flip, np.ones_like(side),
                 noise_keys((seed, stream_id, CPU_NOISE), positions, values),
                 noise_state(seed, stream_id, DALI_NOISE, int(positions[0])))


def evaluation_draws(seed: int, indices: np.ndarray, values: int, flip: bool) -> Draws:
    """For the views of the test images of ``values`` values at ``indices`` (n,), image by image.

    An image as it is, jittered (a crop offset that is MAX_SHIFT, no shift, on neither axis), and both with noise; with
    ``flip`` the same four of the flipped image, with noise of their own (reference: ``DenseEvaluator``).
    """
    view = np.arange(8 if flip else 4)
    jitter = np.column_stack(random_integers((seed, EVALUATION, AUGMENTATION), indices, (2 * MAX_SHIFT, 2 * MAX_SHIFT)))
    jitter += jitter >= MAX_SHIFT
    offsets = np.where((view % 2 == 1)[:, None], jitter[:, None], MAX_SHIFT)
    return Draws(offsets.reshape(-1, 2), np.tile(view // 4, len(indices)), np.tile(view // 2 % 2, len(indices)),
                 noise_keys((seed, EVALUATION, CPU_NOISE), (indices[:, None] * len(view) + view).reshape(-1), values),
                 noise_state(seed, EVALUATION, DALI_NOISE, int(indices[0])))


def random_integers(key: tuple[int, ...], positions: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """For each of up to three sizes below 2**20 uniform integers in range(size), int64 (n,), that belong to positions.

    They are 21 bits each of number ``position`` of SplitMix64 (Steele et al. 2014), seeded with ``key``.
    """
    words = _mix(np.uint64(word_from(*key)) + (positions.astype(np.uint64) + np.uint64(1)) * GAMMA)
    parts = (words >> np.uint64(21 * i) & np.uint64(2**21 - 1) for i in range(len(sizes)))
    return [(part * np.uint64(size) >> np.uint64(21)).astype(np.int64) for part, size in zip(parts, sizes, strict=True)]


def noise_keys(key: tuple[int, ...], positions: np.ndarray, values: int) -> np.ndarray:
    """The states of SplitMix64, uint64 (n,), from which images of ``values`` values at positions draw their noise.

    Each is the state after the numbers of the images before it, in the sequence seeded with ``key``.
    """
    words = np.uint64(-(-values // NOISE_A_WORD))
    return np.uint64(word_from(*key)) + positions.astype(np.uint64) * words * GAMMA


def noise_state(*key: int) -> np.ndarray:
    """A state of DALI's random generator that belongs to a key of non-negative integers."""
    return np.random.SeedSequence(key).generate_state(STATE_WORDS, np.uint32)


def even_shares(available: np.ndarray, count: int) -> np.ndarray:
    """How many of ``count`` images each class gives, as even as the classes allow: int64 (k,), as ``available``.

    Each gives min(its images, level), with the largest level whose sum is at most ``count``; the rest come one each
    from the first classes in order that have more.

    Raises:
        ValueError: more images than there are.
    """
    if count > available.sum():
        raise ValueError(f"{count:,} images asked for, {available.sum():,} there are")
    low, high = 0, int(available.max(initial=0))  # the level is in low to high
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(available, level).sum() <= count else (low, level - 1)
    shares = np.minimum(available, low)
    shares[np.flatnonzero(available > low)[:count - shares.sum()]] += 1
    return shares


def class_balanced_subset(labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Indices (count,) of the labeled images of a run: the reference's ``stratified_sample``, for any count.

    For each class in order, the indices of its images are shuffled by one ``RandomState(1)`` and the first
    ``even_shares`` taken: where ``count`` divides among the classes that is the reference's choice, and a larger one
    contains a smaller. ``count == len(labels)`` takes everything, in order.

    Raises:
        ValueError: more images than there are.
    """
    if count == len(labels):
        return np.arange(count)
    shares = even_shares(np.bincount(labels, minlength=num_classes), count)
    random = np.random.RandomState(1)
    chosen = []
    for label, share in enumerate(shares):
        indices = np.flatnonzero(labels == label)
        random.shuffle(indices)
        chosen.append(indices[:share])
    return np.concatenate(chosen)


def evenly_spread(first: int, last: int, size: int, count: int) -> np.ndarray:
    """Elements ``first`` to ``last`` (exclusive) of ``count`` indices spread evenly over range(size), int64."""
    return np.arange(first, last) * size // count
