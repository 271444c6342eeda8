"""Tiny ImageNet as downloaded, zipped, and with val/ sorted into folders; and what is missing or wrong in others."""

import io
import shutil
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare
from tools.sources import tiny_imagenet

WNIDS = ("n02", "n01", "n10")  # as in wnids.txt, where they are not sorted
PER_CLASS, VAL, TEST = 10, 12, 7


def jpeg(seed: int, size: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(random_images(1, size, seed)[0]).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def val_class(n: int) -> str:
    return WNIDS[n * n % 3]


FILES = {f"train/{wnid}/images/{wnid}_{n}.JPEG": jpeg(100 * k + n) for k, wnid in enumerate(WNIDS)
         for n in range(PER_CLASS)} | \
        {f"val/images/val_{n}.JPEG": jpeg(1000 + n) for n in range(VAL)} | \
        {f"test/images/test_{n}.JPEG": jpeg(2000 + n) for n in range(TEST)}
TEXTS = {f"train/{wnid}/{wnid}_boxes.txt": "".join(f"{wnid}_{n}.JPEG\t0\t0\t9\t9\n" for n in range(PER_CLASS))
         for wnid in WNIDS} | {
    "val/val_annotations.txt": "".join(f"val_{n}.JPEG\t{val_class(n)}\t0\t0\t9\t9\n" for n in range(VAL)),
    "wnids.txt": "\n".join(WNIDS) + "\n", "words.txt": "n01\tfish\nn02\tbird, fowl\nn03\tno such class\n"}


@pytest.fixture
def source(tmp_path):
    """tiny-imagenet-200/ of three classes."""
    folder = tmp_path / "data" / "tiny-imagenet-200"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def zipped(source, compression=zipfile.ZIP_DEFLATED, root="tiny-imagenet-200/"):
    """The folder as a .zip beside it, its members in no order."""
    path = source.parent / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(source.rglob("*"), key=lambda file: str(file)[::-1]):
            archive.write(file, root + file.relative_to(source).as_posix())
    return path


def expected(split: str) -> list[tuple[bytes, int | None]]:
    """Files and classes in source order."""
    if split == "train":
        return [(FILES[name], sorted(WNIDS).index(name.split("/")[1])) for name in sorted(FILES)
                if name.startswith("train/")]
    if split == "test":
        return [(FILES[f"val/images/{name}"], sorted(WNIDS).index(val_class(int(name[4:-5]))))
                for name in sorted(f"val_{n}.JPEG" for n in range(VAL))]
    return [(FILES[name], None) for name in sorted(FILES) if name.startswith("test/")]


def check(split, wanted: list) -> None:
    """Images and labels of a split are these, in this order."""
    batches = list(split.batches())
    images = np.concatenate([images for images, _ in batches])
    assert len(images) == split.num_images == len(wanted)
    for image, (content, _) in zip(images, wanted, strict=True):
        assert np.array_equal(image, pixels(content))
    labels = [label for images, labels in batches for label in ([None] * len(images) if labels is None else labels)]
    assert labels == [label for _, label in wanted]


@pytest.mark.parametrize("form", ["folder", "above", "zip", "stored zip", "flat zip", "above a zip"])
def test_every_form(source, form):
    path = {"folder": source, "above": source.parent}.get(form)
    if path is None:
        path = zipped(source, zipfile.ZIP_STORED if form == "stored zip" else zipfile.ZIP_DEFLATED,
                      "" if form == "flat zip" else "tiny-imagenet-200/")
        shutil.rmtree(source)
        path = path.parent if form == "above a zip" else path
    found = tiny_imagenet.read(path, 64)
    assert (found.dataset, found.image_shape) == ("tinyimagenet", (64, 64, 3))
    assert [split.name for split in found.splits] == ["train", "unlabeled", "test"]
    for split in found.splits:
        assert split.classes == (None if split.name == "unlabeled" else ("n01", "n02", "n10"))
        check(split, expected(split.name))
    assert found.report.lines() == []
    assert found.report.as_dict() == {}


def test_as_prepared(source, tmp_path, capsys):
    prepare.prepare(tiny_imagenet.read(source, 32), tmp_path / "out")
    sets = {name: ShardSet(tmp_path / "out" / name) for name in ("train", "unlabeled", "test")}
    assert {name: len(found) for name, found in sets.items()} == {"train": 30, "unlabeled": TEST, "test": VAL}
    assert sets["test"].labels.tolist() == [label for _, label in expected("test")]
    assert sets["train"].image_shape == (32, 32, 3)
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("inside", ["", "images/"])
@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("left", ["nothing", "empty folder", "copies"])
def test_val_sorted_into_folders(source, inside, form, left):
    wanted = []
    for n in sorted(range(VAL), key=lambda n: (val_class(n), f"val_{n}.JPEG")):
        target = source / "val" / val_class(n) / inside / f"val_{n}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "val" / "images" / target.name, target)
        wanted.append((FILES[f"val/images/{target.name}"], sorted(WNIDS).index(val_class(n))))
    if left != "copies":
        shutil.rmtree(source / "val" / "images")
    if left == "empty folder":
        (source / "val" / "images").mkdir()
    if left == "nothing":
        (source / "val" / "val_annotations.txt").unlink()
    found = tiny_imagenet.read(zipped(source) if form == "zip" else source, 64)
    check(found.splits[2], wanted)
    assert found.report.as_dict() == ({} if left != "copies" else {"images": {
        "val/ outside of its folders of classes": {"count": VAL}}})


def test_val_in_folders_that_are_no_classes(source):
    (source / "val" / "n99").mkdir()
    shutil.copy(source / "val" / "images" / "val_0.JPEG", source / "val" / "n99")
    for path in (source, zipped(source)):
        with pytest.raises(DataError, match=r"val/n99: class not found in wnids\.txt"):
            tiny_imagenet.read(path, 64)


def test_without_the_test_images(source):
    shutil.rmtree(source / "test")
    assert [split.name for split in tiny_imagenet.read(source, 64).splits] == ["train", "test"]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_else_lies_there(source, form):
    for name in ("notes.md", "train/n01/images/Thumbs.db", "train/n01/images/._n01_0.JPEG", "val/images/list.csv",
                 "extra/x.JPEG", "__MACOSX/x.JPEG", "docs/a.txt", "direct.JPEG", "test/images/no_extension"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"no image")
    found = tiny_imagenet.read(zipped(source) if form == "zip" else source, 64)
    left = found.report.as_dict()
    assert {kind: tally["count"] for kind, tally in left["files"].items()} == {
        ".md": 1, "Thumbs.db": 1, "._*": 1, ".csv": 1, "no extension": 1}
    assert {kind: tally["count"] for kind, tally in left["images"].items()} == {"extra/": 1, "beside train/": 1}
    assert "docs" in left["folders"]
    check(found.splits[0], expected("train"))


@pytest.mark.parametrize(("name", "text", "message"), [
    ("wnids.txt", "n01\nn02\n", r"wnids.txt: 'n10' is in train/ and not in wnids.txt"),
    ("wnids.txt", "n01\nn02\nn10\nn11\n", r"wnids.txt: 'n11' is in wnids.txt and not in train/"),
    ("wnids.txt", "", r"is in train/ and not in wnids.txt \(3 such in all\)"),
    ("val/val_annotations.txt", "val_0.JPEG\tn01\n", r"val_1\.JPEG: no line for it in val/val_annotations\.txt"),
    ("val/val_annotations.txt", "val_0.JPEG\tn03\n", r"val_annotations\.txt: line 1: class 'n03' found"),
    ("val/val_annotations.txt", "\nval_0.JPEG n01\n", r"val_annotations\.txt: line 2: class '' found"),
    ("val/val_annotations.txt", "val_0.JPEG\tn01\nval_0.JPEG\tn02\n", r"line 2: 'val_0.JPEG' found with another class"),
    ("val/val_annotations.txt", None, r"val_annotations\.txt: missing, and val/ has no folders of classes")])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_wrong_texts(source, form, name, text, message):
    (source / name).unlink()
    if text is not None:
        (source / name).write_text(text)
    path = zipped(source) if form == "zip" else source
    with pytest.raises(DataError, match=message) as refused:
        tiny_imagenet.read(path, 64)
    assert str(refused.value).startswith(f"{path}{':' if form == 'zip' else '/'}")


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(("name", "message"), [
    ("train", "train: missing; expected tiny-imagenet-200"), ("val", "val: missing; expected tiny-imagenet-200"),
    ("train/n10/images", r"n10: no images found|'n10' is in wnids\.txt and not in train/"),
    ("val/images", "val: no images found|val: missing")])
def test_missing_folders(source, form, name, message):
    shutil.rmtree(source / name)
    with pytest.raises(DataError, match=message):
        tiny_imagenet.read(zipped(source) if form == "zip" else source, 64)


def test_other_places(source, tmp_path):
    with pytest.raises(DataError, match="nowhere: not found; expected tiny-imagenet-200"):
        tiny_imagenet.read(tmp_path / "nowhere", 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no Tiny ImageNet here; expected tiny-imagenet-200"):
        tiny_imagenet.read(tmp_path / "empty", 64)
    shutil.copytree(source, source.parent / "copy")
    with pytest.raises(DataError, match="found in copy, tiny-imagenet-200, expected a single folder"):
        tiny_imagenet.read(source.parent, 64)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_damaged_images(source, form):
    (source / "train/n01/images/n01_3.JPEG").write_bytes(b"no image")
    (source / "val/images/val_2.JPEG").write_bytes(FILES["val/images/val_2.JPEG"][:500])
    path = zipped(source) if form == "zip" else source
    found = tiny_imagenet.read(path, 64, skip_damaged=True)
    train, _, test = [list(split.batches()) for split in found.splits]
    assert sum(len(images) for images, _ in train) == 29
    assert train[0][1].tolist() == [label for _, label in expected("train")][1:]  # one of class 0 is not there
    assert sum(len(images) for images, _ in test) == VAL - 1
    assert found.report.as_dict()["damaged"]["count"] == 2
    found = tiny_imagenet.read(path, 64)
    for split in found.splits:
        list(split.batches())
    with pytest.raises(DataError, match=r"2 damaged images: train/n01/images/n01_3\.JPEG \("):
        found.report.check("here")


def test_a_damaged_member(source):
    """Its checksum is wrong, or its header; the others are read."""
    path = zipped(source, zipfile.ZIP_STORED)
    content = path.read_bytes()
    whole = FILES["train/n02/images/n02_5.JPEG"]
    for place in (content.index(whole) + 300, content.index(b"n02_5.JPEG")):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        found = tiny_imagenet.read(path, 64, skip_damaged=True)
        assert sum(len(images) for images, _ in found.splits[0].batches()) == 29
        name, = found.report.as_dict()["damaged"]["names"]
        assert name.startswith("train/n02/images/n02_5.JPEG (")


def changed(path, name: str, offset: int, piece: bytes) -> None:
    """Change a field of a member in the table of contents of a zip file."""
    content = bytearray(path.read_bytes())
    place = content.rindex(name.encode()) - 46 + offset
    assert content[place - offset:][:4] == b"PK\1\2"
    content[place:place + len(piece)] = piece
    path.write_bytes(content)


def test_zip_files_that_are_not_read(source, tmp_path):
    for offset, piece, message in ((8, b"\1", "encrypted"), (10, struct.pack("<H", 12), "compressed by method 12")):
        path = zipped(source)
        changed(path, "tiny-imagenet-200/val/images/val_3.JPEG", offset, piece)
        with pytest.raises(DataError, match=rf"tiny-imagenet-200/val/images/val_3\.JPEG: {message}, expected"):
            tiny_imagenet.read(path, 64)
    content = zipped(source).read_bytes()
    for damaged in (b"", b"no zip file", content[:len(content) // 2], content[:-30]):
        (tmp_path / "x.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.zip: not a readable zip file"):
            tiny_imagenet.read(tmp_path / "x.zip", 64)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("other/x.txt", "x")
    with pytest.raises(DataError, match=r"x\.zip: wnids\.txt found in no folder; expected tiny-imagenet-200"):
        tiny_imagenet.read(tmp_path / "x.zip", 64)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a/wnids.txt", "b/wnids.txt"):
            archive.writestr(name, "x")
    with pytest.raises(DataError, match=r"x\.zip: wnids\.txt found in a/ and b/"):
        tiny_imagenet.read(tmp_path / "x.zip", 64)


def test_a_member_that_unpacks_to_much(source, frugal):
    """300 MB of zeros: refused as soon as the limit is passed."""
    path = zipped(source)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, \
            archive.open("tiny-imagenet-200/test/images/z.JPEG", "w", force_zip64=True) as member:
        for _ in range(300):
            member.write(bytes(2**20))
    with frugal(100):
        found = tiny_imagenet.read(path, 64, skip_damaged=True)
        assert sum(len(images) for images, _ in found.splits[1].batches()) == TEST
    assert found.report.as_dict()["damaged"]["names"] == ["test/images/z.JPEG (more than 16,777,216 bytes)"]


def test_a_table_of_contents_that_is_long(tmp_path, frugal):
    size = 2**28
    with open(tmp_path / "x.zip", "wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 9, size, 0, 0))
    with frugal(), pytest.raises(DataError, match=r"x\.zip: a table of contents of 268,435,456 bytes found"):
        tiny_imagenet.read(tmp_path / "x.zip", 64)


def test_names_that_lead_out_are_nothing(source, tmp_path):
    path = zipped(source)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../out.JPEG", b"x")
        archive.writestr("tiny-imagenet-200/" + "a/" * 50 + "x.JPEG", b"x")
    before = sorted(tmp_path.rglob("*"))
    check(tiny_imagenet.read(path, 64).splits[0], expected("train"))
    assert sorted(tmp_path.rglob("*")) == before
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny-imagenet-200/" + "a/" * 5000 + "x.JPEG", b"x")
    with pytest.raises(DataError, match="more than 100 folders in one another"):
        tiny_imagenet.read(path, 64)
