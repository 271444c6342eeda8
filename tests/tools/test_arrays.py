"""NumPy arrays under the names their users give them, in every layout of pixels, read piece by piece."""

import numpy as np
import pytest

from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare
from tools.sources import arrays


def run(command, source, tmp_path, *flags) -> tuple[int, str, str]:
    return command(prepare.main, "numpy", "--source", source, "--out", tmp_path / "s", *flags)


def contents(path) -> tuple[np.ndarray, list | None]:
    shard_set = ShardSet(path)
    return shard_set.read(np.arange(len(shard_set))), None if shard_set.classes is None else shard_set.labels.tolist()


@pytest.mark.parametrize("names", [("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y")])
@pytest.mark.parametrize("form", ["npz", "compressed", "folder"])
def test_train_and_test(tmp_path, command, monkeypatch, names, form):
    monkeypatch.setattr(arrays, "CHUNK", 7)
    train, test = random_images(50, 8, 1), random_images(9, 8, 2)
    train_labels, test_labels = (np.arange(50) % 3)[:, None], np.arange(9, dtype=np.uint8) % 3  # MedMNIST has (N, 1)
    content = {names[0].format("train"): train, names[1].format("train"): train_labels,
               names[0].format("test"): test, names[1].format("test"): test_labels, "val_images": train}
    source = tmp_path / "data.npz"
    if form == "folder":
        source = tmp_path / "data"
        source.mkdir()
        for name, array in content.items():
            np.save(source / f"{name}.npy", array)
    else:
        (np.savez if form == "npz" else np.savez_compressed)(source, **content)
    status, out, _ = run(command, source, tmp_path)
    assert status == 0
    assert "50 images of 8×8, 3 classes" in out
    for split, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        got, classes = contents(tmp_path / "s" / split)
        assert np.array_equal(got, images)
        assert classes == labels.reshape(-1).tolist()


@pytest.mark.parametrize(("stored", "expected"), [
    (lambda x: x, lambda x: x), (lambda x: x.transpose(0, 3, 1, 2).copy(), lambda x: x),
    (lambda x: x[..., 0].copy(), lambda x: np.repeat(x[..., :1], 3, 3)),
    (lambda x: x[..., :1].copy(), lambda x: np.repeat(x[..., :1], 3, 3)),
    (lambda x: x[..., :1].transpose(0, 3, 1, 2).copy(), lambda x: np.repeat(x[..., :1], 3, 3)),
    (lambda x: np.concatenate([x, np.full_like(x[..., :1], 255)], 3), lambda x: x)])
def test_layouts_of_an_unlabeled_array(tmp_path, command, stored, expected):
    images = random_images(11, 8)
    np.save(tmp_path / "x.npy", stored(images))
    assert run(command, tmp_path / "x.npy", tmp_path)[0] == 0
    got, labels = contents(tmp_path / "s" / "train")
    assert labels is None
    assert np.array_equal(got, expected(images))


def test_resized(tmp_path, command):
    images = np.full((3, 12, 20, 3), 90, np.uint8)
    np.save(tmp_path / "x.npy", images)
    status, _, err = run(command, tmp_path / "x.npy", tmp_path)
    assert status == 2
    assert "--size" in err
    assert "12×20" in err
    assert run(command, tmp_path / "x.npy", tmp_path, "--size", 6)[0] == 0
    assert np.array_equal(contents(tmp_path / "s" / "train")[0], np.full((3, 6, 6, 3), 90))


IMAGES = random_images(4, 8)


@pytest.mark.parametrize(("content", "message"), [
    ({"pictures": IMAGES}, "arrays pictures found"), ({"images": IMAGES.astype(np.float32)}, "expected uint8"),
    ({"images": IMAGES[0]}, None), ({"images": IMAGES[:, :, :, :2]}, "expected uint8"),
    ({"images": IMAGES[:0]}, "expected uint8"), ({"images": IMAGES, "labels": np.arange(5)}, "expected integers (4,)"),
    ({"images": IMAGES, "labels": np.arange(4.0)}, "expected integers"),
    ({"images": IMAGES, "labels": -np.arange(4)}, "class numbers"),
    ({"images": np.asfortranarray(IMAGES)}, "Fortran"), ({"images": np.array([{}])}, "expected uint8"),
    ({"train_images": IMAGES, "train_labels": np.arange(4), "test_images": IMAGES}, "one of train and test only"),
    ({"train_images": IMAGES, "train_labels": np.zeros(4, int), "test_images": IMAGES, "test_labels": np.arange(4)},
     "class 3 found")])
def test_wrong_arrays(tmp_path, command, content, message):
    np.savez(tmp_path / "x.npz", **content)
    status, out, err = run(command, tmp_path / "x.npz", tmp_path)
    if message is None:  # (8, 8, 3): eight gray images of 8×3
        assert status == 2
        return
    assert status == 1
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_every_damaged_byte_is_one_line_or_harmless(tmp_path, command, form):
    """A byte of pixels in an .npy cannot be noticed; one of a header, or of a zip file, must be."""
    path = tmp_path / f"x.{form}"
    if form == "npz":
        np.savez_compressed(path, images=random_images(4, 8), labels=np.arange(4))
    else:
        np.save(path, random_images(4, 8))
    content = path.read_bytes()
    for position in range(0, len(content) if form == "npz" else 128, 7 if form == "npz" else 1):
        for change in (0xFF, 0x08):
            damaged = bytearray(content)
            damaged[position] ^= change
            path.write_bytes(damaged)
            status, _, err = run(command, path, tmp_path, "--force")
            lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error")]
            assert status in (0, 1, 2), (position, err)
            assert len(lines) == (status != 0), (position, err)


def test_damaged_files(tmp_path, command):
    np.save(tmp_path / "short.npy", random_images(9, 8))
    content = (tmp_path / "short.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(content[:-1])
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    for name, message in (("short.npy", "ends early, at image 8 of 9"), ("junk.npy", "not a readable NumPy array"),
                          ("junk.npz", "not a readable .npz"), ("no.npz", "not found"), ("no.npy", "not found")):
        status, _, err = run(command, tmp_path / name, tmp_path)
        assert status == 1
        assert message in err
        assert not (tmp_path / "s").exists()
