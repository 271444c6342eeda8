"""Endless, seeded, resumable batches on the device: the labeled and the unlabeled stream.

A stream runs a DALI pipeline whose sources are pure functions of the run's number, so that nothing has a
cursor. One pipeline run holds several training steps, handed out as views. Beside a GPU the next runs are made on other
threads while they are. On a CPU a run is made when it is asked for, by all cores and for both streams at once: a step
splits its operations over the cores and waits for the one that is held up, so that work beside it costs it more. DALI's
part of a run, which is one core's, is begun beside the run before.
"""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch

from pipelines import augment
from pipelines.batch import NOISE, VIEWS, Batch, Examples, StreamOptions
from pipelines.buffers import Buffers
from pipelines.graphs import (
    default_steps_per_run,
    for_dali,
    run_pipeline,
    shift_graph,
    training_graph,
)
from pipelines.sampling import Order, draw_shift, generator, seed_from, word_from
from pipelines.shards import ShardSet, Subset
from pipelines.threads import background_thread
from pipelines.whitening import Preprocess
from pipelines.windows import Pixels, Windows, default_window_images, upload

DRAWS, DALI_NOISE, CPU_NOISE, FLIPS = 2, 3, 4, 5  # what a random number is for (the order's own keys are 0 and 1)
BLOCK_IMAGES, WINDOW_BLOCKS = 8, 512  # images read at a time at most, and blocks in a window at least
LABELED, UNLABELED, EVALUATION = 0, 1, 2  # which stream it is for
OUT_OF_ORDER = "the stream was interrupted while it asked for a run; load_state_dict puts it right"
RUNS_AHEAD = {"cpu": 0, "cuda": 2}  # runs made or in the making while another is handed out


