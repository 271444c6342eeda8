"""NumPy files that are damaged, or claim what they do not have: one line, in little memory."""

import os
import struct
import zipfile

import numpy as np
import pytest

from pipelines.common.errors import DataError
from tests.conftest import random_images
from tests.tools.test_arrays import run
from tools.sources import array_labels, arrays


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
    monkeypatch.setattr(array_labels, "MAX_LABELED", 2**22)
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


@pytest.mark.parametrize(("label", "message"), [
    (-2, "label -2 found, expected class numbers, or -1 for none"), (2**20, "found, expected class numbers below"),
    (2**62, "expected class numbers of at most 18 digits"), (1e300, "expected class numbers of at most 18 digits"),
    (np.inf, "inf found, expected class numbers"), (0.5, "0.5 found, expected whole numbers")])
def test_labels_out_of_range_are_shown(tmp_path, label, message):
    np.savez(tmp_path / "x.npz", images=random_images(3, 8), labels=np.array([0, label, 1]))
    with pytest.raises(DataError, match=message):
        arrays.read(tmp_path / "x.npz")


@pytest.mark.parametrize(("dtype", "shape", "message"), [
    ("<U1025", "(4,)", "expected text of at most 1,024 characters"), ("|S1025", "(4,)", "expected text of at most"),
    ("|S268435456", "(4,)", "ends early|expected text of at most"), ("|S0", "(4,)", "expected integers or text"),
    ("<U0", "(4,)", "expected integers or text"), ("|u1", "(4, 1048577)", "one-hot rows of at most 1,048,576 classes"),
    ("<c8", "(4,)", "expected integers or text"), ("<M8[s]", "(4,)", "expected integers or text"),
    ("|u1", "(4, 2, 2)", "expected a label for each image of images"), ("|u1", "(4, 0)", "expected a label for each")])
def test_label_types_that_lie(tmp_path, frugal, dtype, shape, message):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy("(4, 2, 2)", content=bytes(16)))
        archive.writestr("labels.npy", npy(shape, dtype, bytes(5 * 2**20)))
    with frugal(32), pytest.raises(DataError, match=message):
        arrays.read(tmp_path / "x.npz", test_fraction=0)


@pytest.mark.slow
def test_labels_of_the_greatest_size_are_read_piece_by_piece(tmp_path, frugal):
    """A few hundred KB that become 512 MB: one-hot rows of a million classes, and text of 4,096 bytes."""
    classes, count = 2**20, 2**17
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", npy((count, 1, 1), content=bytes(count)))
        with archive.open("labels.npy", "w") as member:
            member.write(npy((count,), "<U1024"))
            for _ in range(count // 256):
                member.write(bytes(2**20))
    with frugal(64):
        (split,) = arrays.read(tmp_path / "x.npz").splits
        assert split.classes is None
    rows = np.zeros((64, classes), "f8")
    rows[np.arange(64), np.arange(64)[::-1]] = 1
    np.savez_compressed(tmp_path / "y.npz", images=np.zeros((64, 1, 1), np.uint8), labels=rows)
    del rows
    with frugal(400):  # names of a million classes
        (split,) = arrays.read(tmp_path / "y.npz", test_fraction=0).splits
        assert len(split.classes) == classes
        ((_, labels),) = split.batches()
        assert labels.tolist() == list(range(64))[::-1]


@pytest.mark.parametrize("text", [np.array([b"\xff\xfe", b"a", b"b"]), np.array(["\ud800", "a", "b"])])
def test_text_that_is_none(tmp_path, text):
    np.savez(tmp_path / "x.npz", images=random_images(3, 8), labels=text)
    with pytest.raises(DataError, match="not in UTF-8 found"):
        arrays.read(tmp_path / "x.npz")


def test_code_points_that_do_not_exist(tmp_path):
    np.savez(tmp_path / "x.npz", images=random_images(3, 8), labels=np.full(3, 2**31, "<u4").view("<U1"))
    with pytest.raises(DataError, match="not in UTF-8 found"):
        arrays.read(tmp_path / "x.npz")


def test_large_images_of_eight_bytes_a_value_are_read_piece_by_piece(tmp_path, frugal):
    """One MB that becomes 512 MB: a single image, of which little is held in its own type."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, \
            archive.open("images.npy", "w") as member:
        member.write(npy((1, 8192, 8192), "<f8"))
        for _ in range(512):
            member.write(bytes(2**20))
    with frugal(300):
        (split,) = arrays.read(tmp_path / "x.npz", 8).splits
        ((images, _),) = split.batches()
        assert images.shape == (1, 8, 8, 3)


def test_what_other_programs_put_into_archives_is_passed_over(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=random_images(4, 8))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("__MACOSX/._x_train.npy", b"junk")
        archive.writestr("readme.txt", b"text")
        archive.writestr("d/x_unlabeled.npy", npy((2, 8, 8), content=bytes(128)))
    source = arrays.read(tmp_path / "x.npz")
    assert source.splits[0].num_images == 6
    (line,) = source.report.lines()
    assert "._x_train.npy" in line
    assert "readme.txt" in line


def test_a_pipe_is_not_waited_for(tmp_path, frugal):
    (tmp_path / "d").mkdir()
    for name in ("x.npy", "x.npz", "d/images.npy"):
        os.mkfifo(tmp_path / name)
    for path in (tmp_path / "x.npy", tmp_path / "x.npz", tmp_path / "d"):
        with frugal(), pytest.raises(DataError, match="not a regular file"):
            arrays.read(path)


def test_names_of_classes_without_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(array_labels, "MAX_BYTES", 2000)
    np.savez(tmp_path / "x.npz", images=random_images(3, 8), labels=np.array(["a" * 800, "b" * 800, "c" * 800]))
    with pytest.raises(DataError, match="more than 2,000 characters in all found"):
        arrays.read(tmp_path / "x.npz")
