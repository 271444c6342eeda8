"""GCN and ZCA against plain NumPy in float64."""

import os
import pickle

import numpy as np
import pytest
import torch

from pipelines import whitening
from pipelines.common.errors import DataError
from pipelines.whitening import KINDS, Preprocess, gcn, prepare
from tests.conftest import random_images, write_set


def reference_gcn(images: np.ndarray) -> np.ndarray:
    """The reference's global_contrast_normalize, in float64, for any size."""
    flat = images.reshape(len(images), -1) / 255.0
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    norm[norm < 1e-10] = 1.0
    return 55.0 * np.sqrt(flat.shape[1] / 3072) * flat / norm


def reference_zca(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference's zca_whitener, in float64: mean and matrix."""
    covariance = np.cov(flat, rowvar=False)
    u, s, _ = np.linalg.svd(covariance + 0.1 * np.eye(len(covariance)))
    return flat.mean(axis=0), u @ np.diag(1 / np.sqrt(s + 1e-10)) @ u.T


def close(ours: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Within a relative tolerance of the largest value."""
    return np.abs(ours.numpy() - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("size", [8, 32, 48])
def test_gcn_is_the_reference_s(size):
    images = random_images(20, size)
    ours = gcn(torch.from_numpy(images))
    assert close(ours, reference_gcn(images), 1e-5)
    norm = 55 * np.sqrt(size * size * 3 / 3072)
    assert np.allclose(ours.norm(dim=1), norm, rtol=1e-5)


@pytest.mark.parametrize("size", [32, 600])
def test_gcn_of_one_value_is_zero(size):
    for value in (0, 77, 199, 255):
        assert (gcn(torch.full((2, size, size, 3), value, dtype=torch.uint8)) == 0).all()


def test_zca_is_the_reference_s(tmp_path):
    images = random_images(700, 10)
    images[:, :, 5:] = images[:, :, :5]  # correlated pixels, so that whitening has something to do
    parts = [write_set(tmp_path / "a", images[:450]), write_set(tmp_path / "b", images[450:])]
    ours = prepare("zca", parts, progress=False)
    flat = reference_gcn(images)
    mean, matrix = reference_zca(flat)
    assert close(ours(torch.from_numpy(images)).flatten(1), (flat - mean) @ matrix)
    shuffled = ours(torch.from_numpy(images[::-1].copy())).flip(0).flatten(1)
    assert close(shuffled, (flat - mean) @ matrix)


def test_statistics_of_large_even_images():
    """One value, and but for one pixel, where the center in float32 leaves 0.0026: of 150,528 values."""
    images = np.full((2, 224, 224, 3), 200, np.uint8)
    images[1, 100, 100, 1] = 201
    ours = whitening.gcn(torch.from_numpy(images)).numpy()
    assert (ours[0] == 0).all()
    assert np.allclose(ours[1], reference_gcn(images[1:])[0], rtol=1e-4, atol=3e-3)


def test_gcn_of_bytes_is_that_of_the_same_numbers_as_floats():
    images = torch.from_numpy(random_images(20, 6))
    assert torch.equal(gcn(images), gcn(images.float()))


def test_the_covariance_in_blocks_is_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(whitening, "GRAM_BLOCK", 50)  # 108 values: blocks of 50, 50 and 8
    images = random_images(400, 6)
    images[:, 2:] = images[:, :4]
    fitted = whitening.fit_zca([write_set(tmp_path / "a", images)])
    mean, matrix = reference_zca(reference_gcn(images))
    assert np.allclose(fitted["mean"], mean, atol=1e-6)
    assert close(fitted["matrix"], matrix)


def test_standardize_is_numpy_s(tmp_path):
    images = random_images(300, 10)
    images[..., 1] //= 3
    images[..., 2] = 9
    parts = [write_set(tmp_path / "a", images[:200]), write_set(tmp_path / "b", images[200:])]
    ours = prepare("standardize", parts, progress=False)
    mean, deviation = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    deviation[2] = 1  # of one value
    assert close(ours(torch.from_numpy(images)), (images - mean) / deviation, 1e-5)


@pytest.mark.slow
def test_zca_of_real_images_is_the_reference_s(cifar_layouts, tmp_path):
    """32×32 pixels of real CIFAR-10, against NumPy's SVD in float64."""
    with open(cifar_layouts / "cifar-10-batches-py" / "data_batch_1", "rb") as file:
        rows = pickle.load(file, encoding="bytes")[b"data"][:5000]
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ours = prepare("zca", [write_set(tmp_path / "a", images, shard_bytes=2**22)], progress=False)
    flat = reference_gcn(images)
    mean, matrix = reference_zca(flat)
    some = np.ascontiguousarray(images[:200])
    assert close(ours(torch.from_numpy(some)).flatten(1), (flat[:200] - mean) @ matrix)


def test_fit_on_a_bounded_number_is_evenly_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(whitening, "FIT_IMAGES", 100)
    monkeypatch.setattr(whitening, "FIT_CHUNK_VALUES", 7 * 6 * 6 * 3)
    images = random_images(330, 6)
    parts = [write_set(tmp_path / "a", images[:230]), write_set(tmp_path / "b", images[230:])]
    fitted = whitening.fit_zca(parts)
    flat = reference_gcn(images[[i * 330 // 100 for i in range(100)]])
    expected_mean, expected = reference_zca(flat)
    assert np.allclose(fitted["mean"], expected_mean, atol=1e-6)
    assert close(fitted["matrix"], expected)


def test_fit_is_kept_beside_the_shards_and_redone_for_other_data(tmp_path, monkeypatch):
    fits = []
    real = whitening.fit_zca
    monkeypatch.setattr(whitening, "fit_zca", lambda sets, *rest: fits.append(len(sets)) or real(sets, *rest))
    first = write_set(tmp_path / "train", random_images(50, 6, seed=1))
    images = torch.from_numpy(random_images(5, 6))
    whitened = prepare("zca", [first], progress=False)(images)
    assert torch.equal(prepare("zca", [first], progress=False)(images), whitened)
    assert len(fits) == 1
    other = write_set(tmp_path / "other", random_images(50, 6, seed=2))
    (next(first.path.glob("zca-*.npz"))).rename(other.path / "zca-stray.npz")
    assert not torch.equal(prepare("zca", [other], progress=False)(images), whitened)
    assert len(fits) == 2


def test_a_fit_of_other_data_under_our_name_is_refused(tmp_path):
    first = write_set(tmp_path / "a", random_images(50, 6, seed=1))
    other = write_set(tmp_path / "b", random_images(50, 6, seed=2))
    for one in (first, other):
        prepare("zca", [one], progress=False)
    next(first.path.glob("zca-*.npz")).rename(next(other.path.glob("zca-*.npz")))
    with pytest.raises(DataError, match=r"zca-.*fitted on other data"):
        prepare("zca", [other], progress=False)


def test_shards_on_a_read_only_disk(tmp_path, monkeypatch):
    def refuse(path, write):
        raise PermissionError(path)
    monkeypatch.setattr(whitening, "write_atomically", refuse)
    shard_set = write_set(tmp_path / "a", random_images(30, 4))
    assert prepare("zca", [shard_set], progress=False).kind == "zca"


def test_saved_and_loaded(tmp_path):
    shard_set = write_set(tmp_path / "a", random_images(30, 4))
    images = torch.from_numpy(random_images(3, 4))
    for kind in KINDS:
        fitted = prepare(kind, [shard_set], progress=False)
        fitted.save(tmp_path / "whitening.npz")
        loaded = Preprocess.load(tmp_path / "whitening.npz")
        assert loaded.kind == kind
        assert torch.equal(loaded(images), fitted(images))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_damaged_file(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.npz"):
        Preprocess.load(tmp_path / "w.npz")


@pytest.mark.parametrize("change", [
    {"kind": "other"}, {"mean": np.zeros(1, np.float32)}, {"matrix": np.zeros((48, 48))}, {"image_shape": [4, 4]},
    {"image_shape": [2**40] * 3}, {"fitted_on": "[" * 10**5}, {"fitted_on": "3"}, {"matrix": np.array({}, object)}])
def test_a_fit_that_lies(tmp_path, frugal, change):
    prepare("zca", [write_set(tmp_path / "a", random_images(30, 4))], progress=False).save(tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as file:
        content = dict(file)
    np.savez(tmp_path / "w.npz", **content | change)
    with frugal(), pytest.raises(DataError, match=r"w\.npz: not a whitening file"):
        Preprocess.load(tmp_path / "w.npz")


def test_a_fit_that_inflates_or_is_no_file(tmp_path, frugal):
    np.savez_compressed(tmp_path / "w.npz", kind="gcn", image_shape=[4, 4, 3], fitted_on="{}", x=np.zeros(2**26))
    with frugal(), pytest.raises(DataError, match="compressed, which takes any amount of memory"):
        Preprocess.load(tmp_path / "w.npz")
    (tmp_path / "w.npz").unlink()
    os.mkfifo(tmp_path / "w.npz")
    with frugal(), pytest.raises(DataError, match="not a regular file"):
        Preprocess.load(tmp_path / "w.npz")
