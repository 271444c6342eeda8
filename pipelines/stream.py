"""One endless, seeded, resumable stream of augmented batches on the device.

Terms, here and elsewhere in ``pipelines``:

epoch       every image of a source once; a stream's epochs follow on one another without a pause
position    of an image in the stream, counted on through the epochs
block       a run of consecutive images of the source, the unit of the shuffle
window      some permuted blocks, read in one call and permuted image by image: the shuffle buffer
superbatch  the batches of a few steps, made by one run of the DALI graph and handed out step by step
draws       the random parameters of an image: crop offset, flip, key of its noise
backend     who augments: ``numba``, one compiled DALI operator (on a CPU), or ``dali``, DALI's own (on a GPU)
part        the share of one of several processes in every batch

What is made when: a stream has one thread that makes superbatches, and one for each source that reads windows.
A superbatch is a function of its number (``_make``). On a GPU two more are made ahead, on a CUDA stream of the thread's
own. On a CPU none is: work next to a training step, which uses all cores, would slow it by more. There the operator
runs on DALI's thread pool. The next window is read (and, with ZCA, whitened) once half of one is drawn, on either.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch

from pipelines.batch import VIEWS, Examples, StreamOptions
from pipelines.graph import Graph, Recipe, default_backend
from pipelines.prefetch import Prefetcher
from pipelines.sampling import Order, seed_from, training_draws
from pipelines.shards import ShardSet, Subset
from pipelines.whitening import Preprocess
from pipelines.windows import Windows, default_block_images, default_window_images, upload

SUPERBATCH_STEPS, SUPERBATCH_BYTES = 32, {"cpu": 6 * 2**20, "cuda": 32 * 2**20}  # at most
AHEAD = {"cpu": 0, "cuda": 2}  # superbatches made or in the making while one is handed out
NOISE_SCHEME = {"numba": "SplitMix64, 65536 quantiles", "dali": "DALI's, by superbatch"}


class Superbatch(NamedTuple):
    """Some steps' batches, one after another; on a GPU there once ``ready`` has happened."""

    images: torch.Tensor
    labels: torch.Tensor
    ready: torch.cuda.Event | None


