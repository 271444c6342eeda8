"""What a folder has beside sound images: junk, damage, links, files that change; what is said of it."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.tools.layouts import SIZE, Photos, classes_of, left_out, lines, prepared, run
from tools.sources import folder as folder_source


def test_junk_is_no_class_and_is_said(split_photos, tmp_path, command):
    """What unzip, a Synology, macOS, Windows and notebooks leave, in the root of the classes and inside a class."""
    for folder in ("train/__MACOSX/cat", "train/@eaDir/0.png", "train/.ipynb_checkpoints", "train/cat/@eaDir",
                   "__MACOSX/photos/train", "train/to_sort"):
        (split_photos.path / folder).mkdir(parents=True)
    for file in ("train/__MACOSX/cat/._0.png", "train/cat/._0.png", "train/cat/.DS_Store", "train/Thumbs.db",
                 "train/cat/Thumbs.db", "desktop.ini"):
        (split_photos.path / file).write_bytes(b"x")
    split_photos.save("train/@eaDir/0.png/thumb.png")
    split_photos.save("train/cat/@eaDir/thumb.png")
    before = len(split_photos.of)
    said = prepared(command, split_photos, tmp_path)
    assert f"{split_photos.path}: 3 classes in train/: cat 6, dog 6, owl 6" in said
    assert len(ShardSet(tmp_path / "s" / "train")) == 18 == before - 6 - 2
    for word in ("Thumbs.db", ".DS_Store", "._0.png", "desktop.ini", "__MACOSX 2", "@eaDir 2", "to_sort",
                 ".ipynb_checkpoints"):
        assert word in said[-1], said[-1]
    for split in ("train", "test"):
        whole = left_out(tmp_path / "s" / split)
        assert whole["files"]["Thumbs.db"]["count"] == 2
        assert sorted(whole["files"]["Thumbs.db"]["names"]) == ["train/Thumbs.db", "train/cat/Thumbs.db"]
        assert set(whole["folders"]) == {"__MACOSX", "@eaDir", "to_sort", ".ipynb_checkpoints"}


def test_other_extensions(split_photos, tmp_path, command):
    """JPEG under all its names, AVIF, images by content where there is no extension; HEIC and the rest are said."""
    for extension in (".JPG", ".JPEG", ".jfif", ".jpe", ""):
        split_photos.add("train/cat/jpeg", 2, extension, format="JPEG")
    split_photos.save("train/dog/scan 12.5cm", format="PNG")
    split_photos.save("train/dog/x.avif")
    for i in range(5):
        (split_photos.path / f"train/cat/g{i}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("README", "notes", "clip.mp4"):
        (split_photos.path / "train" / "cat" / name).write_bytes(b"text")
    said = prepared(command, split_photos, tmp_path)
    assert f"{split_photos.path}: 3 classes in train/: cat 16, dog 8, owl 6" in said
    names = [name for name in split_photos.of if name.startswith("train/")]
    assert sorted(split_photos.names(tmp_path / "s" / "train")) == sorted(names)
    assert said[-1] == ("left out: 7 files (.heic 5, no extension 2), train/cat/clip.mp4; HEIC is not read: convert it "
                        "to JPEG first, by heif-convert for instance")


def test_links_in_circles_end(split_photos, tmp_path, command):
    os.symlink(split_photos.path / "train" / "cat", split_photos.path / "train" / "cat" / "again")
    os.symlink(split_photos.path / "nowhere", split_photos.path / "train" / "cat" / "gone.png")
    said = prepared(command, split_photos, tmp_path)
    assert len(ShardSet(tmp_path / "s" / "train")) == 18
    assert said[-1] == "left out: train/cat/gone.png (broken links); no images taken from: links to folders around them"


def test_a_link_to_the_source_gives_no_class_the_images_of_another(split_photos, tmp_path, command):
    for target in ("..", "../..", "../../.."):
        os.symlink(target, split_photos.path / "train" / "cat" / f"up{len(target)}", target_is_directory=True)
    prepared(command, split_photos, tmp_path)
    assert split_photos.labels(tmp_path / "s" / "train") == classes_of(
        name for name in split_photos.of if name.startswith("train/"))


@pytest.mark.parametrize(("link", "target"), [("all", "."), ("test", "train"), ("train/kitty", "cat"),
                                              ("unlabeled", "train/dog"), ("val/cat", "../train/cat")])
def test_a_folder_that_is_two_by_a_link_is_refused(photos, tmp_path, command, link, target):
    for name in ("cat", "dog") if link == "all" else ("train/cat", "train/dog"):
        photos.add(name, 3)
    (photos.path / link).parent.mkdir(exist_ok=True)
    os.symlink(target, photos.path / link, target_is_directory=True)
    status, _, err = run(command, photos.path, tmp_path / "s", *["--test-fraction", "0.3"] * (link != "val/cat"))
    assert (status, len(lines(err))) == (1, 1)
    assert "the same folder as" in err


def test_links_to_folders_elsewhere_are_followed(photos, tmp_path, command):
    elsewhere = Photos(tmp_path / "elsewhere")
    elsewhere.add("one", 2)
    elsewhere.add("two/deep", 2)
    for name, target in (("cat", "one"), ("dog", "two")):
        os.symlink(tmp_path / "elsewhere" / target, photos.path / name, target_is_directory=True)
    os.symlink("self", photos.path / "cat" / "self")  # a link to itself
    said = prepared(command, photos, tmp_path, "--test-fraction", "0")
    assert f"{photos.path}: 2 classes: cat 2, dog 2; if these are no classes: --unlabeled" in said
    assert said[-1] == "left out: cat/self (broken links)"


def test_what_lies_in_a_test_set_that_is_not_used_is_counted(split_photos, tmp_path, command):
    split_photos.add("val/cat", 3)
    split_photos.add("val", 2)
    (split_photos.path / "val" / "cat" / "notes.pdf").write_bytes(b"x")
    (split_photos.path / "unlabeled").mkdir()
    said = prepared(command, split_photos, tmp_path)
    assert said[-1] == ("left out: val/cat/notes.pdf; 5 images (val/, since test/ is the test set); no images taken "
                        "from: unlabeled")


def test_a_class_that_damage_leaves_alone_is_refused(photos, tmp_path, command):
    photos.add("cat", 3)
    (photos.path / "dog").mkdir()
    for i in range(3):
        (photos.path / "dog" / f"{i}.png").write_bytes(b"x")
    status, _, err = run(command, photos.path, tmp_path / "s", "--test-fraction", "0", "--skip-damaged")
    assert (status, "a single class with images is left, cat" in err) == (1, True)
    assert not (tmp_path / "s").exists()


def test_folders_that_are_too_deep(photos, tmp_path, command):
    photos.add("a", 2)
    photos.add("b" + "/x" * 99, 2)
    assert run(command, photos.path, tmp_path / "s", "--test-fraction", "0")[0] == 0
    photos.add("b" + "/x" * 100, 2)
    status, _, err = run(command, photos.path, tmp_path / "t", "--test-fraction", "0")
    assert (status, "more than 100 folders in one another found" in err) == (1, True)


def test_a_file_that_is_renamed_between_two_splits_is_noticed(photos):
    for name in ("cat", "dog"):
        photos.add(name, 5)
    train, test = folder_source.read(photos.path, SIZE, test_fraction=0.3).splits
    assert sum(len(images) for images, _ in train.batches()) == 6
    (photos.path / "cat" / "0.png").rename(photos.path / "cat" / "9.png")
    with pytest.raises(DataError, match="cat: it had 5 images, and now has others"):
        list(test.batches())


def test_damaged_files_are_named_at_once_or_left_out(split_photos, tmp_path, command):
    for file, content in (("cat/a.jpg", b""), ("dog/b.png", None), ("owl/c.jpg", b"<html>404</html>")):
        path = split_photos.path / "train" / file
        if content is None:
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(path)
            content = path.read_bytes()[:-2000]
        path.write_bytes(content)
    Image.new("F", (9, 9)).save(split_photos.path / "test" / "cat" / "d.tiff")
    status, _, err = run(command, split_photos.path, tmp_path / "s")
    (line,) = [line for line in lines(err) if line.startswith("error")]
    assert status == 1
    for words in ("photos: 4 damaged images: ", "train/cat/a.jpg (an empty file)", "train/dog/b.png (",
                  "train/owl/c.jpg (no image that is read here; it begins with b'<html>404</html>')",
                  "test/cat/d.tiff (32-bit float pixels", ".astype('uint8')", "--skip-damaged leaves them out"):
        assert words in line
    assert not (tmp_path / "s").exists()
    said = prepared(command, split_photos, tmp_path, "--skip-damaged")
    assert said[-1].startswith("left out: 4 damaged images: train/cat/a.jpg (an empty file), ")
    assert len(ShardSet(tmp_path / "s" / "train")) == 18
    assert len(split_photos.names(tmp_path / "s" / "test")) == 6
    assert split_photos.labels(tmp_path / "s" / "train") == classes_of(
        name for name in split_photos.of if name.startswith("train/"))
    manifest = json.loads((tmp_path / "s" / "train" / "manifest.json").read_text())
    assert [name.split(" ")[0] for name in manifest["source"]["left_out"]["damaged"]["names"]] == [
        "train/cat/a.jpg", "train/dog/b.png", "train/owl/c.jpg", "test/cat/d.tiff"]


def test_of_many_damaged_files_twenty_are_named(photos, tmp_path, command):
    for name in ("cat", "dog"):
        photos.add(f"train/{name}", 2)
    for i in range(50):
        (photos.path / "train" / "dog" / f"x{i:02}.png").write_bytes(b"")
    status, _, err = run(command, photos.path, tmp_path / "s", "--test-fraction", "0")
    assert status == 1
    assert err.count("an empty file") == 20
    assert "x19.png (an empty file) and 30 more; --skip-damaged" in err


def test_16_bits_become_8_and_dark_ones_are_named(photos, tmp_path, command):
    for name, level in (("a", 65535), ("b", 257 * 30 + 256)):
        (photos.path / name).mkdir()
        Image.fromarray(np.full((SIZE, SIZE), level, np.uint16)).save(photos.path / name / "x.png")
    (photos.path / "b" / "y.pgm").write_bytes(b"P5 8 8 65535\n" + bytes([10, 0]) * 64)
    said = prepared(command, photos, tmp_path, "--test-fraction", "0")
    assert ShardSet(tmp_path / "s" / "train").read(np.arange(3))[:, 0, 0, 0].tolist() == [255, 30, 2560 // 257]
    assert not any(line.startswith("dark") for line in said)
    (photos.path / "a" / "x.png").unlink()
    Image.fromarray(np.full((SIZE, SIZE), 4095, np.uint16)).save(photos.path / "a" / "x.tif")
    said = prepared(command, photos, tmp_path, "--test-fraction", "0", "--force")
    assert said[-1].startswith("dark: the brightest pixel of 3 images of 16 bits is 7,966 of 65,535")


def test_further_frames_are_said(photos, tmp_path, command):
    frames = [Image.fromarray(np.full((SIZE, SIZE, 3), level, np.uint8)) for level in (10, 200)]
    for name in ("a", "b"):
        (photos.path / name).mkdir()
        for kind in ("gif", "tiff", "webp"):
            frames[0].save(photos.path / name / f"x.{kind}", save_all=name == "a",
                           append_images=frames[1:] * (name == "a"))
    said = prepared(command, photos, tmp_path, "--test-fraction", "0")
    assert said[-1] == "left out: 3 images (frames, pages or previews behind the first)"
    assert ShardSet(tmp_path / "s" / "train").read(np.arange(6)).max() < 20


def test_a_folder_that_changes_is_noticed(split_photos, tmp_path, command, monkeypatch):
    from tools.sources import files
    real = files.ImageFiles._items

    def items(self, *arguments):
        split_photos.save("train/cat/late.png")
        yield from real(self, *arguments)
    monkeypatch.setattr(files.ImageFiles, "_items", items)
    status, _, err = run(command, split_photos.path, tmp_path / "s")
    assert status == 1
    assert "cat: it had 6 images, and now has others" in err
    assert not (tmp_path / "s").exists()
