"""SVHN's MATLAB files: pixels and digits as they are, and every way a file may be wrong."""

import numpy as np
import pytest
import scipy.io

from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare


def save(path, images, labels, **options) -> None:
    """Images (n, 32, 32, 3) as SVHN's files have them: X (32, 32, 3, n), y (n, 1) in 1 to 10."""
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.asarray(labels, np.uint8)[:, None]},
                     **{"do_compression": True, **options})


@pytest.fixture
def source(tmp_path):
    """A folder with 25 training and 12 test images; digit k is stored as k, and digit 0 as 10."""
    content = {split: random_images(count, 32, seed) for seed, (split, count) in enumerate((("train", 25),
                                                                                            ("test", 12)))}
    for split, images in content.items():
        save(tmp_path / "svhn" / f"{split}_32x32.mat", images, np.arange(len(images)) % 10 + 1)
    return tmp_path / "svhn", content


@pytest.mark.parametrize("compressed", [True, False])
def test_images_and_digits(source, tmp_path, command, compressed):
    path, content = source
    extra = random_images(9, 32, seed=7)
    save(path / "extra_32x32.mat", extra, [1] * 9, do_compression=compressed)
    status, out, _ = command(prepare.main, "svhn", "--source", path, "--out", tmp_path / "s")
    assert status == 0
    assert "9 images of 32×32, unlabeled" in out
    for split, images in content.items():
        shard_set = ShardSet(tmp_path / "s" / split)
        assert shard_set.manifest.dataset == "svhn"
        assert np.array_equal(shard_set.read(np.arange(len(images))), images)
        assert shard_set.labels.tolist() == [(i % 10 + 1) % 10 for i in range(len(images))]  # 10 is digit 0
        assert shard_set.classes == tuple("0123456789")
    unlabeled = ShardSet(tmp_path / "s" / "extra")
    assert unlabeled.classes is None
    assert np.array_equal(unlabeled.read(np.arange(9)), extra)


def mat(**variables):
    """A writer of a .mat file with these variables."""
    return lambda path: scipy.io.savemat(path, variables)


IMAGES = np.zeros((32, 32, 3, 4), np.uint8)
LABELS = np.ones((4, 1), np.uint8)


@pytest.mark.parametrize(("write", "message"), [
    (mat(y=LABELS), "no variable X; found y"), (mat(X=IMAGES), "no variable y"),
    (mat(X=IMAGES, y=np.ones((5, 1))), r"y of (5, 1)"), (mat(X=IMAGES[0], y=LABELS), "expected"),
    (mat(X=IMAGES.astype(float), y=LABELS), "uint8 expected"), (mat(X=IMAGES, y=LABELS * 11), "other than 1 to 10"),
    (mat(X=IMAGES, y=LABELS * 0), "other than 1 to 10"), (mat(X=IMAGES, y=LABELS * 1.5), "other than 1 to 10"),
    (mat(X=IMAGES, y=LABELS * np.nan), "other than 1 to 10"), (mat(X=IMAGES[..., :0], y=LABELS[:0]), "expected"),
    (lambda path: path.unlink(), "missing"),
    (lambda path: path.write_bytes(b""), "not a readable MATLAB file"),
    (lambda path: path.write_bytes(b"no such thing" * 99), "not a readable MATLAB file"),
    (lambda path: path.write_bytes(path.read_bytes()[:9000]), "not a readable MATLAB file (ends early"),
    (lambda path: path.write_bytes(path.read_bytes()[:-3]), "not a readable MATLAB file"),
    (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512)), "7.3 (HDF5)")])
def test_wrong_files(source, tmp_path, command, write, message):
    path, _ = source
    write(path / "train_32x32.mat")
    status, out, err = command(prepare.main, "svhn", "--source", path, "--out", tmp_path / "s")
    assert status == 1
    assert out == ""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "train_32x32.mat" in lines[0]
    assert message in lines[0]
    assert not (tmp_path / "s").exists()


def test_a_file_instead_of_the_folder(source, tmp_path, command):
    status, _, err = command(prepare.main, "svhn", "--source", source[0] / "train_32x32.mat", "--out", tmp_path / "s")
    assert status == 1
    assert "not a folder" in err
