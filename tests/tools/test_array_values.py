"""Arrays of images and labels in other types: taken where 8 bits or a class number hold them, else how to mend it."""

import numpy as np
import pytest

from pipelines.common.errors import DataError
from tests.conftest import random_images
from tests.tools.test_arrays import run
from tools.sources import array_labels, array_pixels, arrays

IMAGES = random_images(12, 8)
LABELS = np.arange(12) % 3


def read(tmp_path, **content):
    """(images (n, H, W, C), labels or None) by split; the source."""
    np.savez(tmp_path / "x.npz", **content)
    source = arrays.read(tmp_path / "x.npz", test_fraction=None if "x_test" in content else 0)
    found = {}
    for split in source.splits:
        images, labels = zip(*split.batches(), strict=True)
        found[split.name] = np.concatenate(images), None if labels[0] is None else np.concatenate(labels).tolist()
    return found, source


@pytest.mark.parametrize(("stored", "note"), [
    (IMAGES.astype("i8"), "int64 in [0, 255]"), (IMAGES.astype(">u2"), ">u2 in [0, 255]"),
    (IMAGES.astype("f2"), "float16 in [0, 255]"), (IMAGES.astype(">f8"), ">f8 in [0, 255]"),
    ((IMAGES / 255).astype("f2"), "float16 in [0, 1]"), ((IMAGES / 255).astype("f4"), "float32 in [0, 1]"),
    (IMAGES / 255, "float64 in [0, 1]"), (IMAGES.astype("f4") * np.float32(1 / 255), "float32 in [0, 1]"),
    (IMAGES.astype(np.longdouble), "in [0, 255]"), ((IMAGES + 1e-5).clip(0, 255).astype("f4"), "float32 in [0, 255]"),
    (IMAGES.transpose(0, 3, 1, 2) / 255, "float64 in [0, 1]")])
def test_pixels_of_other_types(tmp_path, monkeypatch, stored, note):
    monkeypatch.setattr(array_pixels, "PIECE", 100)  # no whole number of images
    found, source = read(tmp_path, x=np.ascontiguousarray(stored))
    assert np.array_equal(found["train"][0], IMAGES)
    assert f"x: {stored.dtype} in" in source.report.notes[0]
    assert note in source.report.notes[0]
    assert "taken as 8 bits" in source.report.notes[0]


def test_the_least_of_types_with_all_values(tmp_path):
    """All 256 values, each in both ranges, in every type of float."""
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for dtype in ("f2", "f4", "f8"):
        full = every.astype(dtype)
        for stored in (full, (every / 255).astype(dtype), full / full[0, -1, -1]):
            found, _ = read(tmp_path, x=stored)
            assert np.array_equal(found["train"][0][..., 0], every)


def test_zeros_and_ones_are_as_their_sibling_is(tmp_path):
    binary = (IMAGES > 127).astype("f4")
    found, source = read(tmp_path, x=binary)
    assert np.array_equal(found["train"][0], (IMAGES > 127) * 255)
    assert not any("dark" in note for note in source.report.notes)
    found, source = read(tmp_path, x=IMAGES.astype("f4"), x_unlabeled=binary)
    assert np.array_equal(found["train"][0], np.concatenate([IMAGES, IMAGES > 127]))
    assert "x_unlabeled: dark: its brightest value is 1 of 255" in "".join(source.report.notes)
    found, _ = read(tmp_path, x=IMAGES.astype("f8"), x_unlabeled=binary)  # of another type
    assert np.array_equal(found["train"][0], np.concatenate([IMAGES, (IMAGES > 127) * 255]))
    found, _ = read(tmp_path, x=IMAGES.astype("f4"), x_unlabeled=(IMAGES / 255).astype("f4"))
    assert np.array_equal(found["train"][0], np.concatenate([IMAGES, IMAGES]))


def mended(line, x):
    """What a line of NumPy in a message makes of ``x``."""
    return eval(line, {"np": np, "x": x, "low": x.min(), "high": x.max()})


