"""The DALI graph of a stream: pixels and draws in, augmented images out, in one definition for each backend.

``numba``, a CPU's: one DALI operator makes an image, compiled by Numba (``pipelines.kernel``), since DALI's own CPU
operators are slow at noise and views. ``dali``, a GPU's: DALI's operators, whose samples are the images of a whole
step, since the host has work for each sample. There images come normalised, and cropped by the gather that draws them
from their window (``pipelines.windows``). Views share one crop and one noise draw.

    numba    crop, normalise, add noise; then one gather of pixels for flip and views
    dali     (normalised and cropped already) flip, add noise, views
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from pipelines.batch import VIEWS
from pipelines.sampling import MAX_SHIFT, QUANTILES, Draws
from pipelines.whitening import Preprocess
from pipelines.windows import upload

DALI_SAMPLES = 64  # at most, for views on a GPU: for more small ones DALI's transpose launches a grid of no blocks


def default_backend(device: torch.device) -> str:
    """The backend that suits a device."""
    return {"cpu": "numba", "cuda": "dali"}[device.type]


class Recipe(NamedTuple):
    """What a graph makes of images.

    Args:
        image_shape: (H, W, C).
        preprocess: on the stream's device.
        views: six proxy views of each image instead of the image.
        flip: whether some images are flipped left to right.
        noise: standard deviation; 0 for none.
        steps: samples of the ``dali`` backend in one run.
        images: in one run at most.
    """

    image_shape: tuple[int, int, int]
    preprocess: Preprocess
    views: bool
    flip: bool
    noise: float
    steps: int
    images: int

    def pixels(self, backend: str) -> str:
        """The type of the images that go in: those of a CPU's operator are not normalised yet."""
        return "uint8" if backend == "numba" and not self.preprocess.mixes else "float32"


