"""The DALI graphs of the streams, one definition for the CPU and the GPU, and how one is run."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from pipelines import augment

STEPS_PER_RUN, RUN_BYTES = 32, 32 * 2**20  # steps in a run at most, and what they may take
EVALUATION_IMAGES = 128  # images a batch; part of what makes the evaluation's noise the same every time


@dataclass(frozen=True)
class StreamOptions:
    """What fixes a stream's batches, beside the data and the seed. A checkpoint holds for equal options only.

    Args:
        batch: images a step.
        views: six proxy views of every image, instead of the image and its label.
        flip: mirror left to right with probability one half.
        noise: standard deviation of the Gaussian noise; 0 for none.
        steps_per_run: steps in one DALI pipeline run; None for 32, or fewer where they would take more than 32 MiB.
        block_images: consecutive images read at a time; None for 8, or fewer where a window would have fewer than
            512 blocks: small against runs of equal content in the source, and many enough to mix.
        window_images: images on the device at a time; None for a size that suits the device.
    """

    batch: int
    views: bool
    flip: bool
    noise: float = augment.NOISE
    steps_per_run: int | None = None
    block_images: int | None = None
    window_images: int | None = None


def default_steps_per_run(options: StreamOptions, image_shape: tuple[int, int, int]) -> int:
    """Steps in a run: so many that its own cost is little, so few that its batches take some 32 MiB."""
    a_step = 4 * math.prod(image_shape) * options.batch * (augment.VIEWS if options.views else 1)
    return max(1, min(STEPS_PER_RUN, RUN_BYTES // a_step))


def training_graph(images, offsets, mirrors, statistics, *, size: tuple[int, int], options: StreamOptions,
                   device_id: int | None, in_graph: bool, seed: int, checkpoint: bytes | None = None) -> Pipeline:
    """The DALI graph of a training stream, not yet built; one definition for the CPU and the GPU.

    Args:
        images: source of padded images (n, H+4, W+4, C) by ``BatchInfo``. On the CPU they are not copied: DALI reads
            them until the run is delivered, before which it asks for no others (streams ask for runs ahead of time).
        offsets: source of the shifts' offsets (y, x) into the padded images, int32 (n, 2).
        mirrors: source of 0 or 1 (n,): which images to mirror, where ``options.flip``.
        statistics: none for images that are float32 and normalised; for uint8 ones the sources of what
            ``whitening.normalize`` takes, center and scale, float32 (n, 1, 1, 1 or C).
        options: with ``steps_per_run`` filled in.
        device_id: the GPU that everything runs on; None for the CPU backend.
        in_graph: normalisation, flip, noise and views are DALI's; otherwise all but the shift is left to the CPU's
            twins, and pixels come out as they go in.
    """
    device = "cpu" if device_id is None else "gpu"
    pipeline = Pipeline(batch_size=options.batch * options.steps_per_run, num_threads=1, device_id=device_id,
                        seed=seed, prefetch_queue_depth=1, enable_checkpointing=True, checkpoint=checkpoint)
    with pipeline:
        padded = fn.external_source(source=images, batch=True, batch_info=True, device=device,
                                    dtype=types.UINT8 if statistics else types.FLOAT, ndim=3, layout="HWC",
                                    no_copy=device == "cpu")
        starts = fn.external_source(source=offsets, batch=True, batch_info=True, ndim=1, dtype=types.INT32)
        out = augment.shift(padded, starts, size)
        if in_graph and statistics:
            out = augment.scale(out, *(
                fn.external_source(source=source, batch=True, batch_info=True, device=device, dtype=types.FLOAT, ndim=3)
                for source in statistics))
        if in_graph and options.flip:
            which = fn.external_source(source=mirrors, batch=True, batch_info=True, ndim=0, dtype=types.INT32)
            out = augment.mirror(out, which, "flip")
        if in_graph and options.noise:
            out = augment.add_noise(out, options.noise, seed)
        if in_graph and options.views:
            out = augment.six_views(out)
        pipeline.set_outputs(out)
    return pipeline


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
        plain = augment.shift(padded, (augment.MAX_SHIFT, augment.MAX_SHIFT), size, "plain")
        jittered = augment.shift(padded, starts, size, "jittered")
        views = [plain, jittered]
        if in_graph:
            sides = [views, [augment.mirror(view) for view in views]] if flip else [views]
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