def default_block_images(window_images: int) -> int:
    """Consecutive images read at a time: few enough that a window of a sorted set is a mixture of it."""
    return max(1, min(BLOCK_IMAGES, window_images // WINDOW_BLOCKS))


def with_index(device: torch.device) -> torch.device:
    """The device with its number, which DALI wants: ``cuda`` is the current GPU."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class Shifted(NamedTuple):
    """What DALI made of a run's images, (n, H, W, C) or (n, 6, H, W, C), their center and scale where they are bytes,
    and DALI's state before it, in hexadecimal."""

    number: int
    images: torch.Tensor
    statistics: tuple[torch.Tensor, ...]
    before: str


class Run(NamedTuple):
    """Some steps' batches, one after another, and DALI's state before they were made, in hexadecimal.

    Images are not there before all ``parts`` are done.
    """

    number: int
    images: torch.Tensor
    labels: torch.Tensor | None
    before: str
    parts: tuple[Future[None], ...]


class Stream:
    """One endless, seeded stream of augmented batches.

    Args:
        sources: shard sets or subsets of some; each gives an equal part of every batch, in this order, and has an
            order and epochs of its own. Labels, unless ``options.views``, are those of the one source.
        preprocess: fitted normalisation.
        options: what a batch is; ``batch`` divides among the sources.
        seed: of order, shifts, flips and noise.
        which: LABELED or UNLABELED, so that streams of one seed differ.
        device: where batches arrive; the CPU or one GPU.
        helpers: threads for all but reading and the shift on a CPU; None for one of the stream's own.
        in_graph: the GPU's way, all but the shift by DALI; False for the CPU's, the shift by DALI and the rest by a
            compiled pass; None for that of the device.

    Iterating yields Examples: (batch, C, H, W) and labels, or with views (6·batch, C, H, W), image by image,
    and proxy labels. Tensors are the caller's to keep; one keeps the memory of its whole run.
    """

    def __init__(self, sources: Sequence[ShardSet | Subset], preprocess: Preprocess, options: StreamOptions, *,
                 seed: int, which: int, device: torch.device, helpers: Executor | None = None,
                 in_graph: bool | None = None):
        if options.batch % len(sources) or (len(sources) > 1 and not options.views):
            raise ValueError(f"batches of {options.batch} from {len(sources)} sources")
        device = with_index(device)
        shape = sources[0].image_shape
        if options.views and shape[0] != shape[1]:
            raise ValueError(f"images of {shape[0]}×{shape[1]}: rotated views need square ones")
        window_images = options.window_images or default_window_images(shape, device)
        blocks = options.block_images or default_block_images(window_images)
        self.orders = tuple(Order(len(source), window_images, blocks, seed_from(seed, which, number))
                            for number, source in enumerate(sources))
        self.options = replace(options, steps_per_run=options.steps_per_run or default_steps_per_run(options, shape))
        on_device = preprocess.to(device)
        self._scales = preprocess.scales
        self._labels = None if options.views else sources[0].labels.astype(np.int64)
        self._size = shape[:2]
        self._run_images = options.batch * self.options.steps_per_run
        self._key = (seed, which)
        self._noise_key = word_from(seed, which, CPU_NOISE)
        self._device = device
        self._in_graph = device.type == "cuda" if in_graph is None else in_graph
        self._proxy_labels = torch.arange(VIEWS, device=device).repeat(options.batch)
        self._gathered: Pixels | None = None  # what DALI reads or has read: the newest run's
        views = (VIEWS,) if options.views else ()
        self._results = Buffers((self._run_images, *views, *shape))  # where they are augmented; the CPU's only
        self._worker = background_thread("stream", device)  # the one thread that calls the pipeline
        self._helpers = helpers or background_thread("augment", device)
        self._threads = [self._worker] if helpers else [self._worker, self._helpers]
        self._windows = [Windows(source, order, on_device, device, self._helpers)
                         for source, order in zip(sources, self.orders, strict=True)]
        self._coming: deque[Future[Run]] = deque()
        self._shifting: Future[Shifted] | None = None  # of the run after those; the CPU's only
        self._start(step=0, checkpoint=None)

    @property
    def windows_loaded(self) -> int:
        """Windows read from the shards so far."""
        return sum(windows.loaded for windows in self._windows)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Examples:
        self.wait_for_batch()
        inside = self._step % self.options.steps_per_run
        self._step += 1
        images, labels = self._run.images, self._run.labels
        size = len(images) // self.options.steps_per_run
        step = slice(inside * size, (inside + 1) * size)
        return Examples(images[step], self._proxy_labels.clone() if labels is None else labels[step])

    def prepare(self) -> None:
        """Have the next batch made, or in the making."""
        if self._needs_run():
            self._ask(1)

    def wait_for_batch(self) -> None:
        """Wait for the next batch. Whoever is interrupted may ask again."""
        if not self._needs_run():
            return
        self._ask(1)
        run = self._coming[0].result()
        for part in run.parts:
            part.result()
        for windows in self._windows:
            windows.wait_for_helpers()  # beside a step their work would cost more
        if self._shifting and not any(windows.loading for windows in self._windows):
            wait([self._shifting])  # and this, unless it waits for a disk
        self._run = run
        self._coming.popleft()
        self._ask(RUNS_AHEAD[self._device.type])

    def state_dict(self) -> dict:
        """Everything needed to go on after the batch delivered last: numbers and strings."""
        self.prepare()
        run = self._coming[0].result() if self._needs_run() else self._run
        return {"step": self._step, "dali": run.before, **self._identity()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` was taken. Raises ValueError where it belongs to another stream."""
        self.check(state)
        self._start(step=state["step"], checkpoint=state["dali"])

    def check(self, state: dict) -> None:
        """Raise ValueError where ``state`` belongs to another stream."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(f"stream {name}: {state.get(name)!r} in the checkpoint, {value!r} now")

    def settle(self) -> None:
        """Wait until all is made that was asked for ahead of time: for whoever times what goes on beside it."""
        for run in self._coming:
            wait(run.result().parts)
        wait([self._shifting] if self._shifting else [])
        for windows in self._windows:
            windows.settle()

    def close(self) -> None:
        """Let go of windows and threads; the stream delivers no more."""
        for threads in self._threads:
            threads.shutdown(wait=True, cancel_futures=True)
        for windows in self._windows:
            windows.close()
        self._coming.clear()
        self._pipeline = self._run = self._gathered = self._shifting = None
        self._results.clear()

    def _identity(self) -> dict:
        orders = [{name: value for name, value in asdict(order).items() if name != "seed"} for order in self.orders]
        noise_drawn_by = None if self._in_graph else augment.NOISE_DRAWN_BY
        return {"key": list(self._key), "in_graph": self._in_graph, "noise_drawn_by": noise_drawn_by,
                **asdict(self.options), "orders": orders}

    def _start(self, step: int, checkpoint: str | None) -> None:
        wait(self._coming)  # the old pipeline may be at work
        wait([self._shifting] if self._shifting else [])  # which the last of those has begun
        self._coming.clear()  # made when first asked for: a stream that is about to be put elsewhere loads nothing
        self._shifting = None
        self._step = step
        self._next_shift = step // self.options.steps_per_run  # the run that the pipeline makes next
        self._run: Run | None = None
        common = {"options": self.options, "seed": seed_from(*self._key, DALI_NOISE),
                  "checkpoint": None if checkpoint is None else bytes.fromhex(checkpoint)}
        if self._in_graph:
            statistics = lambda info: self._statistics("center"), lambda info: self._statistics("scale")
            self._pipeline = training_graph(
                lambda info: self._by_step(self._gathered.images), self._source_mirrors,
                statistics if self._scales else (),
                device_id=self._device.index if self._device.type == "cuda" else None, **common)
        else:
            self._pipeline = shift_graph(
                lambda info: for_dali(self._gathered.images), lambda info: self._offsets(info.iteration),
                as_bytes=bool(self._scales), size=self._size, **common)
        self._built = False

    def _needs_run(self) -> bool:
        """Whether the next batch is the first of a run."""
        return self._run is None or self._run.number != self._step // self.options.steps_per_run

    def _ask(self, runs: int) -> None:
        """Have so many runs that are not handed out yet made, or in the making."""
        first = self._step // self.options.steps_per_run + (not self._needs_run())
        while len(self._coming) < runs:
            self._coming.append(self._worker.submit(self._make_run, first + len(self._coming)))

    def _shift(self, number: int) -> Shifted:
        """On the worker's thread: run ``number`` of the pipeline, which makes them in order."""
        if number != self._next_shift:
            raise RuntimeError(OUT_OF_ORDER)
        if not self._built:
            self._pipeline.build()
            self._built = True
        before = self._pipeline.checkpoint().hex()
        self._gathered = self._gather(number)
        (images,) = run_pipeline(self._pipeline, self._device)
        self._next_shift += 1
        return Shifted(number, images.flatten(0, 1) if self._in_graph else images, self._gathered.parts[1:], before)

    def _make_run(self, number: int) -> Run:
        """On the worker's thread: run ``number``."""
        if self._shifting and not self._shifting.done():  # it stands behind this one in the queue
            raise RuntimeError(OUT_OF_ORDER)
        of, images, statistics, before = self._shifting.result() if self._shifting else self._shift(number)
        if of != number:
            raise RuntimeError(OUT_OF_ORDER)
        parts = ()
        if not self._in_graph:
            images, parts = self._augment(images, statistics, number)
            # DALI's part takes one core: the next run's is done beside the helpers' work on this one.
            self._shifting = self._worker.submit(self._shift, number + 1)
        if self.options.views:
            images = images.flatten(0, 1)
        return Run(number, images.permute(0, 3, 1, 2), self._labels_of(number), before, parts)

    def _augment(self, images: torch.Tensor, statistics: tuple[torch.Tensor, ...],
                 number: int) -> tuple[torch.Tensor, tuple[Future[None], ...]]:
        """Have the helpers augment run ``number``: where they put it, and what to wait for.

        In pieces; an image's noise is that of its place in the stream, so that it makes no difference who does which.
        """
        out = self._results.take()
        mirrors = self._mirrors(number) if self.options.flip else None

        def work(piece: slice) -> None:
            augment.augment_cpu(images[piece], [values[piece] for values in statistics], out[piece],
                                mirror=None if mirrors is None else mirrors[piece], deviation=self.options.noise,
                                key=self._noise_key, first=number * self._run_images + piece.start)
        return out, tuple(self._helpers.submit(work, piece)
                          for piece in augment.even_pieces(len(images), out[0].numel()))

    def _gather(self, number: int) -> Pixels:
        """The images of run ``number``, as they go into the pipeline."""
        count = self._run_images // len(self._windows)  # of each source, in one run
        steps = self.options.steps_per_run  # in each so many of the first source, then so many of the next
        offsets = images = None
        if self._in_graph:
            offsets = self._offsets(number).astype(np.int64).reshape(steps, len(self._windows), -1, 2)
        elif self._gathered and len(self._windows) == 1:
            images = self._gathered.images  # DALI is done with the run before: it was delivered
        parts = [windows.gather(number * count, count,
                                None if offsets is None else offsets[:, source].reshape(-1, 2), images)
                 for source, windows in enumerate(self._windows)]
        if len(parts) == 1:
            return parts[0]
        return Pixels(*(torch.cat([values.unflatten(0, (steps, -1)) for values in same], 1).flatten(0, 1)
                        for same in zip(*(part.parts for part in parts), strict=True)))

    def _by_step(self, values: torch.Tensor) -> np.ndarray | torch.Tensor:
        """What belongs to a run's images, as DALI takes it: (n, …) as (steps, batch, …)."""
        return for_dali(values.unflatten(0, (self.options.steps_per_run, -1)))

    def _statistics(self, name: str) -> np.ndarray | torch.Tensor:
        return self._by_step(getattr(self._gathered, name)[:, None, None])

    def _source_mirrors(self, info) -> np.ndarray | torch.Tensor:
        mirrors = self._mirrors(info.iteration).astype(np.float32)
        return self._by_step(upload(mirrors, self._device)[:, None, None, None])

    def _offsets(self, number: int) -> np.ndarray:
        """Where in the padding the images of a run begin: y and x, int32 (n, 2)."""
        return draw_shift(generator(*self._key, DRAWS, number), self._run_images).T.astype(np.int32, order="C")

    def _labels_of(self, number: int) -> torch.Tensor | None:
        """The labels of a run, int64 (n,) on the device; None for views."""
        if self._labels is None:
            return None
        indices = self._windows[0].indices(number * self._run_images, self._run_images)
        return upload(self._labels[indices], self._device)

    def _mirrors(self, number: int) -> np.ndarray:
        """Which images of a run are mirrored: 0 or 1, int32 (n,)."""
        return generator(*self._key, FLIPS, number).integers(0, 2, self._run_images, np.int32)


class SemiSupervisedLoader:
    """Paired batches for training, endless: ``for batch in loader: batch.labeled.images ...``.

    Args:
        labeled: labeled images, shuffled and repeated for ever.
        unlabeled: one or more sets of images for the proxy branch, their labels ignored, each an equal part of every
            batch; empty for no such branch.
        preprocess: fitted normalisation.
        batch_unlabeled: unlabeled images B a step; there are 6B views of them and 6B labeled images.
        flip: mirror labeled images with probability one half. (The six views contain a flip already.)
        seed: of everything random.
        device: the CPU or one GPU.
        noise: standard deviation; 0 for none.
        threads: for all but reading and the shift on a CPU, one a core at best; batches do not depend on how many.
        window_images: see StreamOptions.
    """

    def __init__(self, labeled: ShardSet | Subset, unlabeled: Sequence[ShardSet | Subset], preprocess: Preprocess, *,
                 batch_unlabeled: int = 16, flip: bool = True, seed: int = 0, device: torch.device | str = "cpu",
                 noise: float = NOISE, threads: int = 1, window_images: int | None = None):
        device = with_index(torch.device(device))
        self._helpers = background_thread("augment", device, threads)
        common = {"seed": seed, "device": device, "helpers": self._helpers}
        self.labeled = Stream([labeled], preprocess, StreamOptions(
            batch_unlabeled * VIEWS, views=False, flip=flip, noise=noise, window_images=window_images),
            which=LABELED, **common)
        self.unlabeled = None if not unlabeled else Stream(unlabeled, preprocess, StreamOptions(
            batch_unlabeled, views=True, flip=False, noise=noise, window_images=window_images),
            which=UNLABELED, **common)

    def __iter__(self) -> "SemiSupervisedLoader":
        return self

    def __next__(self) -> Batch:
        for stream in self._streams():  # before one is waited for
            stream.prepare()
        for stream in self._streams():  # before one goes on: whoever is interrupted there gets the same pair again
            stream.wait_for_batch()
        return Batch(next(self.labeled), None if self.unlabeled is None else next(self.unlabeled))

    def state_dict(self) -> dict:
        """Where both streams are."""
        return {"labeled": self.labeled.state_dict(),
                "unlabeled": None if self.unlabeled is None else self.unlabeled.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` was taken; raises ValueError where it belongs to other streams."""
        if (self.unlabeled is None) != (state["unlabeled"] is None):
            raise ValueError("a checkpoint with a proxy branch goes with a run that has one, and one without without")
        if self.unlabeled is not None:
            self.unlabeled.check(state["unlabeled"])  # before the other is moved
        self.labeled.load_state_dict(state["labeled"])
        if self.unlabeled is not None:
            self.unlabeled.load_state_dict(state["unlabeled"])

    @property
    def steps_per_run(self) -> int:
        """Steps after which both streams begin a new run."""
        return math.lcm(*(stream.options.steps_per_run for stream in self._streams()))

    def settle(self) -> None:
        """Wait until all is made that was asked for ahead of time: for whoever times what goes on beside it."""
        for stream in self._streams():
            stream.settle()

    def _streams(self) -> list[Stream]:
        return [self.labeled] if self.unlabeled is None else [self.labeled, self.unlabeled]

    def close(self) -> None:
        """Let go of windows and threads. To do before a fork: a child that collects a loader hangs in DALI."""
        for stream in self._streams():
            stream.close()
        self._helpers.shutdown(wait=True, cancel_futures=True)