class Graph:
    """A built pipeline. What it makes is a function of its arguments alone: nothing is kept from run to run.

    Args:
        recipe: what to make.
        device: the CPU or one GPU.
        backend: ``numba`` or ``dali``.
        threads: DALI's, on a CPU; results do not depend on how many.
    """

    def __init__(self, recipe: Recipe, device: torch.device, backend: str, threads: int = 1):
        if recipe.preprocess.image_shape != tuple(recipe.image_shape):
            raise ValueError(f"images of {recipe.image_shape}, preprocessing of {recipe.preprocess.image_shape}")
        if backend == "dali" and recipe.views and recipe.steps > DALI_SAMPLES:
            raise ValueError(f"{recipe.steps} steps a superbatch, expected at most {DALI_SAMPLES}")
        self.recipe, self._device, self._backend = recipe, device, backend
        self._pipeline = Pipeline(
            batch_size=recipe.images if backend == "numba" else recipe.steps, num_threads=threads,
            device_id=device.index if device.type == "cuda" else None, prefetch_queue_depth=1)
        with self._pipeline:
            self._pipeline.set_outputs(numba_graph(recipe) if backend == "numba" else
                                       dali_graph(recipe, "cpu" if device.type == "cpu" else "gpu"))

    def __call__(self, pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The images made of ``pixels``: float32 (n, 1 or VIEWS, H, W, C), the caller's to keep.

        Raises:
            ValueError: pixels or draws of other shapes, types or ranges, which the kernel does not check.
        """
        self._check(pixels, draws)
        inputs = (self._numba_inputs if self._backend == "numba" else self._dali_inputs)(pixels, draws)
        if self._device.type == "cpu":
            (images,) = self._pipeline.run(**inputs)
            images = torch.from_dlpack(images.as_tensor())
        else:
            with torch.cuda.device(self._device):  # DALI takes inputs on the current stream of the current device
                (images,) = self._pipeline.run(torch.cuda.current_stream(), **inputs)
                images = torch.from_dlpack(images.as_tensor()).clone()  # PyTorch's memory, which knows who reads it
        height, width, channels = self.recipe.image_shape
        return images.view(-1, VIEWS if self.recipe.views else 1, height, width, channels)

    def _check(self, images: torch.Tensor, draws: Draws) -> None:
        shape, dtype = self.recipe.image_shape, getattr(torch, self.recipe.pixels(self._backend))
        count = len(images)
        if (images.shape[1:] != shape or images.dtype != dtype or not images.is_contiguous()
                or not 1 <= count <= self.recipe.images or {len(values) for values in draws[:-1]} != {count}
                or draws.offsets.shape[1:] != (2,)
                or not (draws.offsets.min() >= 0 and draws.offsets.max() <= 2 * MAX_SHIFT)
                or not (draws.flip.min() >= 0 and draws.flip.max() <= 1)):
            raise ValueError(f"graph of {shape} {dtype}, at most {self.recipe.images}: found {tuple(images.shape)} "
                             f"{images.dtype} with draws of {[values.shape for values in draws]}")

    def _numba_inputs(self, pixels: torch.Tensor, draws: Draws) -> dict:
        numbers = np.column_stack([draws.offsets, draws.flip, draws.noisy, draws.noise_keys.view(np.int64)])
        return {"pixels": pixels.numpy(), "draws": numbers}

    def _dali_inputs(self, pixels: torch.Tensor, draws: Draws) -> dict:
        def by_step(values: torch.Tensor) -> np.ndarray | torch.Tensor:
            values = values.view(self.recipe.steps, -1, *values.shape[1:])
            return values if values.is_cuda else values.numpy()

        def numbers(values: np.ndarray) -> np.ndarray | torch.Tensor:
            return by_step(upload(values.astype(np.float32), self._device)[:, None, None, None])
        inputs = {"pixels": by_step(pixels)}
        if self.recipe.flip:
            inputs["flip"] = numbers(draws.flip)
        if self.recipe.noise:
            inputs |= {"noisy": numbers(draws.noisy), "noise_state": np.tile(draws.noise_state, (self.recipe.steps, 1))}
        return inputs


def numba_graph(recipe: Recipe) -> DataNode:
    """One operator, for a CPU; a sample is an image."""
    from nvidia.dali.plugin.numba import NumbaFunction  # these take a while, and a GPU does not need them

    from pipelines import kernel

    class Compiled(NumbaFunction):
        """DALI's operator, given the addresses of C functions; by itself it compiles in every process."""

        def _get_run_fn_cpu(self, run_fn, *types_and_dimensions):
            return run_fn

        def _get_setup_fn_cpu(self, setup_fn):
            return setup_fn
    found = recipe.pixels("numba")
    pixels = {"uint8": types.UINT8, "float32": types.FLOAT}[found]
    run, setup = kernel.operator(found)
    operator = Compiled(run_fn=run, setup_fn=setup, ins_ndim=[3, 1, 2, 1, 1], outs_ndim=[4],
                        in_types=[pixels, types.INT64, types.INT32, types.FLOAT, types.FLOAT], out_types=[types.FLOAT])
    constants = (pixel_index(*recipe.image_shape[:2], recipe.views), quantiles(recipe.noise),
                 recipe.preprocess.settings())
    return operator(
        fn.external_source(name="pixels", batch=True, dtype=pixels, ndim=3, layout="HWC", no_copy=True),
        fn.external_source(name="draws", batch=True, dtype=types.INT64, ndim=1, no_copy=True),
        *(types.Constant(values, device="cpu") for values in constants))


def dali_graph(recipe: Recipe, device: str) -> DataNode:
    """DALI's own operators; a sample is a step, (B, H, W, C), each image normalised and cropped already.

    (DALI runs them on a CPU, too.)
    """
    def source(name: str, dtype=types.FLOAT, ndim: int = 4, layout: str = "", device: str = device) -> DataNode:
        return fn.external_source(name=name, batch=True, dtype=dtype, ndim=ndim, layout=layout, device=device)
    images = source("pixels", layout="FHWC")
    if recipe.flip:
        which = source("flip")
        images = images * (1 - which) + flipped(images, name="flip_some") * which
    if recipe.noise:  # its whole state comes in with each run, as DALI's dynamic mode does it
        state = source("noise_state", types.UINT32, ndim=1, device="cpu")
        noise = fn.random.normal(images, stddev=recipe.noise, _random_state=state, name="noise")
        images = images + noise * source("noisy")
    return six_views(images) if recipe.views else images


def flipped(images: DataNode, name: str | None = None) -> DataNode:
    """DALI: flip all images of a sample left to right.

    (``fn.flip`` launches one kernel a sample on the GPU, this one a batch. With a ``mirror`` argument for each sample
    its cost is quadratic in the samples.)
    """
    return fn.crop_mirror_normalize(images, mirror=1, dtype=types.FLOAT, output_layout="FHWC", name=name)


def six_views(images: DataNode) -> DataNode:
    """DALI: the six proxy views of each square image of a sample, (B, H, W, C) to (B, 6, H, W, C).

    For at most DALI_SAMPLES samples.
    """
    def transposed(x: DataNode) -> DataNode:
        return fn.transpose(x, perm=[0, 2, 1, 3], transpose_layout=False)
    left_right = flipped(images)
    rotated90 = transposed(left_right)
    rotated270 = flipped(transposed(images))
    up_down = transposed(rotated270)
    rotated180 = flipped(up_down)
    views = (images, rotated90, rotated180, rotated270, left_right, up_down)
    return fn.stack(*(fn.reshape(view, layout="") for view in views), axis=1, name="six_views")


@cache
def quantiles(deviation: float) -> np.ndarray:
    """65,536 equally likely values of Gaussian noise, float32: at most 4.3 deviations, and scaled to have that one."""
    values = torch.special.ndtri((torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES)
    return (values * (deviation / values.square().mean().sqrt())).to(torch.float32).numpy()


def pixel_index(height: int, width: int, views: bool) -> np.ndarray:
    """From which pixel of an image each pixel of the result comes, for an image as it is and for a flipped one.

    int32 (2, H·W), or (2, 6·H·W) for the six views of a square image.
    """
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)

    def made_of(image: np.ndarray) -> np.ndarray:
        return np.stack([*(np.rot90(image, quarter) for quarter in range(4)), image[:, ::-1], image[::-1]] if views
                        else [image]).reshape(-1)
    return np.stack([made_of(pixels), made_of(pixels[:, ::-1])])
