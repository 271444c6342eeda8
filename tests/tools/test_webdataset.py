"""WebDataset tars, as the webdataset package writes them: samples in order, labels where there are some."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
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


def test_only_the_image_named_by_the_sample_counts(tmp_path, command):
    images, masks = random_images(3, 8, 1), random_images(3, 8, 2)
    members = [(f"{i}.{name}", png(image)) for i in range(3)
               for name, image in (("png", images[i]), ("mask.png", masks[i]))]
    write_tar(tmp_path / "x.tar", members)
    assert run(command, tmp_path / "x.tar", tmp_path)[0] == 0
    assert np.array_equal(ShardSet(tmp_path / "s" / "train").read(np.arange(3)), images)


def test_what_gnu_tar_and_macos_add_is_no_sample(tmp_path, command):
    """A volume's label, and ._x.png beside x.png."""
    images = random_images(3, 8)
    label = tarfile.TarInfo("backup of today")
    label.type = b"V"
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(label)
        for i, image in enumerate(images):
            for name, content in ((f"a/._{i}.png", b"attributes"), (f"a/{i}.png", png(image))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    assert run(command, tmp_path / "x.tar", tmp_path)[0] == 0
    assert np.array_equal(ShardSet(tmp_path / "s" / "train").read(np.arange(3)), images)


def test_tars_that_were_put_together_lose_no_sample_unsaid(tmp_path, command):
    """By ``cat``: whoever reads to the first end finds the first half."""
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", samples(random_images(2, 8)))
    (tmp_path / "x.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    status, _, err = run(command, tmp_path / "x.tar", tmp_path)
    assert status == 1
    assert "x.tar: not a readable tar archive (goes on after its end; give archives" in err


def test_val_as_part_of_a_word_is_no_test_set(tmp_path, command):
    for name in ("beach-000.tar", "carnival-000.tar", "latest.tar"):
        write_tar(tmp_path / "w" / name, samples(random_images(2, 8)))
    assert run(command, tmp_path / "w", tmp_path)[0] == 0
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["train"]
    assert len(ShardSet(tmp_path / "s" / "train")) == 6


def test_every_damaged_byte_of_a_compressed_tar_is_one_line(tmp_path, command):
    write_tar(tmp_path / "x.tar.gz", samples(random_images(6, 8)))
    content = (tmp_path / "x.tar.gz").read_bytes()
    for position in range(40, len(content), len(content) // 40):  # past gzip's own header
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        (tmp_path / "x.tar.gz").write_bytes(damaged)
        status, _, err = run(command, tmp_path / "x.tar.gz", tmp_path)
        assert (status, len(err.splitlines())) == (1, 1), (position, err)


IMAGE = png(random_images(1, 8)[0])


@pytest.mark.parametrize(("members", "message"), [
    ([], "no samples"), ([("a.cls", b"1")], "without an image"), ([("a.png", b"no image")], "x.tar:a: unreadable"),
    ([("a.png", IMAGE), ("a.cls", b"cat")], "'cat' found, expected a class number"),
    ([("a.png", IMAGE), ("a.cls", b"1"), ("b.png", IMAGE)], "x.tar:b: no cls file"),
    ([("a.png", IMAGE), ("b.png", IMAGE), ("b.cls", b"1")], "x.tar:b: a cls file")])
def test_wrong_samples(tmp_path, command, members, message):
    write_tar(tmp_path / "x.tar", members)
    status, out, err = run(command, tmp_path / "x.tar", tmp_path)
    assert status == 1
    assert out == ""
    assert message in err
    assert not (tmp_path / "s").exists()


def test_wrong_tars(tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.tar").write_bytes(b"junk" * 999)
    write_tar(tmp_path / "two" / "train.tar", samples(random_images(2, 8), [0, 1]))
    write_tar(tmp_path / "two" / "test.tar", samples(random_images(2, 8), [0, 2]))
    write_tar(tmp_path / "short.tar", samples(random_images(30, 8)))
    content = (tmp_path / "short.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(content[:20_800])
    for name, message in (("empty", "no tars"), ("junk.tar", "not a readable tar"), ("nowhere", "no tars"),
                          ("two", "classes up to 2"), ("short.tar", "short.tar")):
        status, _, err = run(command, tmp_path / name, tmp_path)
        assert status == 1, name
        assert message in err
