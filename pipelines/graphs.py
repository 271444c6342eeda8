"""The DALI graphs of the streams, and how one is run."""

import math
from collections.abc import Callable

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from pipelines import augment
from pipelines.batch import MAX_SHIFT, VIEWS, StreamOptions

STEPS_PER_RUN, RUN_BYTES = 32, 32 * 2**20  # steps in a run at most, and what they may take
EVALUATION_IMAGES = 128  # images a batch; part of what makes the evaluation's noise the same every time


def default_steps_per_run(options: StreamOptions, image_shape: tuple[int, int, int]) -> int:
    """Steps in a run: so many that its own cost is little, so few that its batches take some 32 MiB."""
    a_step = 4 * math.prod(image_shape) * options.batch * (VIEWS if options.views else 1)
    return max(1, min(STEPS_PER_RUN, RUN_BYTES // a_step))


def training_graph(images, mirrors, statistics, *, options: StreamOptions, device_id: int | None, seed: int,
                   checkpoint: bytes | None = None) -> Pipeline:
    """The DALI graph that makes a training stream's batches on a GPU, not yet built. (DALI's CPU backend runs it, too.)

    A sample is a step: its ``options.batch`` images B, each at its shift already. So one run's output is
    (steps, B, H, W, C), or (steps, B, 6, H, W, C), float32.

    Args:
        images: source by ``BatchInfo`` of a run's images, (steps, B, H, W, C).
        mirrors: source of 0 or 1, float32 (steps, B, 1, 1, 1): which images to mirror, where ``options.flip``.
        statistics: none for images that are float32 and normalised; for uint8 ones the sources of what
            ``whitening.normalize`` takes, center and scale, float32 (steps, B, 1, 1, 1 or C).
        options: with ``steps_per_run`` filled in.
        device_id: the GPU that everything runs on; None for the CPU backend.
    """
    device = "cpu" if device_id is None else "gpu"

    def numbers(source: Callable) -> DataNode:
        return fn.external_source(source=source, batch=True, batch_info=True, device=device, dtype=types.FLOAT, ndim=4)
    if options.views and options.steps_per_run > augment.VIEWED_SAMPLES:
        raise ValueError(f"{options.steps_per_run} steps a run, expected at most {augment.VIEWED_SAMPLES}")
    pipeline = _pipeline(options.steps_per_run, device_id, seed, checkpoint)
    with pipeline:
        out = fn.external_source(source=images, batch=True, batch_info=True, device=device,
                                 dtype=types.UINT8 if statistics else types.FLOAT, ndim=4, layout="FHWC")
        if statistics:
            out = augment.scale(out, *map(numbers, statistics))
        if options.flip:
            out = augment.mirror_some(out, numbers(mirrors), "flip")
        if options.noise:
            out = augment.add_noise(out, options.noise, seed)
        if options.views:
            out = augment.six_views(out)
        pipeline.set_outputs(out)
    return pipeline


def shift_graph(images, offsets, *, as_bytes: bool, size: tuple[int, int], options: StreamOptions, seed: int,
                checkpoint: bytes | None = None) -> Pipeline:
    """The DALI graph of a training stream on a CPU, not yet built: the shift alone; a sample is an image.

    Args:
        images: source of padded images (n, H+4, W+4, C) by ``BatchInfo``. They are not copied: DALI reads them until
            the run is delivered, before which it asks for no others (streams ask for runs ahead of time).
        offsets: source of the shifts' offsets (y, x) into the padded images, int32 (n, 2).
        as_bytes: pixels are uint8, not float32; they come out as they go in.
        options: with ``steps_per_run`` filled in.
    """
    pipeline = _pipeline(options.batch * options.steps_per_run, None, seed, checkpoint)
    with pipeline:
        padded = fn.external_source(source=images, batch=True, batch_info=True, ndim=3, layout="HWC",
                                    dtype=types.UINT8 if as_bytes else types.FLOAT, no_copy=True)
        starts = fn.external_source(source=offsets, batch=True, batch_info=True, ndim=1, dtype=types.INT32)
        pipeline.set_outputs(augment.shift(padded, starts, size))
    return pipeline


def _pipeline(samples: int, device_id: int | None, seed: int, checkpoint: bytes | None) -> Pipeline:
    return Pipeline(batch_size=samples, num_threads=1, device_id=device_id, seed=seed, prefetch_queue_depth=1,
                    enable_checkpointing=True, checkpoint=checkpoint)


def evaluation_graph(images, offsets, *, size: tuple[int, int], flip: bool, noise: float, device_id: int | None,
                     in_graph: bool, seed: int) -> Pipeline:
    """The DALI graph of the evaluation's views, not yet built.

    Outputs, in graph: (4 or 8, H, W, C) an image, in ``evaluation_views``'s order; otherwise the image and its
    jittered copy, (2, H, W, C), whose noise and flips are left to ``evaluation_views``.
    """
    device = "cpu" if device_id is None else "gpu"
    pipeline = Pipeline(batch_size=EVALUATION_IMAGES, num_threads=1, device_id=device_id, seed=seed)
    with pipeline:
        padded = fn.external_source(source=images, batch=True, batch_info=True, device=device,
                                    dtype=types.FLOAT, ndim=3, layout="HWC")
        starts = fn.external_source(source=offsets, batch=True, batch_info=True, ndim=1, dtype=types.INT32)
        plain = augment.shift(padded, (MAX_SHIFT, MAX_SHIFT), size, "plain")
        jittered = augment.shift(padded, starts, size, "jittered")
        views = [plain, jittered]
        if in_graph:
            sides = [views, [augment.mirror(view, "HWC") for view in views]] if flip else [views]
            draws = iter(range(4))  # each noise its own seed, or all would be the same
            views = []
            for side in sides:
                views += side + [augment.add_noise(view, noise, seed + draw, f"noise_{draw}")
                                 for view, draw in zip(side, draws, strict=False)]
        pipeline.set_outputs(fn.stack(*views))
    return pipeline


def evaluation_views(pair: torch.Tensor, flip: bool, noise: float, key: int) -> torch.Tensor:
    """The reference's ``DenseEvaluator`` views from an image and its jittered copy, on the CPU.

    Args:
        pair: (n, 2, H, W, C).
        key: of the noise, 64 bits.

    Returns:
        (n, 4 or 8, H, W, C): image, jittered, both with noise; then the same four of the flipped image, with
        noise of their own.
    """
    views = []
    for number, side in enumerate([pair, pair.flip(3)] if flip else [pair]):
        images = side.flatten(0, 1)
        views += [side, augment.add_noise_cpu(images, noise, key, number * len(images)).view(pair.shape)]
    return torch.cat(views, 1)


def for_dali(tensor: torch.Tensor) -> np.ndarray | torch.Tensor:
    """A tensor as DALI takes it, without a copy."""
    return tensor if tensor.is_cuda else tensor.numpy()


def run_pipeline(pipeline: Pipeline, device: torch.device) -> tuple[torch.Tensor, ...]:
    """One run of a DALI pipeline; its outputs as tensors on the device, without a copy."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None  # a thread's own is the default one
    return tuple(torch.from_dlpack(output.as_tensor()) for output in pipeline.run(stream))
