"""Batches contain what the method says, rebuilt from plain NumPy."""

import numpy as np
import pytest
import torch

from pipelines.batch import StreamOptions
from pipelines.evaluation import BATCH_IMAGES, EvaluationLoader
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import LABELED as LABELED_STREAM
from pipelines.sampling import UNLABELED as UNLABELED_STREAM
from pipelines.sampling import class_balanced_subset
from pipelines.shards import Subset
from pipelines.stream import Stream
from pipelines.whitening import prepare
from tests.conftest import random_images, write_set
from tests.pipelines.test_graph import six_views_numpy
from tests.pipelines.test_whitening import reference_gcn, reference_zca

SIZE, IMAGES = 12, 70


def whitened_numpy(images: np.ndarray, kind: str) -> np.ndarray:
    """GCN, and ZCA fitted on these images: float64 (n, H, W, C)."""
    flat = reference_gcn(images)
    if kind == "zca":
        mean, matrix = reference_zca(flat)
        flat = (flat - mean) @ matrix
    return flat.reshape(images.shape)


def candidates_numpy(image: np.ndarray) -> np.ndarray:
    """All that shift and flip may make of an image: (50, H, W, C), candidate 2·(5y + x) + flip."""
    size = image.shape[0]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), "symmetric")
    shifted = [padded[y:y + size, x:x + size] for y in range(5) for x in range(5)]
    return np.stack([candidate for image in shifted for candidate in (image, np.fliplr(image))])


def matches(images: torch.Tensor, candidates: np.ndarray, tolerance: float = 1e-4) -> np.ndarray:
    """Which candidates (k, H, W, C) each image (n, C, H, W) is: bool (n, k), to an absolute tolerance."""
    ours = images.permute(0, 2, 3, 1).flatten(1).numpy().astype(np.float64)
    return np.stack([(np.abs(candidates.reshape(len(candidates), -1) - one) < tolerance).all(axis=1) for one in ours])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    images, labels = random_images(IMAGES, SIZE), np.arange(IMAGES) % 5
    return write_set(tmp_path_factory.mktemp("toy") / "train", images, labels, tuple("abcde")), images, labels


def loader(shard_set, kind="zca", labeled=None, **options) -> SemiSupervisedLoader:
    return SemiSupervisedLoader(labeled or shard_set, [shard_set], prepare(kind, [shard_set], progress=False),
                                **{"batch_unlabeled": 4, "window_images": 32, **options})


