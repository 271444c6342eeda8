"""One's own images, and the digits that ship with scikit-learn."""

import struct

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images, write_set
from tools import prepare
from tools.sources import digits
from tools.sources.images import load_image


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def labeled(tmp_path):
    """train/ and test/ with classes cat and dog, as PNG; returns the folder and the images by split and class."""
    content = {}
    for split, count in (("train", 5), ("val", 3)):
        for seed, name in enumerate(("dog", "cat")):
            images = random_images(count, 16, seed)
            content[split, name] = images
            for i, image in enumerate(images):
                save(tmp_path / "mine" / split / name / f"{i}.png", image)
    (tmp_path / "mine" / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "mine", content


def test_classes_in_sorted_order(labeled, tmp_path, command):
    path, content = labeled
    status, out, _ = command(prepare.main, "folder", "--source", path, "--size", 16, "--out", tmp_path / "s")
    assert status == 0
    assert "10 images of 16×16, 2 classes" in out
    for split, found in (("train", "train"), ("test", "val")):
        shard_set = ShardSet(tmp_path / "s" / split)
        assert shard_set.classes == ("cat", "dog")
        expected = np.concatenate([content[found, "cat"], content[found, "dog"]])
        assert np.array_equal(shard_set.read(np.arange(len(shard_set))), expected)
        assert shard_set.labels.tolist() == [0] * (len(expected) // 2) + [1] * (len(expected) // 2)


@pytest.mark.parametrize("inside", [".", "train"])
def test_a_flat_folder_is_unlabeled(tmp_path, command, inside):
    images = random_images(7, 8)
    for i, image in enumerate(images):
        save(tmp_path / "flat" / inside / f"{i}.bmp", image)
    status, out, _ = command(prepare.main, "folder", "--source", tmp_path / "flat", "--size", 8,
                             "--out", tmp_path / "s")
    assert status == 0
    assert "unlabeled" in out
    shard_set = ShardSet(tmp_path / "s" / "train")
    assert shard_set.classes is None
    assert np.array_equal(shard_set.read(np.arange(7)), images)
    assert not (tmp_path / "s" / "test").exists()


def test_modes_become_rgb(tmp_path):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    as_rgb = np.repeat(gray[:, :, None], 3, 2)
    save(tmp_path / "gray.png", gray)
    assert np.array_equal(load_image(tmp_path / "gray.png", 8), as_rgb)
    save(tmp_path / "gray16.png", gray.astype(np.uint16) * 257)
    assert np.array_equal(load_image(tmp_path / "gray16.png", 8), as_rgb)
    Image.fromarray(as_rgb).quantize(64).save(tmp_path / "palette.png")
    assert np.array_equal(load_image(tmp_path / "palette.png", 8), as_rgb)
    alpha = np.dstack([as_rgb, np.where(gray < 128, 0, 255).astype(np.uint8)])
    save(tmp_path / "alpha.png", alpha)
    assert np.array_equal(load_image(tmp_path / "alpha.png", 8), np.where(gray[:, :, None] < 128, 255, as_rgb))


def test_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing they come out black or white
    save(tmp_path / "stripes.png", stripes)
    small = load_image(tmp_path / "stripes.png", 16)
    assert small.shape == (16, 16, 3)
    assert small[:, 2:-2].min() > 100
    assert small[:, 2:-2].max() < 155


def test_other_shapes_keep_their_centre_square(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    save(tmp_path / "wide.png", wide)
    assert (load_image(tmp_path / "wide.png", 10) == 200).all()


def test_photos_are_turned_upright(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    save(tmp_path / "turned.png", image, exif=exif)
    assert np.array_equal(load_image(tmp_path / "turned.png", 8), np.rot90(image, -1))


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_unreadable_image(labeled, tmp_path, command, content):
    path, _ = labeled
    bad = path / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:300] if content == "truncated" else content)
    status, _, err = command(prepare.main, "folder", "--source", path, "--out", tmp_path / "s")
    assert status == 1
    assert f"error: {path}: 1 damaged image: train/dog/3.png (" in err
    assert not (tmp_path / "s").exists()


def test_wrong_folders(labeled, tmp_path, command):
    path, _ = labeled
    save(path / "val" / "horse" / "x.png", random_images(1, 8)[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "train" / "cat").mkdir(parents=True)
    for source, message in ((path, "horse: class not found"), (tmp_path / "empty", "no images found, expected"),
                            (tmp_path / "nowhere", "not a folder"), (tmp_path / "hollow", "no images found")):
        status, _, err = command(prepare.main, "folder", "--source", source, "--out", tmp_path / "s")
        assert status == 1
        assert message in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "s").exists()


def test_hidden_folders_are_no_classes(labeled, tmp_path, command):
    path, _ = labeled
    (path / "train" / ".ipynb_checkpoints").mkdir()
    (path / "val" / ".thumbnails").mkdir()
    assert command(prepare.main, "folder", "--source", path, "--size", 16, "--out", tmp_path / "s")[0] == 0
    assert ShardSet(tmp_path / "s" / "train").classes == ("cat", "dog")


def test_a_folder_that_is_no_shard_set_is_never_replaced(labeled, tmp_path, command):
    path, _ = labeled
    before = sorted(path.rglob("*"))
    for flags in ([], ["--force"]):
        status, _, err = command(prepare.main, "folder", "--source", path, "--out", path, *flags)
        assert status == 2
        assert "is no shard set, is a link, or holds other files too; choose another --out" in err
        assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("name", ["train", "train.old", "train.partial"])
def test_a_manifest_of_somebody_else_makes_no_shard_set(labeled, tmp_path, command, name):
    path, _ = labeled
    mine = tmp_path / "s" / name
    mine.mkdir(parents=True)
    for file in ("manifest.json", "thesis.txt"):
        (mine / file).write_text("{}")
    for flags in ([], ["--force"]):
        status, _, err = command(prepare.main, "folder", "--source", path, "--out", tmp_path / "s", *flags)
        assert status == 2
        assert f"{name} exists and is no shard set" in err
        assert sorted(file.name for file in mine.iterdir()) == ["manifest.json", "thesis.txt"]


def test_force_keeps_the_sets_beside(labeled, tmp_path, command):
    path, _ = labeled
    write_set(tmp_path / "s" / "others", random_images(5, 16))
    for flags in ([], ["--force"]):
        assert command(prepare.main, "folder", "--source", path, "--out", tmp_path / "s", *flags)[0] == 0
    assert len(ShardSet(tmp_path / "s" / "others")) == 5


def test_force_leaves_no_split_of_another_source(labeled, tmp_path, command):
    path, _ = labeled
    for i, image in enumerate(random_images(4, 16)):
        save(tmp_path / "flat" / f"{i}.png", image)
    assert command(prepare.main, "folder", "--source", path, "--out", tmp_path / "s")[0] == 0
    status, out, _ = command(prepare.main, "folder", "--source", tmp_path / "flat", "--out", tmp_path / "s", "--force")
    assert status == 0
    assert "test: removed" in out
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["train"]


@pytest.mark.parametrize("error", [TypeError, OverflowError, struct.error, IndexError])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    save(tmp_path / "x.png", random_images(1, 16)[0])

    def fail(image, **options):
        raise error("inside Pillow")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(DataError, match=r"x\.png: unreadable image \(inside Pillow\)"):
        load_image(tmp_path / "x.png", 8)


def test_digits(tmp_path, command):
    from sklearn.datasets import load_digits
    status, _, _ = command(prepare.main, "digits", "--out", tmp_path / "d")
    assert status == 0
    train, test = ShardSet(tmp_path / "d" / "train"), ShardSet(tmp_path / "d" / "test")
    assert (len(train), len(test)) == (1297, 500)
    assert np.bincount(test.labels).tolist() == [50] * 10
    enlarged = [digits.enlarge(image).tobytes() for image in load_digits().images]
    ours = [image.tobytes() for one in (train, test) for image in one.read(np.arange(len(one)))]
    assert sorted(ours) == sorted(enlarged)
    corner = digits.enlarge(np.full((8, 8), 16.0))
    assert corner.shape == (32, 32, 3)
    assert (corner == 255).all()
