"""Graph fragments and their twins on the CPU, against NumPy and SciPy."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from nvidia.dali import Pipeline, fn

from pipelines import augment


def six_views_numpy(image: np.ndarray) -> np.ndarray:
    """The reference's geometric_transform: (H, W, C) to (6, H, W, C)."""
    return np.stack([np.rot90(image, i) for i in range(4)] + [np.fliplr(image), np.flipud(image)])


def dali_on_cpu(graph, images: np.ndarray) -> np.ndarray:
    """Run a graph fragment on DALI's CPU backend over a batch (n, H, W, C)."""
    pipeline = Pipeline(batch_size=len(images), num_threads=2, device_id=None, seed=1)
    with pipeline:
        pipeline.set_outputs(graph(fn.external_source(lambda: images, batch=True, layout="HWC")))
    pipeline.build()
    return torch.from_dlpack(pipeline.run()[0].as_tensor()).clone().numpy()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 12, 12, 3)).astype(np.float32)


def test_the_border_is_symmetric(images):
    expected = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
    padded = torch.full(expected.shape, torch.nan)
    padded[:, 2:-2, 2:-2] = torch.from_numpy(images)
    augment.fill_border(padded)
    assert np.array_equal(padded, expected)
    assert not np.array_equal(expected, np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect"))


def test_all_25_shifts_are_scipy_s(images):
    image = images[0]
    offsets = np.array([(y, x) for y in range(5) for x in range(5)])
    padded = np.repeat(np.pad(images[:1], ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric"), 25, axis=0)

    def graph(source):
        return augment.shift(source, fn.external_source(lambda: offsets.astype(np.int32), batch=True), (12, 12))
    got = dali_on_cpu(graph, padded)
    for shifted, offset in zip(got, offsets, strict=True):
        expected = scipy.ndimage.shift(image, (*(2 - offset), 0), order=0, mode="reflect")
        assert np.array_equal(shifted, expected)


def test_six_views(images):
    expected = np.stack([six_views_numpy(image) for image in images])
    assert np.array_equal(dali_on_cpu(augment.six_views, images), expected)
    assert np.array_equal(augment.six_views_cpu(torch.from_numpy(images)), expected)


def test_flips(images):
    mirror = np.array([1, 0, 0, 1, 1], np.int32)
    expected = np.stack([np.fliplr(image) if flip else image for image, flip in zip(images, mirror, strict=True)])
    ours = torch.from_numpy(images.copy())
    augment.flip_cpu(ours, mirror)
    assert np.array_equal(ours, expected)
    for channels in (1, 3, 4):  # of bytes, too
        pixels = np.random.default_rng(channels).integers(0, 256, (3, 6, 6, channels), dtype=np.uint8)
        ours = torch.from_numpy(pixels.copy())
        augment.flip_cpu(ours, np.array([0, 1, 0]))
        assert np.array_equal(ours, np.stack([pixels[0], np.fliplr(pixels[1]), pixels[2]]))

    def graph(source):
        return augment.mirror(source, fn.external_source(lambda: mirror, batch=True))
    assert np.array_equal(dali_on_cpu(graph, images), expected)


@pytest.mark.parametrize("where", ["dali", "cpu", "cpu, in place"])
def test_noise_has_its_mean_deviation_and_independence(where):
    images = np.full((64, 16, 16, 3), 5, np.float32)
    if where == "dali":
        noise = dali_on_cpu(lambda x: augment.add_noise(x, 0.15, seed=3), images) - images
    else:
        generator = torch.Generator().manual_seed(3)
        ours = torch.from_numpy(images.copy())
        noisy = augment.add_noise_cpu(ours, 0.15, generator, ours if where == "cpu, in place" else None).numpy()
        assert np.array_equal(ours, images) == (where == "cpu")
        noise = noisy - images
    values = noise.size
    assert abs(noise.mean()) < 5 * 0.15 / np.sqrt(values)
    assert abs(noise.std() - 0.15) < 5 * 0.15 / np.sqrt(2 * values)
    between_images = np.corrcoef(noise.reshape(64, -1)) - np.eye(64)
    assert abs(between_images).max() < 6 / np.sqrt(16 * 16 * 3)
    assert scipy.stats.kstest(noise.reshape(-1) / 0.15, "norm").pvalue > 1e-4


def test_pieces_are_even_and_whole(monkeypatch):
    monkeypatch.setattr("pipelines.augment.PIECE_VALUES", 1000)
    for count in (*range(1, 40), 768):
        for values in (1, 10, 350, 999, 1000, 5000):
            pieces = augment.even_pieces(count, values)
            sizes = [len(range(count)[piece]) for piece in pieces]
            assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
            assert min(sizes) > 0
            assert max(sizes) - min(sizes) <= 1
            assert len(pieces) % 2 == 0 or len(pieces) == count
            assert max(sizes) * values <= 1000 or max(sizes) == 1
