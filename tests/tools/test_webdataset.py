"""WebDataset tars, as the webdataset package writes them: samples in order, labels where there are some."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare
from tools.sources import webdataset


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


IMAGE = png(random_images(1, 8)[0])


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = next((mode for mode in ("gz", "bz2", "xz") if path.name.lower().endswith(mode[-2:])), "")
    with tarfile.open(path, f"w:{packed}") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def samples(images, labels=None, first=0, extension="png") -> list[tuple[str, bytes]]:
    """Members of a tar, a sample an image: the label before the image, and something else after it."""
    members = []
    for number, image in enumerate(images, first):
        key = f"some.dir/{number:06d}"
        if labels is not None:
            members.append((f"{key}.cls", f"{labels[number - first]}\n".encode()))
        members += [(f"{key}.{extension}", png(image)), (f"{key}.json", b"{}")]
    return members


def labeled(images, labels, kind, first=0) -> list[tuple[str, bytes]]:
    """Members of a tar: images, and what a function of each label makes its file of this kind."""
    return [member for number, image in enumerate(images) for member in (
        (f"{number + first:03d}.png", png(image)), (f"{number + first:03d}.{kind}", labels[number]))]


def found(source) -> dict[str, tuple[np.ndarray, list | None, tuple | None]]:
    """By split: its images, its labels, and its classes."""
    splits = {}
    for split in source.splits:
        batches = list(split.batches())
        assert sum(len(images) for images, _ in batches) == split.num_images
        splits[split.name] = (np.concatenate([images for images, _ in batches]),
                              None if split.classes is None else np.concatenate([one for _, one in batches]).tolist(),
                              split.classes)
    return splits


def read(path, **options):
    return webdataset.read([path], 8, **options)


def left_out(source) -> dict[str, int]:
    """Kinds of files that were left out, and how many."""
    return {kind: one["count"] for kind, one in source.report.as_dict().get("files", {}).items()}


def run(command, source, tmp_path, *flags) -> tuple[int, str, str]:
    return command(prepare.main, "wds", "--source", source, "--size", 8, "--out", tmp_path / "s", *flags)


@pytest.mark.parametrize("layout", ["folders", "names"])
def test_labeled_tars(tmp_path, command, layout):
    train, test = random_images(300, 8, 1), random_images(7, 8, 2)
    labels = np.arange(300) % 4
    train_name, test_name = {"folders": ("train/{}.tar", "val/{}.tar.gz"),
                             "names": ("mine-train-{}.tar", "mine-val-{}.tar")}[layout]
    write_tar(tmp_path / "w" / train_name.format("000000"), samples(train[:270], labels[:270]))
    write_tar(tmp_path / "w" / train_name.format("000001"), samples(train[270:], labels[270:], 270))
    write_tar(tmp_path / "w" / test_name.format("000000"), samples(test, [3, 2, 1, 0, 3, 2, 1]))
    status, out, _ = run(command, tmp_path / "w", tmp_path)
    assert status == 0
    assert "300 images of 8×8, 4 classes" in out
    assert "labels from the cls" in out
    assert "left out: 307 files (.json 307)" in out
    for split, images, expected in (("train", train, labels), ("test", test, [3, 2, 1, 0, 3, 2, 1])):
        shard_set = ShardSet(tmp_path / "s" / split)
        assert np.array_equal(shard_set.read(np.arange(len(shard_set))), images)
        assert shard_set.labels.tolist() == list(expected)


def test_one_unlabeled_tar(tmp_path, command):
    images = random_images(5, 8)
    write_tar(tmp_path / "x.tar", samples(images, extension="PNG"))
    assert run(command, tmp_path / "x.tar", tmp_path)[0] == 0
    shard_set = ShardSet(tmp_path / "s" / "train")
    assert shard_set.classes is None
    assert np.array_equal(shard_set.read(np.arange(5)), images)


def test_tars_that_were_put_together_lose_no_sample_unsaid(tmp_path, command):
    """By ``cat``: whoever reads to the first end finds the first half."""
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", samples(random_images(2, 8)))
    (tmp_path / "x.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    status, _, err = run(command, tmp_path / "x.tar", tmp_path)
    assert status == 1
    assert "x.tar: not a readable tar archive (goes on after its end; give archives" in err


def test_every_damaged_byte_of_a_compressed_tar_is_one_line(tmp_path, command):
    write_tar(tmp_path / "x.tar.gz", samples(random_images(6, 8)))
    content = (tmp_path / "x.tar.gz").read_bytes()
    for position in range(40, len(content), len(content) // 40):  # past gzip's own header
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        (tmp_path / "x.tar.gz").write_bytes(damaged)
        status, _, err = run(command, tmp_path / "x.tar.gz", tmp_path)
        assert (status, len(err.splitlines())) == (1, 1), (position, err)


@pytest.mark.parametrize(("members", "message"), [
    ([], "no samples"), ([("a.cls", b"1")], "x.tar:a: a sample without an image, expected one beside cls"),
    ([("a.cls", b"1"), ("a.heic", b"")], "beside cls, heic; HEIC is not read: convert"),
    ([("a.txt", b"1"), ("README.md", b"x")], "no samples found, expected images and their labels; left out: x.tar:a"),
    ([("a.png", b"no image")], "1 damaged image: x.tar:a (no image that is read here"),
    ([("a.png", IMAGE), ("a.cls", b"\xff\xfe")], r"x.tar:a.cls: b'\xff\xfe' found, expected a class's number or name"),
    ([("a.png", IMAGE), ("a.cls", b"a\nb")], r"x.tar:a.cls: b'a\nb' found, expected a class's"),
    ([("a.png", IMAGE), ("a.cls", b"c" * 1025)], "x.tar:a.cls: more than 1,024 bytes found"),
    ([("a.png", IMAGE), ("a.json", b"{")], "x.tar:a.json: no readable json; --unlabeled"),
    ([("a.png", IMAGE), ("a.json", b"[" * 200_000)], "x.tar:a.json: no readable json"),
    ([("a.png", IMAGE), ("a.json", b"9" * 5000)], "x.tar:a.json: no readable json"),
    ([("a.png", IMAGE), ("a.json", b'"%s"' % (b"x" * 1025))], "a label of 1,025 characters found, expected at most"),
    ([("a.png", IMAGE), ("a.json", b" " * 2**20 + b"1")], "x.tar:a.json: more than 1,048,576 bytes found"),
    ([("a.png", IMAGE), ("a.cls", b"-2"), ("b.png", IMAGE), ("b.cls", b"1")], "label -2 found"),
    ([("a.png", IMAGE), ("a.cls", b"1"), ("a.CLS", b"2")], "x.tar:a.CLS: two cls in one sample found"),
    ([("a.png", IMAGE), ("a.PNG", IMAGE)], "x.tar:a.PNG: two png in one sample found"),
    ([(f"a.{number}.png", IMAGE) for number in range(101)], "more than 100 images in one sample found, expected one; "
                                                           "a sample's name ends at its first dot"),
    ([("a.png", IMAGE), ("a.cls", b"1"), ("b.png", IMAGE)], "a single class found, 1 (1 images)"),
    ([("a.png", IMAGE), ("b.png", IMAGE), ("b.cls", b"1")], "if its images are unlabeled: --unlabeled")])
def test_wrong_samples(tmp_path, command, members, message):
    write_tar(tmp_path / "x.tar", members)
    status, _, err = run(command, tmp_path / "x.tar", tmp_path)
    assert status == 1
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "s").exists()


def test_wrong_tars(tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.tar").write_bytes(b"junk" * 999)
    write_tar(tmp_path / "two" / "train.tar", samples(random_images(2, 8), [0, 1]))
    write_tar(tmp_path / "two" / "test.tar", samples(random_images(2, 8), [0, 2]))
    write_tar(tmp_path / "short.tar", samples(random_images(30, 8)))
    content = (tmp_path / "short.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(content[:20_800])
    for split in ("test", "val"):
        write_tar(tmp_path / "only" / split / "0.tar", samples(random_images(2, 8), [0, 1]))
    write_tar(tmp_path / "deep" / "tars" / "0.tar", samples(random_images(2, 8)))
    for name, message in (("empty", "no tars"), ("junk.tar", "not a readable tar"), ("nowhere", "no tars"),
                          ("two", "test.tar: class 2 not found among the training images, which have 0, 1"),
                          ("short.tar", "short.tar"), ("only", "no tars of training samples found, but of test: test/"),
                          ("deep", "no images taken from: tars/")):
        status, _, err = run(command, tmp_path / name, tmp_path)
        assert status == 1, name
        assert message in err
    status, _, err = run(command, tmp_path / "two" / "train.tar", tmp_path)
    assert status == 2
    assert "no test set found beside 2 labeled images (" in err


def test_damaged_images_are_named_or_left_out(tmp_path, command):
    images = random_images(4, 8)
    members = labeled(images, [b"0", b"1", b"0", b"1"], "cls")
    members[4] = ("002.png", b"no image")
    write_tar(tmp_path / "x.tar", members)
    status, _, err = run(command, tmp_path / "x.tar", tmp_path, "--test-fraction", 0)
    assert status == 1
    assert "1 damaged image: x.tar:002 (" in err
    assert run(command, tmp_path / "x.tar", tmp_path, "--test-fraction", 0, "--skip-damaged")[0] == 0
    assert ShardSet(tmp_path / "s" / "train").labels.tolist() == [0, 1, 1]


def test_tars_that_change_meanwhile(tmp_path):
    def write(count: int, first: int = 0) -> None:
        write_tar(tmp_path / "x.tar", samples(random_images(count, 8), np.arange(count) % 2, first))
    for change in (lambda: write(3), lambda: write(5), lambda: write(4, 1), lambda: write(0)):
        write(4)
        source = read(tmp_path / "x.tar", test_fraction=0.5)
        change()
        for split in source.splits:
            with pytest.raises(DataError, match="it had 4 samples, and now has others; start again"):
                list(split.batches())
