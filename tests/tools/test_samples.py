"""Members of tars that are samples: which image is taken, what lies apart, what is left out."""

import io
import tarfile

import numpy as np
import pytest

from pipelines.common.errors import DataError, UsageError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tests.tools.test_webdataset import IMAGE, found, left_out, png, read, run, samples, write_tar
from tools.sources import samples as tar_samples
from tools.sources import webdataset


def test_only_the_image_named_by_the_sample_counts(tmp_path, command):
    images, masks = random_images(3, 8, 1), random_images(3, 8, 2)
    members = [(f"{i}.{name}", png(image)) for i in range(3)
               for name, image in (("png", images[i]), ("mask.png", masks[i]))]
    write_tar(tmp_path / "x.tar", members)
    status, out, _ = run(command, tmp_path / "x.tar", tmp_path)
    assert status == 0
    assert "left out: 3 files (.mask.png 3)" in out
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


def pairs(extensions, images) -> list[tuple[str, bytes]]:
    """Samples with an image of each extension, which are those of ``images`` in turn."""
    return [(f"{i}.{extension}", png(image)) for i in range(len(images) // len(extensions))
            for extension, image in zip(extensions, images[i * len(extensions):], strict=False)]


@pytest.mark.parametrize(("extensions", "key", "chosen", "left"), [
    (("mask.png", "png"), None, 1, {".mask.png": 3}), (("png", "mask.png", "a.gif"), None, 0, {".mask.png": 3,
                                                                                              ".a.gif": 3}),
    (("left.png",), None, 0, {}), (("left.png", "right.png"), "Right.PNG", 1, {".left.png": 3}),
    (("bmp", "png"), ".png", 1, {".bmp": 3}), (("png", "left.png"), "left.png", 1, {".png": 3})])
def test_the_image_of_a_sample(tmp_path, extensions, key, chosen, left):
    images = random_images(3 * len(extensions), 8)
    write_tar(tmp_path / "x.tar", pairs(extensions, images))
    source = read(tmp_path / "x.tar", image_key=key)
    assert np.array_equal(found(source)["train"][0], images[chosen::len(extensions)])
    assert left_out(source) == left
    assert source.origin.get("image_key") == key


@pytest.mark.parametrize(("extensions", "message"), [
    (("jpg", "png"), r"x\.tar:0: several images found, jpg and png; --image-key jpg takes one"),
    (("right.png", "left.png"), "several images found, right.png and left.png; --image-key right.png"),
    (("a.png", "jpg", "png"), "jpg and png")])
def test_several_images_are_not_chosen_from(tmp_path, extensions, message):
    write_tar(tmp_path / "x.tar", pairs(extensions, random_images(6, 8)))
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "x.tar")