def with_index(device: torch.device) -> torch.device:
    """The device with its number, which DALI wants: ``cuda`` is the current GPU."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def default_steps_per_superbatch(options: StreamOptions, image_shape: tuple[int, int, int], device: str) -> int:
    """Steps in a superbatch: so many that a run's own cost is little, so few that its batches take little memory."""
    a_step = 4 * math.prod(image_shape) * options.batch * (VIEWS if options.views else 1)
    return max(1, min(SUPERBATCH_STEPS, SUPERBATCH_BYTES[device] // a_step))


def check_sources(sources: Sequence[ShardSet | Subset], options: StreamOptions, parts: int) -> None:
    """Raise ValueError where batches cannot be made of these sources, in so many parts."""
    shape = sources[0].image_shape
    if any(source.image_shape != shape for source in sources):
        raise ValueError(f"images of {[source.image_shape for source in sources]} in one stream")
    if options.batch % (len(sources) * parts) or (len(sources) > 1 and not options.views):
        raise ValueError(f"batches of {options.batch} from {len(sources)} sources in {parts} parts")
    if options.views and shape[0] != shape[1]:
        raise ValueError(f"images of {shape[0]}×{shape[1]}: rotated views need square ones")


class Stream:
    """One endless, seeded stream of augmented batches.

    Args:
        sources: shard sets or subsets; each gives an equal part of every batch, in this order, and has its own order
            and epochs. Labels, unless ``options.views``, are those of the one source.
        preprocess: fitted normalisation.
        options: what a batch is; ``batch`` divides among the sources and parts.
        seed: of order and draws.
        stream_id: ``sampling.LABELED`` or ``UNLABELED``, so that streams of one seed differ.
        device: where batches arrive; the CPU or one GPU.
        part: (r, R): of each source's images in a batch only the r-th of R equal parts: R streams together deliver
            what one does, but for a GPU's noise.
        threads: of DALI and for ZCA, on a CPU; batches depend on how many by ZCA's rounding at most.
        backend: see ``pipelines.graph``; None for the device's.

    Iterating yields Examples: (batch / R, C, H, W) and labels, or with views (6·batch / R, C, H, W), image by image,
    and proxy labels. Tensors are the caller's to keep; one keeps the memory of its whole superbatch.
    """

    def __init__(self, sources: Sequence[ShardSet | Subset], preprocess: Preprocess, options: StreamOptions, *,
                 seed: int, stream_id: int, device: torch.device, part: tuple[int, int] = (0, 1), threads: int = 1,
                 backend: str | None = None):
        device, shape = with_index(device), sources[0].image_shape
        backend = backend or default_backend(device)
        check_sources(sources, options, part[1])
        window_images = options.window_images or default_window_images(shape, device)
        blocks = options.block_images or default_block_images(window_images)
        orders = [Order(len(source), window_images, blocks, seed_from(seed, stream_id, number))
                  for number, source in enumerate(sources)]
        steps = options.steps_per_superbatch or default_steps_per_superbatch(options, shape, device.type)
        self.options = replace(options, steps_per_superbatch=steps)
        self._identity = {"seed": seed, "stream_id": stream_id, "noise_scheme": NOISE_SCHEME[backend],
                          "orders": [asdict(order) for order in orders], **asdict(self.options)}
        images = np.arange(steps * options.batch).reshape(steps, len(sources), part[1], -1)
        self._chosen = images[:, :, part[0]]  # of a superbatch's images, this part's: (steps, sources, n)
        on_device = preprocess.to(device)
        self._windows = [Windows(source, order, on_device, device, backend == "dali", threads)
                         for source, order in zip(sources, orders, strict=True)]
        self._labels = None if options.views else sources[0].labels.astype(np.int64)
        self._graph = Graph(Recipe(shape, on_device, options.views, options.flip, options.noise, steps=steps,
                                   images=self._chosen.size), device, backend, threads)
        self._superbatches, self._device, self._step = Prefetcher(self._make, AHEAD[device.type], device), device, 0

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Examples:
        examples = self.peek()
        self.advance()
        return examples

    def peek(self) -> Examples:
        """Wait for the next batch, without going on. Safe to call again after KeyboardInterrupt."""
        superbatch = self._superbatches.get(self._step // self.options.steps_per_superbatch)
        if superbatch.ready is not None:
            reader = torch.cuda.current_stream(self._device)
            reader.wait_event(superbatch.ready)
            superbatch.images.record_stream(reader)
            superbatch.labels.record_stream(reader)
        inside = self._step % self.options.steps_per_superbatch
        return Examples(*(values.unflatten(0, (self.options.steps_per_superbatch, -1))[inside]
                          for values in (superbatch.images, superbatch.labels)))

    def advance(self) -> None:
        """Go on to the next step."""
        self._step += 1

    def start(self) -> None:
        """Have the next batch made, or in the making."""
        self._superbatches.start(self._step // self.options.steps_per_superbatch)

    def state_dict(self) -> dict:
        """Where the stream is, and what it is: numbers and strings."""
        return {"step": self._step, **self._identity}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` was taken. Raises ValueError where it belongs to another stream."""
        self.check(state)
        self._superbatches.forget()  # a caller may have written into them
        self._step = state["step"]

    def check(self, state: dict) -> None:
        """Raise ValueError where ``state`` belongs to another stream."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(f"stream {name}: {state.get(name)!r} in the checkpoint, {value!r} now")

    def settle(self) -> None:
        """Wait until all prefetching has finished: before recording a CUDA graph, and for benchmarks."""
        self._superbatches.settle()
        for windows in self._windows:
            windows.settle()

    def close(self) -> None:
        """Release windows, pipeline and threads; the stream delivers no more."""
        self._superbatches.close()
        for windows in self._windows:
            windows.close()
        self._graph = None

    def _make(self, number: int) -> Superbatch:
        """On the prefetching thread: superbatch ``number``."""
        options, steps, shape = self.options, self.options.steps_per_superbatch, self._graph.recipe.image_shape
        positions = number * steps * options.batch + self._chosen  # in the stream
        draws = training_draws(self._identity["seed"], self._identity["stream_id"], positions.reshape(-1),
                               math.prod(shape), options.flip)
        offsets = draws.offsets.reshape(*positions.shape, 2)
        share = options.batch // len(self._windows)  # of each source in a batch
        in_source = ((steps * number + np.arange(steps))[:, None] * share + self._chosen[0, 0]).reshape(-1)
        parts = [windows.gather(in_source, offsets[:, source].reshape(-1, 2))
                 for source, windows in enumerate(self._windows)]
        pixels = parts[0] if len(parts) == 1 else torch.cat([part.unflatten(0, (steps, -1)) for part in parts], 1)
        images = self._graph(pixels.view(-1, *shape), draws).flatten(0, 1).permute(0, 3, 1, 2)
        if self._labels is None:
            labels = torch.arange(VIEWS, device=self._device).repeat(self._chosen.size)
        else:
            labels = upload(self._labels[self._windows[0].indices(in_source)], self._device)
        ready = torch.cuda.current_stream(self._device).record_event() if images.is_cuda else None
        return Superbatch(images, labels, ready)
