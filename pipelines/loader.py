"""The product's loader: paired batches of the labeled and the unlabeled stream, endless, seeded and resumable."""

import math
from collections.abc import Sequence

import torch

from pipelines.batch import NOISE, VIEWS, Batch, StreamOptions
from pipelines.sampling import LABELED, UNLABELED
from pipelines.shards import ShardSet, Subset
from pipelines.stream import Stream
from pipelines.whitening import Preprocess


class SemiSupervisedLoader:
    """Paired batches for training, endless: ``for batch in loader: batch.labeled.images ...``.

    Args:
        labeled: labeled images, shuffled and repeated for ever.
        unlabeled: one or more sets of images for the proxy branch, their labels ignored, each an equal part of every
            batch; empty for no such branch.
        preprocess: fitted normalisation.
        batch_unlabeled: unlabeled images B a step; there are 6B views of them and 6B labeled images.
        flip: flip labeled images with probability one half. (The six views contain a flip already.)
        seed: of everything random.
        device: the CPU or one GPU.
        noise: standard deviation; 0 for none.
        threads: for augmentation and ZCA on a CPU, one a core at best; batches do not depend on how many, but for
            ZCA's rounding.
        part: (r, R): of every batch only the r-th of R equal parts; see Stream.
        window_images: see StreamOptions.
    """

    def __init__(self, labeled: ShardSet | Subset, unlabeled: Sequence[ShardSet | Subset], preprocess: Preprocess, *,
                 batch_unlabeled: int = 16, flip: bool = True, seed: int = 0, device: torch.device | str = "cpu",
                 noise: float = NOISE, threads: int = 1, part: tuple[int, int] = (0, 1),
                 window_images: int | None = None):
        common = {"seed": seed, "device": torch.device(device), "threads": threads, "part": part}
        self.labeled = Stream([labeled], preprocess, StreamOptions(
            batch_unlabeled * VIEWS, views=False, flip=flip, noise=noise, window_images=window_images),
            stream_id=LABELED, **common)
        self.unlabeled = None if not unlabeled else Stream(unlabeled, preprocess, StreamOptions(
            batch_unlabeled, views=True, flip=False, noise=noise, window_images=window_images),
            stream_id=UNLABELED, **common)

    def __iter__(self) -> "SemiSupervisedLoader":
        return self

    def __next__(self) -> Batch:
        for stream in self._streams():  # both at once
            stream.start()
        batch = Batch(self.labeled.peek(), None if self.unlabeled is None else self.unlabeled.peek())
        for stream in self._streams():  # last, so that a reader who was interrupted gets the same pair again
            stream.advance()
        return batch

    def state_dict(self) -> dict:
        """Where both streams are."""
        return {"labeled": self.labeled.state_dict(),
                "unlabeled": None if self.unlabeled is None else self.unlabeled.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` was taken; raises ValueError where it belongs to other streams."""
        if (self.unlabeled is None) != (state["unlabeled"] is None):
            raise ValueError("checkpoint and run disagree about the proxy (unlabeled) branch")
        if self.unlabeled is not None:
            self.unlabeled.check(state["unlabeled"])  # before the other is moved
        self.labeled.load_state_dict(state["labeled"])
        if self.unlabeled is not None:
            self.unlabeled.load_state_dict(state["unlabeled"])

    @property
    def steps_per_superbatch(self) -> int:
        """Steps after which both streams begin a new superbatch."""
        return math.lcm(*(stream.options.steps_per_superbatch for stream in self._streams()))

    def settle(self) -> None:
        """Wait until all prefetching has finished: before recording a CUDA graph, and for benchmarks."""
        for stream in self._streams():
            stream.settle()

    def _streams(self) -> list[Stream]:
        return [self.labeled] if self.unlabeled is None else [self.labeled, self.unlabeled]

    def close(self) -> None:
        """Release windows, pipelines and threads. Call it before forking: a child that collects a pipeline hangs."""
        for stream in self._streams():
            stream.close()