def test_a_sample_without_the_image_of_the_others(tmp_path):
    members = [("0.png", IMAGE), ("0.mask.png", IMAGE), ("1.mask.png", IMAGE)]
    for order in (members, members[2:] + members[:2]):
        write_tar(tmp_path / "x.tar", order)
        with pytest.raises(DataError, match=r":1: mask\.png is its only image, but lies beside another one in .*:0;"):
            read(tmp_path / "x.tar")
    many = [(f"s{i}.{i}.png", IMAGE) for i in range(1001)]  # names with dots, more than are kept
    write_tar(tmp_path / "x.tar", [*members[:2], *many, *members[2:]])
    with pytest.raises(DataError, match=r":1: mask\.png is its only image"):
        read(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", many)
    assert read(tmp_path / "x.tar").splits[0].num_images == 1001
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x\.tar:1: no png found, which --image-key names, but mask\.png"):
        read(tmp_path / "x.tar", image_key="png")
    with pytest.raises(UsageError, match=r"x\.tar:0: no jpg found, which --image-key names, but png, mask\.png"):
        read(tmp_path / "x.tar", image_key="jpg")


def test_files_of_one_sample_that_lie_apart(tmp_path):
    images = random_images(5, 8)
    parts = {kind: [(f"{i}.{kind}", content) for i, content in enumerate(contents)] for kind, contents in {
        "png": list(map(png, images)), "json": [b'{"label": %d}' % (i % 2) for i in range(5)],
        "cls": [b"%d" % (i % 2) for i in range(5)], "mask.png": [IMAGE] * 5}.items()}
    for first, second in (("json", "png"), ("png", "json"), ("png", "mask.png"), ("mask.png", "png")):
        write_tar(tmp_path / "x.tar", parts[first] + parts[second])
        with pytest.raises(DataError, match=r"x\.tar:0: the files of one sample lie apart, expected them side by "
                                            r"side; tar --sort=name makes such a tar"):
            read(tmp_path / "x.tar", test_fraction=0)
    write_tar(tmp_path / "x.tar", parts["png"] + parts["cls"])
    with pytest.raises(DataError, match=r"x\.tar:0: a sample without an image"):
        read(tmp_path / "x.tar", test_fraction=0)
    for second in ("json", "cls"):
        write_tar(tmp_path / "x.tar", parts["png"] + parts[second])
        assert np.array_equal(found(read(tmp_path / "x.tar", unlabeled=True))["train"][0], images)
    together = [member for pair in zip(parts["png"], parts["cls"], strict=True) for member in pair]
    write_tar(tmp_path / "x.tar", together + parts["json"])  # their labels are not lost
    assert found(read(tmp_path / "x.tar", test_fraction=0))["train"][1] == [0, 1, 0, 1, 0]
    write_tar(tmp_path / "x.tar", parts["png"][:2] + parts["png"][:2])  # as tars that were joined have them
    assert np.array_equal(found(read(tmp_path / "x.tar"))["train"][0], images[[0, 1, 0, 1]])
    many = [(f"{i}.txt", b"1") for i in range(1001)]
    for members in ([*many, ("1001.png", IMAGE)], [("other.png", IMAGE), *many]):
        write_tar(tmp_path / "x.tar", members)
        with pytest.raises(DataError, match="the files of one sample lie apart"):
            read(tmp_path / "x.tar")


def test_what_is_left_out_is_counted(tmp_path):
    write_tar(tmp_path / "x.tar", [
        ("a/.DS_Store", b""), ("a/._0.png", b""), ("a/0.png", IMAGE), ("a/0.seg.npy", b""), ("a/0.txt", b"x y"),
        ("a/0.cls", b"1"), ("__MACOSX/a/._0.png", b""), ("a/.hidden/1.png", IMAGE), ("a/1.png", IMAGE),
        ("a/1.CLS", b"0"), ("README.md", b""), ("LICENSE", b""), ("a/Thumbs.db", b""), ("2.heic", b""),
        ("index.json", b"no json")])
    source = read(tmp_path / "x.tar", test_fraction=0)
    assert found(source)["train"][1:] == ([1, 0], ("0", "1"))
    assert left_out(source) == {".DS_Store": 1, "._*": 1, ".npy": 1, ".txt": 1, "__MACOSX/*": 1, ".hidden/*": 1,
                                ".md": 1, "no extension": 1, "Thumbs.db": 1, ".heic": 1, ".json": 1}
    assert any("HEIC is not read" in line for line in source.report.lines())
    assert source.report.as_dict()["files"][".npy"]["names"] == ["x.tar:a/0.seg.npy"]


def test_only_the_images_that_are_wanted_are_read(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", samples(random_images(20, 8), [*range(10)] * 2))
    write_tar(tmp_path / "y.tar", samples(random_images(20, 8)))
    names, original = [], tar_samples.content

    def noting(archive, member, where, limit):
        names.append(member.name)
        return original(archive, member, where, limit)
    monkeypatch.setattr(tar_samples, "content", noting)
    source = webdataset.read([tmp_path / "x.tar", tmp_path / "y.tar"], 8, test_fraction=0.1)
    assert len(names) == 60
    assert not any(name.endswith("png") for name in names)
    for split, count in zip(source.splits, (10, 20, 10), strict=True):
        names.clear()
        assert sum(len(images) for images, _ in split.batches()) == len(names) == count


def test_the_choice_of_an_image_holds_one_of_them(tmp_path, monkeypatch):
    """Of several that lie before the one that is taken, none is read but the first."""
    write_tar(tmp_path / "x.tar", [("0.a.png", b"a"), ("0.b.png", b"b"), ("0.png", IMAGE), ("0.c.png", b"c")])
    source = read(tmp_path / "x.tar")
    sizes, original = [], tar_samples.content
    monkeypatch.setattr(tar_samples, "content", lambda *args: sizes.append(args[1].size) or original(*args))
    assert np.array_equal(found(source)["train"][0][0], random_images(1, 8)[0])
    assert sizes == [1, len(IMAGE)]
