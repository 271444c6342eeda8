"""Pure index arithmetic: which image comes when, which are labeled, which random numbers a step uses.

Nothing here has a cursor. A stream's order is a function of (seed, epoch, position), so any step can be
computed without the ones before it, and no permutation of the images is ever held: blocks of consecutive
images are permuted by a keyed bijection, evaluated only for the blocks asked for.
"""

from dataclasses import dataclass

import numpy as np

FEISTEL_ROUNDS = 6


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
class Segment:
    """Part of one window: positions ``first`` to ``last`` (exclusive) of window ``window`` in epoch ``epoch``."""

    epoch: int
    window: int
    first: int
    last: int


@dataclass(frozen=True)
class Order:
    """The order in which an endless stream delivers ``num_images`` images, every one exactly once an epoch.

    Blocks of ``block_images`` consecutive images are permuted anew each epoch; runs of permuted blocks form
    windows of at most ``window_images`` images (a block at least), equal to within a block, and each window is
    permuted image by image. What is loaded at a time is a window; what is read at a time is a block. Of ``ranks``
    processes, each takes a contiguous, disjoint share of the permuted blocks.
    """

    num_images: int
    window_images: int
    block_images: int = 16
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def __post_init__(self):
        if min(self.num_images, self.window_images, self.block_images, self.ranks) < 1:
            raise ValueError(f"sizes must be at least 1: {self}")
        if not 0 <= self.rank < self.ranks <= self._all_blocks:
            raise ValueError(f"rank {self.rank} of {self.ranks} over {self._all_blocks} blocks of images")

    @property
    def _all_blocks(self) -> int:
        return -(-self.num_images // self.block_images)

    @property
    def _first_block(self) -> int:
        return self._all_blocks * self.rank // self.ranks

    @property
    def _blocks(self) -> int:
        return self._all_blocks * (self.rank + 1) // self.ranks - self._first_block

    @property
    def epoch_images(self) -> int:
        """Images in an epoch of this rank."""
        return self._images_before(self._blocks)

    @property
    def windows(self) -> int:
        """Windows in an epoch of this rank."""
        if self.epoch_images <= self.window_images:
            return 1
        return -(-self._blocks // max(1, self.window_images // self.block_images))

    @property
    def largest_window(self) -> int:
        """Images in a window at most."""
        return min(max(self.window_images, self.block_images), self.epoch_images)

    def window_start(self, window: int) -> int:
        """Position in the epoch of the first image of a window; of the end, for ``window == windows``."""
        return self._images_before(self._blocks * window // self.windows)

    def _images_before(self, blocks: int) -> int:
        """Images in the first so many blocks of this rank's share of an epoch.

        The last block of the source may be short. It keeps the last place, so that positions stay simple.
        """
        short = self._all_blocks * self.block_images - self.num_images
        return blocks * self.block_images - short * (self._first_block + blocks == self._all_blocks)

    def segments(self, position: int, count: int) -> list[Segment]:
        """The parts of windows that hold stream positions ``position`` to ``position + count`` (exclusive).

        Positions count on through the epochs; a stretch may cross windows and epochs.
        """
        segments = []
        while count > 0:
            epoch, inside = divmod(position, self.epoch_images)
            block = min(inside // self.block_images, self._blocks - 1)
            window = ((block + 1) * self.windows - 1) // self._blocks
            start, end = self.window_start(window), self.window_start(window + 1)
            take = min(count, end - inside)
            segments.append(Segment(epoch, window, inside - start, inside - start + take))
            position += take
            count -= take
        return segments

    def window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """What a window holds and how it is delivered, both int64 (n,).

        Returns:
            the indices of its images, ascending: the order in which to read them; and a permutation of
            range(n): position i of the window delivers ``indices[permutation[i]]``.
        """
        first = self._first_block + self._blocks * window // self.windows
        last = self._first_block + self._blocks * (window + 1) // self.windows
        full = self.num_images // self.block_images
        blocks = permute(np.arange(first, min(last, full)), full, (self.seed, epoch, 0))
        if last > full:  # the short last block
            blocks = np.append(blocks, full)
        blocks.sort()
        indices = (blocks[:, None] * self.block_images + np.arange(self.block_images)).reshape(-1)
        indices = indices[indices < self.num_images]
        return indices, generator(self.seed, epoch, 1, window, self.rank).permutation(len(indices))


def draw_shift(rng: np.random.Generator, count: int, max_shift: int = 2) -> np.ndarray:
    """Offsets of a crop into an image padded by ``max_shift``: int (2, count), y and x, uniform over all."""
    return rng.integers(0, 2 * max_shift + 1, (2, count))


def draw_jitter(rng: np.random.Generator, count: int, max_shift: int = 2) -> np.ndarray:
    """Like ``draw_shift``, but never 0 on either axis: the evaluation's jittered copy (reference: ``jitter``)."""
    offsets = rng.integers(0, 2 * max_shift, (2, count))
    return offsets + (offsets >= max_shift)


def class_balanced_subset(labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Indices (count,) of the labeled images of a run: the reference's ``stratified_sample``.

    For each class in order, the indices of its images are shuffled by one ``RandomState(1)`` and the first
    ``count // num_classes`` taken. ``count == len(labels)`` takes everything, in order.

    Raises:
        ValueError: more images than there are, a count that does not divide among the classes (the message
            names the nearest that do), or a class with too few images.
    """
    if count == len(labels):
        return np.arange(count)
    if count > len(labels):
        raise ValueError(f"{count} images asked for, {len(labels)} there are")
    per_class, rest = divmod(count, num_classes)
    if rest or not per_class:
        below, above = per_class * num_classes, (per_class + 1) * num_classes
        nearest = " and ".join(str(n) for n in (below, min(above, len(labels))) if n)
        raise ValueError(f"{count} does not divide among {num_classes} classes; the nearest that do: {nearest}")
    random = np.random.RandomState(1)
    chosen = []
    for label in range(num_classes):
        indices = np.flatnonzero(labels == label)
        if len(indices) < per_class:
            raise ValueError(f"{count} asks for {per_class} images of each class, class {label} has {len(indices)}")
        random.shuffle(indices)
        chosen.append(indices[:per_class])
    return np.concatenate(chosen)


def evenly_spread(first: int, last: int, size: int, count: int) -> np.ndarray:
    """Elements ``first`` to ``last`` (exclusive) of ``count`` indices spread evenly over range(size), int64."""
    return np.arange(first, last) * size // count
