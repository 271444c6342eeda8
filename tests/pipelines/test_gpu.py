"""What only a GPU can show: its batches are the CPU's, its noise is noise, and its streams resume."""

import numpy as np
import pytest
import torch

from pipelines.batch import StreamOptions
from pipelines.evaluation import EvaluationLoader
from pipelines.sampling import LABELED, UNLABELED
from pipelines.stream import Stream
from pipelines.whitening import prepare
from tests.conftest import random_images, write_set

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=[8, 32, 50])
def some_set(request, tmp_path_factory):
    """300 images; DALI has other kernels for large ones than for small."""
    images = random_images(300, request.param)
    return write_set(tmp_path_factory.mktemp("sets") / "train", images, np.arange(300) % 3, ("a", "b", "c"))


def stream(small_set, device: str, stream_id=UNLABELED, noise=0.15, kind="zca") -> Stream:
    options = StreamOptions(10, views=stream_id == UNLABELED, flip=stream_id == LABELED, noise=noise, window_images=64)
    return Stream([small_set], prepare(kind, [small_set], progress=False), options, seed=1, stream_id=stream_id,
                  device=torch.device(device))


@pytest.mark.parametrize("kind", ["gcn", "standardize"])
@pytest.mark.parametrize("which", [LABELED, UNLABELED])
def test_batches_without_noise_are_the_cpu_s(some_set, which, kind):
    compare(some_set, which, kind)


@pytest.mark.parametrize("which", [LABELED, UNLABELED])
def test_whitened_batches_without_noise_are_the_cpu_s(small_set, which):
    compare(small_set, which, "zca")


def compare(shard_set, which, kind) -> None:
    on_cpu, on_gpu = (stream(shard_set, device, which, noise=0, kind=kind) for device in ("cpu", "cuda:0"))
    for _ in range(100):
        ours, expected = next(on_gpu), next(on_cpu)
        assert ours.images.is_cuda
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert (ours.images.cpu() - expected.images).abs().max() < 1e-4
        assert torch.equal(ours.labels.cpu(), expected.labels)
    on_cpu.close()
    on_gpu.close()


def test_noise(small_set):
    plain, noisy = stream(small_set, "cuda:0", LABELED, 0), stream(small_set, "cuda:0", LABELED)
    noise = torch.cat([next(noisy).images - next(plain).images for _ in range(40)]).flatten(1)
    assert abs(noise.std().item() - 0.15) < 5 * 0.15 / (2 * noise.numel()) ** 0.5
    assert abs(noise.mean().item()) < 5 * 0.15 / noise.numel() ** 0.5
    correlation = torch.corrcoef(noise) - torch.eye(len(noise), device=noise.device)
    assert correlation.abs().max() < 6 / noise.shape[1] ** 0.5
    plain.close()
    noisy.close()


@pytest.mark.parametrize("steps", [0, 3, 8, 21])
def test_resumes_to_the_bit(small_set, steps):
    one, other = stream(small_set, "cuda:0"), stream(small_set, "cuda:0")
    for _ in range(steps):
        next(one)
    other.load_state_dict(one.state_dict())
    for _ in range(12):
        assert torch.equal(next(one).images, next(other).images)
    one.close()
    other.close()


def test_batches_are_the_caller_s(small_set):
    one, other = stream(small_set, "cuda:0"), stream(small_set, "cuda:0")
    kept = [next(one).images for _ in range(50)]
    copies = [next(other).images.clone() for _ in range(50)]
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    one.close()
    other.close()


def test_evaluation_is_the_same_every_time(small_set):
    evaluation = EvaluationLoader(small_set, prepare("gcn", [small_set]), flip=True, device="cuda:0")
    first, second = ([views for views, _ in evaluation] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    on_cpu = [views for views, _ in EvaluationLoader(small_set, prepare("gcn", [small_set]), flip=True)]
    plain = [torch.cat(views).unflatten(0, (-1, 8))[:, [0, 1, 4, 5]].cpu() for views in (first, on_cpu)]
    assert (plain[0] - plain[1]).abs().max() < 1e-4
