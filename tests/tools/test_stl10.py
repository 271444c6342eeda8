"""STL-10's binaries: pixels, labels and classes as they are in a folder or an archive, and wrong files."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare
from tools.sources import stl10

COUNTS = {"train": 20, "test": 10, "unlabeled": 30}
NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
IMAGES = {name: random_images(count, 96, seed) for seed, (name, count) in enumerate(COUNTS.items())}


def stored(images: np.ndarray) -> bytes:
    """Pixel by pixel in the order of the authors' description: channels, in them columns, in these rows."""
    return b"".join(image[:, column, channel].tobytes() for image in images for channel in range(3)
                    for column in range(96))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The folder above stl10_binary/; image i is of class i % 10."""
    above = tmp_path_factory.mktemp("stl")
    folder = above / "stl10_binary"
    folder.mkdir()
    for name, images in IMAGES.items():
        (folder / f"{name}_X.bin").write_bytes(stored(images))
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(len(images))))
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2\n" * 10)
    return above


@pytest.fixture
def source(original, tmp_path):
    """A copy of the folder itself."""
    shutil.copytree(original / "stl10_binary", tmp_path / "stl10_binary")
    return tmp_path / "stl10_binary"


def packed(source, mode: str = "gz"):
    """The folder as an archive beside it."""
    path = source.parent / "stl10_binary.tar.gz"
    with tarfile.open(path, f"w:{mode}") as archive:
        archive.add(source, "stl10_binary")
    return path


@pytest.mark.parametrize("given", ["folder", "above", "archive", "archive in a folder"])
def test_every_form(source, tmp_path, given):
    path = {"folder": source, "above": source.parent}.get(given)
    if path is None:
        path = packed(source)
        shutil.rmtree(source)
        path = path if given == "archive" else path.parent
    found = stl10.read(path)
    assert found.dataset == "stl10"
    prepare.prepare(found, tmp_path / "s")
    for name, images in IMAGES.items():
        shard_set = ShardSet(tmp_path / "s" / name)
        assert np.array_equal(shard_set.read(np.arange(len(images))), images)
        if name == "unlabeled":
            assert shard_set.classes is None
        else:
            assert shard_set.classes == NAMES
            assert shard_set.labels.tolist() == [i % 10 for i in range(len(images))]


def test_resized(source):
    found = stl10.read(source, 32)
    assert found.image_shape == (32, 32, 3)
    (images, labels), = found.splits[0].batches()
    assert labels.tolist() == [i % 10 for i in range(20)]
    for image, whole in zip(images, IMAGES["train"], strict=True):
        assert np.array_equal(image, Image.fromarray(whole).resize((32, 32), Image.Resampling.BICUBIC))


def test_more_images_than_a_chunk(source, monkeypatch):
    monkeypatch.setattr(stl10, "CHUNK", 7)
    batches = list(stl10.read(packed(source)).splits[0].batches())
    assert [len(images) for images, _ in batches] == [7, 7, 6]
    assert np.array_equal(np.concatenate([images for images, _ in batches]), IMAGES["train"])
    assert np.concatenate([labels for _, labels in batches]).tolist() == [i % 10 for i in range(20)]


def test_without_what_can_be_spared(source):
    for name in ("unlabeled_X.bin", "class_names.txt", "fold_indices.txt"):
        (source / name).unlink()
    found = stl10.read(source)
    assert [split.name for split in found.splits] == ["train", "test"]
    assert found.splits[0].classes == NAMES
    for name in ("unlabeled_X.bin", "class_names.txt"):
        assert any(line.startswith(f"{name}: not found") for line in found.report.notes)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("train_X.bin", None, "missing"), ("test_y.bin", None, "missing"), ("train_X.bin", b"", "0 bytes found"),
    ("train_X.bin", bytes(27_647), "27,647 bytes found, expected a multiple of 27,648"),
    ("unlabeled_X.bin", bytes(27_649), "27,649 bytes found"),
    ("train_y.bin", bytes([1] * 19), "19 labels found, expected 20"),
    ("test_y.bin", b"", "0 labels found, expected 10"),
    ("train_y.bin", bytes([1] * 19 + [0]), "labels 0 to 1 found"),
    ("test_y.bin", bytes([1] * 9 + [11]), "labels 1 to 11 found"), ("train_y.bin", bytes(2**21), "2,097,152 bytes"),
    ("class_names.txt", b"a b c", "3 class names"), ("class_names.txt", b"a " * 10, "10 class names")])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_wrong_files(source, form, name, content, message):
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    path = source if form == "folder" else packed(source, "gz")
    with pytest.raises(DataError, match=message) as refused:
        stl10.read(path)
    assert name in str(refused.value)
    assert str(path) in str(refused.value)


def test_other_places(tmp_path, source):
    with pytest.raises(DataError, match="nowhere: not found; expected stl10_binary"):
        stl10.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no STL-10 here; expected stl10_binary"):
        stl10.read(tmp_path / "empty")
    shutil.copytree(source, tmp_path / "copy")
    with pytest.raises(DataError, match="found in copy, stl10_binary, expected a single folder"):
        stl10.read(tmp_path)
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(source / "class_names.txt", "x.txt")
    with pytest.raises(DataError, match=r"other\.tar: no STL-10 in it"):
        stl10.read(tmp_path / "other.tar")


def test_a_damaged_archive(source):
    path = packed(source)
    content = path.read_bytes()
    for damaged in (content[:len(content) // 2], content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"stl10_binary\.tar\.gz: not a readable tar archive"):
            stl10.read(path)


def test_a_file_that_gets_shorter(source):
    found = stl10.read(source)
    with open(source / "train_X.bin", "r+b") as file:
        file.truncate(3 * 27_648 + 5)
    with pytest.raises(DataError, match=r"train_X\.bin: ends early, at image 3 of 20"):
        list(found.splits[0].batches())


def test_an_archive_that_claims_much(tmp_path, frugal):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("stl10_binary/unlabeled_X.bin")
        archive.addfile(member, io.BytesIO())
    content = bytearray((tmp_path / "x.tar").read_bytes())
    member.size = 27_648 * 10**6
    content[:512] = member.tobuf()
    (tmp_path / "x.tar").write_bytes(content)
    with frugal(), pytest.raises(DataError, match=r"x\.tar: "):
        stl10.read(tmp_path / "x.tar")


def test_a_large_unlabeled_file_is_not_held(source, frugal):
    """A file of 276 MB, most of it a hole."""
    with open(source / "unlabeled_X.bin", "r+b") as file:
        file.truncate(10_000 * 27_648)
    unlabeled = next(split for split in stl10.read(source).splits if split.name == "unlabeled")
    with frugal(64):
        assert sum(len(images) for images, _ in unlabeled.batches()) == 10_000