@pytest.mark.parametrize("kind", ["gcn", "zca"])
@pytest.mark.parametrize("flip", [True, False])
def test_labeled_batches_are_one_candidate_of_one_image(toy, kind, flip):
    shard_set, images, labels = toy
    candidates = np.concatenate([candidates_numpy(image) for image in whitened_numpy(images, kind)])
    feed = loader(shard_set, kind, noise=0, flip=flip)
    for _ in range(5):
        batch = next(feed).labeled
        assert batch.images.shape == (24, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        found = matches(batch.images, candidates)
        assert (found.sum(axis=1) == 1).all()  # of all 50 candidates of all images, exactly one
        which = found.argmax(axis=1)
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == labels[which // 50].tolist()
        if not flip:
            assert (which % 2 == 0).all()
    feed.close()


def test_unlabeled_batches_are_six_views_of_one_shifted_image(toy):
    shard_set, images, _ = toy
    candidates = np.concatenate([candidates_numpy(image) for image in whitened_numpy(images, "zca")])
    feed = loader(shard_set, noise=0)
    for _ in range(5):
        batch = next(feed).unlabeled
        assert batch.images.shape == (24, 3, SIZE, SIZE)
        assert batch.labels.tolist() == [0, 1, 2, 3, 4, 5] * 4
        found = matches(batch.images[::6], candidates)
        assert (found.sum(axis=1) == 1).all()
        which = found.argmax(axis=1)
        assert (which % 2 == 0).all()  # never flipped before the views
        expected = np.concatenate([six_views_numpy(candidates[one]) for one in which])
        assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-4
    feed.close()


@pytest.mark.parametrize("backend", ["numba", "dali"])
def test_extra_images_are_half_of_every_unlabeled_batch(toy, tmp_path, backend):
    """Three of the set, then three of the other, each in epochs of its own: 40 steps are 120 images of each."""
    shard_set, images, _ = toy
    other = random_images(40, SIZE, seed=9)
    extra = write_set(tmp_path / "extra", other)
    options = StreamOptions(6, views=True, flip=False, noise=0, window_images=32, steps_per_superbatch=5)
    stream = Stream([shard_set, extra], prepare("gcn", [shard_set]), options, seed=4, stream_id=UNLABELED_STREAM,
                    device=torch.device("cpu"), backend=backend)
    candidates = np.concatenate([candidates_numpy(image) for image in
                                 whitened_numpy(np.concatenate([images, other]), "gcn")])
    seen = []
    for _ in range(40):
        batch = next(stream)
        assert batch.labels.tolist() == [0, 1, 2, 3, 4, 5] * 6
        found = matches(batch.images[::6], candidates)
        assert (found.sum(axis=1) == 1).all()
        seen.append(found.argmax(axis=1) // 50)
    seen = np.stack(seen)
    assert sorted(seen[:, 3:].reshape(-1) - IMAGES) == sorted([*range(40)] * 3)
    own = seen[:, :3].reshape(-1)
    assert sorted(own[:IMAGES]) == list(range(IMAGES))
    assert len(set(own[IMAGES:])) == 120 - IMAGES
    stream.close()


@pytest.mark.parametrize("kind", ["gcn", "standardize", "zca"])
@pytest.mark.parametrize("which", [LABELED_STREAM, UNLABELED_STREAM])
def test_both_backends_make_the_same_of_every_image(toy, kind, which):
    """The GPU's way, here on DALI's CPU backend, and the CPU's."""
    shard_set, _, _ = toy
    views = which == UNLABELED_STREAM
    options = StreamOptions(16, views=views, flip=not views, noise=0, window_images=32)
    ours, dali_s = (Stream([shard_set], prepare(kind, [shard_set], progress=False), options, seed=4, stream_id=which,
                           device=torch.device("cpu"), backend=backend) for backend in ("numba", "dali"))
    for _ in range(60):
        one, other = next(ours), next(dali_s)
        assert (one.images - other.images).abs().max() < 1e-5
        assert torch.equal(one.labels, other.labels)
    ours.close()
    dali_s.close()


@pytest.mark.parametrize("size", [48, 64, 96])
@pytest.mark.parametrize("kind", ["gcn", "standardize"])
def test_other_sizes(tmp_path, size, kind):
    images = random_images(6, size)
    shard_set = write_set(tmp_path / "s", images, np.arange(6) % 2, ("a", "b"), shard_bytes=2**20)
    feed = loader(shard_set, kind, noise=0, batch_unlabeled=2)
    expected = whitened_numpy(images, "gcn")
    if kind == "standardize":
        expected = (images - images.mean(axis=(0, 1, 2))) / images.std(axis=(0, 1, 2))
    candidates = np.concatenate([candidates_numpy(image) for image in expected])
    batch = next(feed)
    assert batch.labeled.images.shape == batch.unlabeled.images.shape == (12, 3, size, size)
    assert (matches(batch.labeled.images, candidates).sum(axis=1) == 1).all()
    which = matches(batch.unlabeled.images[::6], candidates).argmax(axis=1)
    expected = np.concatenate([six_views_numpy(candidates[one]) for one in which])
    assert np.abs(batch.unlabeled.images.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-4
    feed.close()


def undo_views(images: torch.Tensor) -> torch.Tensor:
    """(6n, C, H, W) in six views to (n, 6, C, H, W), each turned back upright."""
    views = images.unflatten(0, (-1, 6))
    upright = [torch.rot90(views[:, i], -i, (2, 3)) for i in range(4)] + [views[:, 4].flip(3), views[:, 5].flip(2)]
    return torch.stack(upright, 1)


@pytest.mark.parametrize("backend", ["numba", "dali"])
def test_noise_is_fresh_and_shared_by_the_views(toy, backend):
    """Both ways of making noise and views: what is compiled, and DALI's as on the GPU (here on its CPU backend)."""
    shard_set, _, _ = toy
    preprocess = prepare("gcn", [shard_set])

    def stream(noise: float) -> Stream:
        options = StreamOptions(7, views=True, flip=False, noise=noise, window_images=32)
        return Stream([shard_set], preprocess, options, seed=4, stream_id=UNLABELED_STREAM, device=torch.device("cpu"),
                      backend=backend)
    plain, noisy = stream(0), stream(0.15)
    drawn = []
    for _ in range(40):  # 280 images: four epochs
        noise = undo_views(next(noisy).images) - undo_views(next(plain).images)
        assert torch.allclose(noise, noise[:, :1].expand_as(noise), atol=1e-5)
        drawn.append(noise[:, 0].flatten(1))
    drawn = torch.cat(drawn).numpy()
    values = drawn.size
    assert abs(drawn.std() - 0.15) < 5 * 0.15 / np.sqrt(2 * values)
    assert abs(drawn.mean()) < 5 * 0.15 / np.sqrt(values)
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))  # between images, steps and epochs
    assert abs(correlation).max() < 6 / np.sqrt(drawn.shape[1])
    plain.close()
    noisy.close()


def test_shifts_are_uniform_flips_half_and_epochs_whole(tmp_path):
    images = random_images(40, 8, seed=5)
    shard_set = write_set(tmp_path / "s", images, np.arange(40) % 2, ("a", "b"))
    candidates = np.concatenate([candidates_numpy(image) for image in whitened_numpy(images, "gcn")])
    feed = loader(shard_set, "gcn", noise=0, batch_unlabeled=5)
    which = []
    for _ in range(80):
        batch = next(feed)
        found = matches(batch.labeled.images, candidates)
        assert (found.sum(axis=1) == 1).all()
        which.append(found.argmax(axis=1))
    which = np.concatenate(which)  # 2,400 images: 60 epochs
    for epoch in which.reshape(60, 40):
        assert sorted(epoch // 50) == list(range(40))
    shifts = np.bincount(which % 50 // 2, minlength=25)
    assert ((shifts - 96) ** 2 / 96).sum() < 24 + 5 * np.sqrt(48)
    assert abs((which % 2).mean() - 0.5) < 5 * 0.5 / np.sqrt(2400)
    feed.close()


def test_labeled_stream_keeps_to_its_subset(toy):
    shard_set, _, labels = toy
    chosen = class_balanced_subset(labels, 10, 5)
    candidates = np.concatenate([candidates_numpy(image) for image in
                                 whitened_numpy(shard_set.read(np.arange(IMAGES)), "gcn")])
    feed = loader(shard_set, "gcn", labeled=Subset(shard_set, chosen), noise=0)
    seen = set()
    for _ in range(3):
        seen |= set((matches(next(feed).labeled.images, candidates).argmax(axis=1) // 50).tolist())
    assert seen == set(chosen.tolist())
    feed.close()


@pytest.mark.parametrize("backend", ["numba", "dali"])
@pytest.mark.parametrize("flip", [True, False])
def test_evaluation_views_are_the_reference_s(tmp_path, flip, backend):
    count = BATCH_IMAGES + 30
    images, labels = random_images(count, SIZE), np.arange(count) % 3
    shard_set = write_set(tmp_path / "test", images, labels, tuple("abc"), "test")
    evaluation = EvaluationLoader(shard_set, prepare("gcn", [shard_set]), flip=flip, seed=2, backend=backend)
    whitened = whitened_numpy(images, "gcn")
    batches = list(evaluation)
    assert torch.cat([batch.labels for batch in batches]).tolist() == labels.tolist()
    views = torch.cat([batch.images for batch in batches]).unflatten(0, (-1, evaluation.views))
    views = views.permute(0, 1, 3, 4, 2).numpy()
    assert views.shape == (count, 8 if flip else 4, SIZE, SIZE, 3)
    assert np.abs(views[:, 0] - whitened).max() < 1e-4
    offsets = []
    for image, view in zip(whitened, views[:, 1], strict=True):
        distance = np.abs(candidates_numpy(image)[::2] - view).max(axis=(1, 2, 3))
        assert (distance < 1e-4).sum() == 1
        offsets.append(divmod(int(distance.argmin()), 5))
    assert {axis for offset in offsets for axis in offset} == {0, 1, 3, 4}  # never 2: no shift of zero
    noise = [views[:, 2] - views[:, 0], views[:, 3] - views[:, 1]]
    if flip:
        assert np.array_equal(views[:, 4], views[:, 0, :, ::-1])
        assert np.array_equal(views[:, 5], views[:, 1, :, ::-1])
        noise += [views[:, 6] - views[:, 4], views[:, 7] - views[:, 5]]
    flat = np.stack(noise).reshape(len(noise), -1)
    assert np.abs(flat.std(axis=1) - 0.15).max() < 5 * 0.15 / np.sqrt(2 * flat.shape[1])
    mirrored = np.stack(noise)[:, :, :, ::-1].reshape(len(noise), -1)
    for others in (flat, mirrored):  # every noise its own, and none the mirror image of another
        correlation = np.corrcoef(flat, others)[:len(noise), len(noise):] - np.eye(len(noise)) * (others is flat)
        assert abs(correlation).max() < 6 / np.sqrt(flat.shape[1])
    again = torch.cat([batch.images for batch in evaluation])
    assert torch.equal(again, torch.cat([batch.images for batch in batches]))


@pytest.mark.parametrize("backend", ["numba", "dali"])
@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_of_a_batch_together_are_the_batch(toy, tmp_path, parts, backend):
    """Of each source's images in it; one checkpoint is good for all of them, and for other numbers of parts."""
    shard_set, _, _ = toy
    extra = write_set(tmp_path / "extra", random_images(50, SIZE, seed=9))
    preprocess = prepare("zca", [shard_set], progress=False)
    noise = 0.15 if backend == "numba" else 0  # DALI's is each part's own

    def streams(part: tuple[int, int]) -> list[Stream]:
        common = {"seed": 4, "device": torch.device("cpu"), "part": part, "backend": backend}
        return [Stream([shard_set], preprocess, StreamOptions(
                    24, views=False, flip=True, noise=noise, window_images=32, steps_per_superbatch=5),
                    stream_id=LABELED_STREAM, **common),
                Stream([shard_set, extra], preprocess, StreamOptions(
                    12, views=True, flip=False, noise=noise, window_images=32, steps_per_superbatch=4),
                    stream_id=UNLABELED_STREAM, **common)]
    for kind, whole in enumerate(streams((0, 1))):
        some = [streams((part, parts))[kind] for part in range(parts)]
        next(whole)
        for one in some:
            one.load_state_dict(whole.state_dict())
        for _ in range(13):
            expected, found = next(whole), [next(one) for one in some]
            sources = (1, 2)[kind]
            for name in ("images", "labels"):
                shares = [getattr(one, name).unflatten(0, (sources, -1)) for one in found]
                assert torch.equal(torch.cat(shares, 1).flatten(0, 1), getattr(expected, name))
        assert {one.state_dict()["step"] for one in some} == {14}
        whole.load_state_dict(some[-1].state_dict())
        for one in [whole, *some]:
            one.close()


@pytest.mark.parametrize("backend", ["numba", "dali"])
def test_the_parts_of_a_batch_have_noise_of_their_own(toy, backend):
    def noise(part: int) -> torch.Tensor:
        plain, noisy = (Stream([toy[0]], prepare("gcn", [toy[0]]), StreamOptions(
            24, views=False, flip=False, noise=deviation, window_images=32), seed=4, stream_id=LABELED_STREAM,
            device=torch.device("cpu"), part=(part, 2), backend=backend) for deviation in (0, 0.15))
        found = torch.cat([next(noisy).images - next(plain).images for _ in range(8)])
        plain.close()
        noisy.close()
        return found.flatten(1)
    rows = torch.cat([noise(0), noise(1)])
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 6 / rows.shape[1] ** 0.5


def test_parts_that_do_not_divide_a_batch(toy):
    with pytest.raises(ValueError, match="batches of 12 from 2 sources in 4 parts"):
        Stream([toy[0], toy[0]], prepare("gcn", [toy[0]]), StreamOptions(12, views=True, flip=False), seed=0,
               stream_id=UNLABELED_STREAM, device=torch.device("cpu"), part=(1, 4))