@pytest.mark.parametrize(("stored", "line", "kept"), [
    (IMAGES.astype("u2") * 257, "(x // 257).astype('uint8')", True),
    (IMAGES.astype("u2") << 4, "(x >> 4).astype('uint8')", True),
    (IMAGES.astype("i4") << 10, "(x >> 10).astype('uint8')", True),
    ((IMAGES.astype("i2") - 128).astype("i1"), "np.interp(x, (low, high), (0, 255)).round().astype('uint8')", True),
    ((IMAGES / 255).astype("f4") ** 2, "np.round(255 * x).astype('uint8')", False),
    (IMAGES * 0.37, "np.round(x).astype('uint8')", False),
    (IMAGES / 127.5 - 1, "np.round(127.5 * (x + 1)).astype('uint8')", True),
    ((IMAGES - 120.7) / 60, "np.round(255 * (x - low) / (high - low)).astype('uint8')", True),
    (IMAGES * 300.0, "np.round(255 * (x - low) / (high - low)).astype('uint8')", True),
    (IMAGES > 99, "x.astype('uint8') * 255", False), (np.moveaxis(IMAGES, 0, -1), "np.moveaxis(x, -1, 0)", True),
    (IMAGES[..., 0].reshape(12, 64), "x.reshape(-1, 8, 8)", False),
    (IMAGES.reshape(12, 192), "x.reshape(-1, 8, 8, 3)", True)])
def test_the_line_that_mends_pixels(tmp_path, command, stored, line, kept):
    """Which is in the message, and after which they are taken."""
    stored = np.ascontiguousarray(stored)
    np.savez(tmp_path / "x.npz", x_train=stored)
    status, _, err = run(command, tmp_path / "x.npz", tmp_path)
    (message,) = [one for one in err.replace("\r", "\n").splitlines() if one.startswith("error: ")]
    assert status == 1
    assert "x_train" in message
    assert line in message
    found, _ = read(tmp_path, x_train=mended(line, stored))
    assert not kept or np.array_equal(found["train"][0], IMAGES)


@pytest.mark.parametrize(("stored", "message"), [
    (np.where(IMAGES < 9, np.nan, IMAGES), "NaN or infinity found in images"),
    (np.full((2, 4, 4), np.inf, "f2"), "NaN or infinity found"), (np.full((2, 4, 4), 1e38, "f4"), "from 1e+38 to"),
    (IMAGES.astype("c8"), "complex64"), (IMAGES.astype("M8[s]"), "expected uint8 images")])
def test_pixels_that_are_none(tmp_path, stored, message):
    with pytest.raises(DataError, match=message.replace("+", r"\+")):
        read(tmp_path, x=stored)


def test_objects(tmp_path):
    objects = np.empty(2, object)
    objects[:] = [IMAGES[0], IMAGES[1][:4]]
    with pytest.raises(DataError, match=r"np\.stack\(x\)"):
        read(tmp_path, x=objects)
    with pytest.raises(DataError, match=r"save y\.astype\(str\)"):
        read(tmp_path, x=IMAGES, y=np.array(["a", "b", "c"] * 4, object))


NAMES = np.array(["owl", "cat", "Ünder dog"])


@pytest.mark.parametrize(("stored", "classes", "labels"), [
    (LABELS, "012", LABELS), (LABELS.astype(">i2"), "012", LABELS), (LABELS[:, None].astype("u1"), "012", LABELS),
    (LABELS[None], "012", LABELS), (LABELS.astype("f2"), "012", LABELS), (LABELS + 1, "123", LABELS),
    (LABELS * 2, "01234", LABELS * 2), (LABELS * 10 + 5, ("5", "15", "25"), LABELS), (LABELS > 0, "01", LABELS > 0),
    (NAMES[LABELS], ("cat", "owl", "Ünder dog"), np.array([1, 0, 2])[LABELS]),
    (np.char.encode(NAMES, "utf-8")[LABELS], ("cat", "owl", "Ünder dog"), np.array([1, 0, 2])[LABELS]),
    (NAMES[LABELS].astype(">U20")[:, None], ("cat", "owl", "Ünder dog"), np.array([1, 0, 2])[LABELS]),
    (LABELS.astype("U"), "012", LABELS), ((LABELS + 9).astype("U"), ("9", "10", "11"), LABELS),
    (np.eye(3)[LABELS], "012", LABELS), (np.eye(5, dtype="i8")[LABELS], "01234", LABELS),
    (np.eye(3, dtype=bool)[LABELS], "012", LABELS), (np.eye(4, dtype="f2")[LABELS + 1], "0123", LABELS + 1)])
