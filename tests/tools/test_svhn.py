"""SVHN's MATLAB files: pixels and digits as they are, and every way a file may be wrong."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare
from tools.sources import svhn


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


def test_the_folder_above(source, tmp_path):
    path, content = source
    (tmp_path / "others").mkdir()
    found = svhn.read(tmp_path)
    assert found.origin == {"path": str(path.resolve())}
    (images, _), = found.splits[0].batches()
    assert np.array_equal(images, content["train"])
    (path / "test_32x32.mat").rename(tmp_path / "others" / "test_32x32.mat")
    with pytest.raises(DataError, match="SVHN's files found in others, svhn, expected a single folder"):
        svhn.read(tmp_path)
    (tmp_path / "others" / "test_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"svhn/test_32x32\.mat: missing; SVHN has train_32x32\.mat and"):
        svhn.read(tmp_path)
    (path / "train_32x32.mat").unlink()
    with pytest.raises(DataError, match=rf"^{tmp_path}/train_32x32\.mat: missing; SVHN has train_32x32\.mat"):
        svhn.read(tmp_path)


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


def element(name: bytes, shape: tuple[int, ...], size: int, content: bytes = b"", order: str = "<") -> bytes:
    """A matrix of bytes as MATLAB 5 stores it, whose header says it has ``size`` of them."""
    dimensions = struct.pack(f"{order}{len(shape)}i", *shape)
    dimensions += bytes(-len(dimensions) % 8)
    body = struct.pack(f"{order}4I", 6, 8, 9, 0) + struct.pack(f"{order}2I", 5, 4 * len(shape)) + dimensions
    body += struct.pack(f"{order}2I", 1, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
    body += struct.pack(f"{order}2I", 2, size) + content
    return struct.pack(f"{order}2I", 14, len(body) + max(0, size - len(content)) & 0xFFFFFFFF) + body


def packed(content: bytes, zeros: int = 0) -> bytes:
    """A compressed element, and behind its content so many zeros."""
    pack = zlib.compressobj(9)
    parts = [pack.compress(content), *(pack.compress(bytes(2**20)) for _ in range(zeros // 2**20)), pack.flush()]
    return struct.pack("<2I", 15, sum(map(len, parts))) + b"".join(parts)


def mat_file(*elements: bytes, order: str = "<") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x100) + {"<": b"IM", ">": b"MI"}[order] + \
        b"".join(elements)


@pytest.mark.parametrize(("content", "message"), [
    (mat_file(element(b"X", (32, 32, 3, 10**9), 2**32 - 1)), "4,294,967,295 bytes found for uint8"),
    (mat_file(element(b"X", (32, 32, 3, 10**5), 3072 * 10**5)), "ends early: an element"),
    (mat_file(packed(element(b"X", (32, 32, 3, 10**9), 2**32 - 1))), "4,294,967,295 bytes found for uint8"),
    (mat_file(packed(element(b"X", (32, 32, 3, 10**6), 3072 * 10**6), 2**28),
              packed(element(b"y", (10**6, 1), 10**6), 2**20)), "1,000,000 images found, expected at most 73,257"),
    (mat_file(packed(element(b"X", (32, 32, 3, 4), 2**32 - 8), 2**28)), "4,294,967,288 bytes found"),
    (mat_file(packed(element(b"X", (2**31 - 1,) * 40, 8))), "bytes found for uint8"),
    (mat_file(packed(element(b"X", (-32, 32, -3, 4), 12288))), "shape"),
    (mat_file(packed(element(b"X" * 10**6, (1,), 1))), "a part of 1,000,000 bytes"),
    (mat_file(packed(b"", 2**29)), "type 0 found, expected a matrix"),
    (mat_file(element(b"Z", (1, 8), 8, bytes(8)) * 1000), "no variable X; found Z, Z, Z, Z, Z, Z, Z, Z, Z, Z;"),
    (mat_file(struct.pack("<2I", 15, 10**9)), "ends early"), (mat_file(), "ends early"),
    (mat_file()[:127], "ends early"),
    (mat_file(packed(element(b"X", (32, 32, 3, 4), 12288, bytes(12288)))[:-6]), "ends early")])
def test_sizes_that_lie(tmp_path, frugal, content, message):
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    (tmp_path / "train_32x32.mat").write_bytes(content)
    with frugal(), pytest.raises(DataError, match=message) as refused:
        svhn.read(tmp_path)
    assert "train_32x32.mat: " in str(refused.value)


@pytest.mark.parametrize("zeros", [2**20, 2**29])
def test_more_bytes_than_the_shape_has(source, frugal, zeros):
    path, _ = source
    (path / "train_32x32.mat").write_bytes(mat_file(
        packed(element(b"X", (32, 32, 3, 4), 12288, bytes(12288)), zeros),
        packed(element(b"y", (4, 1), 4, b"\1\2\3\4"))))
    with frugal(), pytest.raises(DataError, match=r"train_32x32\.mat: .*more bytes than its shape has"):
        list(svhn.read(path).splits[0].batches())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pack", [packed, bytes])
def test_either_byte_order(source, order, pack):
    if order == ">" and pack is packed:
        def pack(content):
            return struct.pack(">2I", 15, len(zlib.compress(content))) + zlib.compress(content)
    path, _ = source
    images = random_images(5, 32)
    stored = np.ascontiguousarray(images.transpose(0, 3, 2, 1)).tobytes()  # its first axis runs fastest
    (path / "train_32x32.mat").write_bytes(mat_file(
        pack(element(b"X", (32, 32, 3, 5), len(stored), stored, order)),
        pack(element(b"y", (5, 1), 5, b"\1\2\3\4\x0a" + bytes(3), order)), order=order))
    assert np.array_equal(scipy.io.loadmat(path / "train_32x32.mat")["X"], images.transpose(1, 2, 3, 0))
    (found, labels), = svhn.read(path).splits[0].batches()
    assert np.array_equal(found, images)
    assert labels.tolist() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("compressed", [True, False])
def test_every_damaged_byte_is_one_line_or_harmless(source, compressed):
    """A byte of pixels that are not compressed cannot be noticed; one of a header, or of a compressed file, must be."""
    path, content = source
    file = path / "train_32x32.mat"
    save(file, content["train"][:3], [1, 2, 3], do_compression=compressed)
    whole = file.read_bytes()
    for position in [*range(120, 400, 3), *range(400, len(whole), 311), *range(len(whole) - 90, len(whole), 3)]:
        for change in (0xFF, 0x08):
            damaged = bytearray(whole)
            damaged[position] ^= change
            file.write_bytes(damaged)
            try:
                (images, _), = svhn.read(path).splits[0].batches()
                assert images.shape == (3, 32, 32, 3)
                assert not compressed or np.array_equal(images, content["train"][:3])
            except DataError as error:
                assert "train_32x32.mat" in str(error)  # noqa: PT017 - either will do
