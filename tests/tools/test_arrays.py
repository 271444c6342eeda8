"""NumPy arrays under the names their users give them, in every layout of pixels, read piece by piece."""

import os
import struct
import zipfile

import numpy as np
import pytest

from pipelines.common.errors import DataError
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


def npy(shape: object, dtype: str = "|u1", content: bytes = b"") -> bytes:
    """An .npy file whose header says this, whatever follows it."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def bomb(path, name: str, head: bytes, size: int, method: int = zipfile.ZIP_DEFLATED) -> None:
    """A zip file with a member of zeros behind ``head``."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive, archive.open(name, "w") as member:
        member.write(head)
        for _ in range(size // 2**20):
            member.write(bytes(2**20))


@pytest.mark.parametrize(("shape", "message"), [
    ("(1000000000000, 8, 8, 3)", "ends early, at image 0 of 1000000000000"),
    ("(4294967296, 4294967296, 4294967296)", "ends early"), (f"({2**62}, 4, 4)", "which no array has"),
    ("(-1, 8, 8)", "which no array has"), ("(4, -8, -8)", "which no array has"), ("(True, 8, 8)", "which no array has"),
    (f"(0x{'f' * 9000}, 8, 8)", "which no array has"), (f"({'(' * 300}{')' * 300})", "not a readable NumPy array"),
    (f"({'1, ' * 2000})", "expected uint8 images"), ("8", "not a readable NumPy array"),
    ("(1, 10000, 10000)", "ends early")])
def test_shapes_that_lie(tmp_path, frugal, shape, message):
    (tmp_path / "x.npy").write_bytes(npy(shape, content=b"x"))
    with frugal(), pytest.raises(DataError, match=message) as refused:
        arrays.read(tmp_path / "x.npy")
    assert len(str(refused.value)) < 500
    np.savez(tmp_path / "x.npz", labels=np.arange(4))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("images.npy", npy(shape, content=b"x"))
    with frugal(), pytest.raises(DataError, match=message):
        arrays.read(tmp_path / "x.npz")


@pytest.mark.parametrize("dtype", ["|V1000000000000", "<i8000", "|O", "|S1", "nonsense"])
def test_types_that_lie(tmp_path, frugal, dtype):
    (tmp_path / "x.npy").write_bytes(npy("(1, 2, 2)", dtype, b"1234"))
    with frugal(), pytest.raises(DataError, match=r"x\.npy"):
        arrays.read(tmp_path / "x.npy")


def test_a_header_that_says_it_has_four_gigabytes(tmp_path, frugal):
    bomb(tmp_path / "x.npz", "images.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1), 2**29)
    with frugal(), pytest.raises(DataError, match=r"x\.npz:images\.npy: not a readable NumPy array"):
        arrays.read(tmp_path / "x.npz")


def test_labels_that_inflate(tmp_path, frugal, monkeypatch):
    """64 KB that become 64 MB: more labels than are ever held, here."""
    monkeypatch.setattr(arrays, "MAX_LABELED", 2**22)
    count = 2**23
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy((count, 1, 1), content=bytes(count)))
        archive.writestr("labels.npy", npy((count,), "<i8", bytes(8 * count)))
    with frugal(16), pytest.raises(DataError, match="8,388,608 labels found, expected 1 to 4,194,304"):
        arrays.read(tmp_path / "x.npz")


def test_images_that_inflate_are_read_piece_by_piece(tmp_path, frugal):
    """1 MB that becomes 1 GB: 200 images of 2,304×2,304, of which one chunk is held, and a set that is refused."""
    shape = (200, 2304, 2304)
    bomb(tmp_path / "x.npz", "images.npy", npy(shape), 200 * 2304 * 2304 + 2**20)
    with frugal(300):
        (split,) = arrays.read(tmp_path / "x.npz", 8).splits
        images, _ = next(iter(split.batches()))
        assert images.shape[1:] == (8, 8, 3)
        assert len(images) < 20
    (tmp_path / "y.npy").write_bytes(npy("(1, 10000, 10000)"))
    os.truncate(tmp_path / "y.npy", 10**8 + 200)
    with frugal(), pytest.raises(DataError, match="10000×10000 found, expected at most"):
        arrays.read(tmp_path / "y.npy", 8)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("images.npy", npy("(1, 2, 2)", content=b"1234"))
    with pytest.raises(DataError, match="expected none or deflate"):
        arrays.read(tmp_path / "x.npz")


def test_a_member_that_claims_more_than_deflate_can_hold(tmp_path, frugal):
    np.savez_compressed(tmp_path / "x.npz", images=random_images(4, 8))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    place = content.rindex(b"images.npy") - 46
    content[place + 24:place + 28] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "x.npz").write_bytes(content)
    with frugal(), pytest.raises(DataError, match="more than deflate can hold"):
        arrays.read(tmp_path / "x.npz")


@pytest.mark.parametrize("label", [-1, 2**20])
def test_labels_out_of_range_are_shown(tmp_path, label):
    np.savez(tmp_path / "x.npz", images=random_images(3, 8), labels=[0, label, 1])
    with pytest.raises(DataError, match=f"{label} found, expected class numbers from 0 to 1,048,575"):
        arrays.read(tmp_path / "x.npz")


def test_a_pipe_is_not_waited_for(tmp_path, frugal):
    (tmp_path / "d").mkdir()
    for name in ("x.npy", "x.npz", "d/images.npy"):
        os.mkfifo(tmp_path / name)
    for path in (tmp_path / "x.npy", tmp_path / "x.npz", tmp_path / "d"):
        with frugal(), pytest.raises(DataError, match="not a regular file"):
            arrays.read(path)