def test_labels_of_other_types(tmp_path, monkeypatch, stored, classes, labels):
    monkeypatch.setattr(array_labels, "ROWS", 5)
    found, source = read(tmp_path, x=IMAGES, y=stored)
    assert source.splits[0].classes == tuple(classes)
    assert found["train"][1] == labels.tolist()


@pytest.mark.parametrize("stored", [
    np.where(LABELS == 2, -1, LABELS), np.where(LABELS == 2, np.nan, LABELS), np.where(LABELS == 2, -1.0, LABELS),
    np.array(["0", "1", ""])[LABELS], np.array(["0", "1", "NaN"])[LABELS], np.array([b"0", b"1", b"-1"])[LABELS]])
def test_images_without_a_label(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(arrays, "CHUNK", 5)
    found, source = read(tmp_path, x=IMAGES, y=stored)
    assert [split.name for split in source.splits] == ["train", "unlabeled"]
    assert [split.num_images for split in source.splits] == [8, 4]
    assert np.array_equal(found["train"][0], IMAGES[LABELS < 2])
    assert found["train"][1] == LABELS[LABELS < 2].tolist()
    assert np.array_equal(found["unlabeled"][0], IMAGES[LABELS == 2])
    assert found["unlabeled"][1] is None


ROWS = np.eye(3)[LABELS]


@pytest.mark.parametrize(("stored", "message"), [
    (np.where(np.arange(12)[:, None] == 7, 1, ROWS), "image 7 has 3 labels of 3, expected one label an image"),
    (np.where(np.arange(12)[:, None] == 7, 0, ROWS), "image 7 has none of 3 labels"),
    (np.where(np.arange(12)[:, None] == 7, np.nan, ROWS), "image 7 has nan in one-hot labels"),
    (ROWS * 0.9 + 0.05, r"image 0 has 0.95 in one-hot labels, .* y\.argmax\(axis=1\)"),
    (np.stack([LABELS, LABELS + 5], 1), r"image 0 has 5 in one-hot labels, .* y\[:, 0\]"),
    (NAMES[np.stack([LABELS, LABELS], 1)], r"a column, y\[:, 0\]"), (LABELS[:5], "expected a label for each image"),
    (np.zeros((12, 2, 2)), "expected a label for each image"), (np.zeros(8), r"np\.moveaxis\(x, -1, 0\)"),
    (np.zeros(12, int), "a single class found"), (np.asfortranarray(ROWS), "Fortran")])
def test_labels_that_are_none(tmp_path, stored, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, x=IMAGES[..., 0], y=stored)


@pytest.mark.parametrize(("train", "test", "unknown"), [
    (LABELS, LABELS + 1, "3"), (LABELS * 2, LABELS, "1"), (NAMES[LABELS % 2], NAMES[LABELS], "Ünder dog"),
    (np.eye(5)[LABELS], np.eye(5)[LABELS + 1], "3"), (LABELS + 1, LABELS, "0"), (LABELS, LABELS - 3, "-3")])
def test_a_test_label_that_no_training_image_has(tmp_path, train, test, unknown):
    with pytest.raises(DataError, match=f"y_test.npy: label {unknown} found, which no training image has"):
        read(tmp_path, x_train=IMAGES, y_train=train, x_test=IMAGES, y_test=test)


def test_labels_of_different_types_for_the_same_classes(tmp_path):
    for test in (LABELS.astype("f4"), LABELS.astype("U"), np.eye(3)[LABELS], LABELS.astype("S")):
        found, source = read(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=test)
        assert found["test"][1] == LABELS.tolist()
        assert source.splits[1].classes == ("0", "1", "2")
