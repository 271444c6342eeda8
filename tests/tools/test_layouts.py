"""The rule by which a folder's layout is understood: what is a class, what is unlabeled, what is the test set."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.tools.layouts import SIZE, Photos, left_out, lines, run
from tools import prepare, verify
from tools.sources import folder as folder_source


@pytest.fixture
def photos(tmp_path):
    """An empty folder."""
    (tmp_path / "photos").mkdir()
    return Photos(tmp_path / "photos")


@pytest.fixture
def split_photos(photos):
    """train/ and test/ with 6 and 2 images of each of three classes."""
    for name in ("cat", "dog", "owl"):
        photos.add(f"train/{name}", 6)
        photos.add(f"test/{name}", 2)
    return photos


def classes_of(names) -> dict[str, str]:
    """By the name of the folder two above, in these layouts the class."""
    return {name: name.split("/")[1] for name in names}


def prepared(command, photos, tmp_path, *flags) -> list[str]:
    """Prepare what has to succeed; its output."""
    status, out, err = run(command, photos.path, tmp_path / "s", *flags)
    assert status == 0, err
    return lines(out)


@pytest.mark.parametrize("place", ["train/unlabeled", "unlabeled", "Unlabeled", "train/unlabelled/2019/may"])
def test_unlabeled_images_beside_labeled_ones(split_photos, tmp_path, command, place):
    more = split_photos.add(place, 5)
    said = prepared(command, split_photos, tmp_path)
    assert f"{split_photos.path}: 3 classes in train/: cat 6, dog 6, owl 6" in said
    assert any(line.startswith("unlabeled: 5 images (") for line in said)
    for split in ("train", "test"):
        names = sorted(name for name in split_photos.of if name.startswith(f"{split}/") and name not in more)
        assert split_photos.labels(tmp_path / "s" / split) == classes_of(names)
    unlabeled = ShardSet(tmp_path / "s" / "unlabeled")
    assert unlabeled.classes is None
    assert unlabeled.manifest.split == "unlabeled"
    assert split_photos.names(unlabeled.path) == more
    assert command(verify.main, tmp_path / "s")[0] == 0


def test_images_in_subfolders_belong_to_the_class(split_photos, tmp_path, command):
    split_photos.add("train/cat/session2", 4)
    split_photos.add("train/cat/1/deep/deeper", 3)
    prepared(command, split_photos, tmp_path)
    names = sorted((name for name in split_photos.of if name.startswith("train/")), key=lambda name: name.split("/"))
    assert split_photos.names(tmp_path / "s" / "train") == names  # in the order of their names, folder by folder
    assert split_photos.labels(tmp_path / "s" / "train") == classes_of(names)


def test_images_directly_in_the_root_of_the_classes_are_unlabeled(split_photos, tmp_path, command):
    direct = split_photos.add("train", 4)
    split_photos.add(".", 2)
    said = prepared(command, split_photos, tmp_path)
    assert "unlabeled: 4 images (directly in train/)" in said
    assert split_photos.names(tmp_path / "s" / "unlabeled") == direct
    assert said[-1] == "left out: 2 images (directly in photos/)"


def test_class_folders_alone(photos, tmp_path, command):
    for name, count in (("cat", 7), ("dog", 5)):
        photos.add(name, count)
    direct = photos.add(".", 3)
    status, out, err = run(command, photos.path, tmp_path / "s")
    assert (status, out, len(lines(err))) == (2, "", 1)
    assert "no test set found beside 12 labeled images (cat 7, dog 5; if these are no classes: --unlabeled)" in err
    assert "--test-fraction 0.2" in err
    said = prepared(command, photos, tmp_path, "--test-fraction", "0")
    assert said[0] == f"{photos.path}: 2 classes: cat 7, dog 5; if these are no classes: --unlabeled"
    assert "test set: none" in said
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["train", "unlabeled"]
    assert len(ShardSet(tmp_path / "s" / "train")) == 12
    assert photos.names(tmp_path / "s" / "unlabeled") == direct


def test_unlabeled_takes_every_image(split_photos, tmp_path, command):
    split_photos.add("unlabeled/2019", 3)
    assert f"{split_photos.path}: 27 images, all unlabeled" in prepared(command, split_photos, tmp_path, "--unlabeled")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["train"]
    assert ShardSet(tmp_path / "s" / "train").classes is None
    assert sorted(split_photos.names(tmp_path / "s" / "train")) == sorted(split_photos.of)


def test_classes_are_named(photos, tmp_path, command):
    for name in ("bus", "car", "train", "misc", "animals/cat"):
        photos.add(name, 3)
    status, out, _ = run(command, photos.path, tmp_path / "flat")
    assert status == 0
    assert f"{photos.path}: 3 images, all unlabeled" in out  # train/ is a class here, which the hint says
    assert "if train is a class, too: --classes bus car misc train" in out
    said = prepared(command, photos, tmp_path, "--classes", "bus", "train", "car", "animals/cat", "--test-fraction",
                    "0.3")
    assert f"{photos.path}: 4 classes: animals/cat 3, bus 3, car 3, train 3" in said
    assert said[-1] == "left out: 3 images (misc/)"
    found = ShardSet(tmp_path / "s" / "train")
    assert (found.classes, np.bincount(found.labels).tolist()) == (("animals/cat", "bus", "car", "train"), [2] * 4)
    for wrong, words in ((["bus", "ship"], "ship, which is no folder in"), (["bus", "../photos"], "../photos, which"),
                         (["bus", "bus/"], "found bus twice"), (["bus", "train", "--unlabeled"], "choose one")):
        status, _, err = run(command, photos.path, tmp_path / "x", "--classes", *wrong)
        assert (status, words in err) == (2, True), err


@pytest.mark.parametrize(("layout", "test", "unlabeled", "words"), [
    ({"test/cat": 2, "test/dog": 1, "val/cat": 3}, ["test/cat/0.png", "test/cat/1.png", "test/dog/0.png"], [],
     "left out: 3 images (val/, since test/ is the test set)"),
    ({"test": 4, "val/cat": 1, "val/dog": 1}, ["val/cat/0.png", "val/dog/0.png"], [f"test/{i}.png" for i in range(4)],
     None),
    ({"validation/cat": 1, "dev/dog": 2}, ["validation/cat/0.png"], [],
     "left out: 2 images (dev/, since validation/ is the test set)"),
    ({"Eval/cat": 1}, ["Eval/cat/0.png"], [], None),
    ({"test/cat": 1, "test": 2, "test/odd/.x": 0}, ["test/cat/0.png"], [],
     "left out: 2 images (directly in test/); no images taken from: .x, odd")])
def test_which_folder_is_the_test_set(photos, tmp_path, command, layout, test, unlabeled, words):
    for name in ("train/cat", "train/dog"):
        photos.add(name, 3)
    for folder, count in layout.items():
        photos.add(folder, count)
        (photos.path / folder).mkdir(exist_ok=True, parents=True)
    said = prepared(command, photos, tmp_path)
    assert photos.labels(tmp_path / "s" / "test") == classes_of(test)
    assert (photos.names(tmp_path / "s" / "unlabeled") if unlabeled else []) == unlabeled
    assert (tmp_path / "s" / "unlabeled").exists() == bool(unlabeled)
    assert [line for line in said if line.startswith("left out")] == ([words] if words else [])


def test_a_test_folder_without_classes_is_none(photos, tmp_path, command):
    for name in ("train/cat", "train/dog", "test"):
        photos.add(name, 3)
    status, _, err = run(command, photos.path, tmp_path / "s")
    assert status == 2
    assert "left out: 3 images (test/, which has no class folders)" in err
    assert prepared(command, photos, tmp_path, "--test-fraction", "0.4")[-1] == \
        "left out: 3 images (test/, which has no class folders)"


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


@pytest.mark.parametrize(("layout", "words"), [
    ({"mine/cat": 3, "mine/dog": 3},
     "a single class found, mine (6 images), expected two or more; if its folders (cat, dog) are the classes: --source "
     "{}/mine; if its images are unlabeled: --unlabeled"),
    ({"train/cat": 3, "test/cat": 2}, "a single class found, cat (3 images)"),
    ({"camera/2020": 3, "camera": 1}, "a single class found, camera (4 images)"),
    ({"train/cat": 3, "train/dog": 2, "test/Cat": 1}, "test/Cat: class not found among the training images, which have "
                                                      "cat, dog"),
    ({}, "no images found, expected train/<class>/ folders"), ({"train": 0}, "no images found, expected"),
    ({"test/cat": 3}, "no images found, expected")])
def test_layouts_that_are_refused(photos, tmp_path, command, layout, words):
    for folder, count in layout.items():
        (photos.path / folder).mkdir(parents=True, exist_ok=True)
        photos.add(folder, count)
    status, out, err = run(command, photos.path, tmp_path / "s")
    assert (status, out, len(lines(err))) == (1, "", 1), err
    assert words.format(photos.path) in err
    assert not (tmp_path / "s").exists()


def test_only_unlabeled_images_are_a_training_set_alone(photos, tmp_path, command):
    for folder in ("unlabeled/a", "unlabeled", "."):
        photos.add(folder, 2)
    prepared(command, photos, tmp_path)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["train"]
    assert sorted(photos.names(tmp_path / "s" / "train")) == sorted(photos.of)
    status, _, err = run(command, photos.path, tmp_path / "x", "--test-fraction", "0.2")
    assert (status, "has no labeled images to hold out" in err) == (2, True)


def test_a_held_out_test_set(photos, tmp_path, command):
    """Of RandomState(2)'s shuffle of each class's files in the order of their names, the last."""
    for name, count in (("cat", 10), ("dog", 13), ("owl", 2), ("yak", 1)):
        photos.add(name, count)
    held = []
    for name, count in (("cat", 2), ("dog", 3), ("owl", 1), ("yak", 0)):  # round(0.2·n), at least one, leaving one
        names = sorted(path.name for path in (photos.path / name).iterdir())
        order = list(range(len(names)))
        np.random.RandomState(2).shuffle(order)
        held += sorted(f"{name}/{names[i]}" for i in order[len(order) - count:])
    said = prepared(command, photos, tmp_path, "--test-fraction", "0.2")
    assert "test set: 6 images held out, 0.2 of each class, one at least" in said
    assert photos.names(tmp_path / "s" / "test") == held
    labels = photos.labels(tmp_path / "s" / "train") | photos.labels(tmp_path / "s" / "test")
    assert labels == {name: name.split("/")[0] for name in photos.of}
    assert ShardSet(tmp_path / "s" / "train").classes == ShardSet(tmp_path / "s" / "test").classes


def test_a_test_set_is_held_out_only_where_there_is_none(split_photos, tmp_path, command):
    status, _, err = run(command, split_photos.path, tmp_path / "s", "--test-fraction", "0.2")
    assert (status, "has a test set, test/; leave it out" in err) == (2, True)
    for wrong in ("1", "-0.1", "a fifth"):
        status, _, err = run(command, split_photos.path, tmp_path / "s", "--test-fraction", wrong)
        assert (status, "from 0 to below 1" in err) == (2, True)
    assert run(command, split_photos.path, tmp_path / "s", "--test-fraction", "0")[0] == 0


def test_force_replaces_an_unlabeled_set_too(split_photos, tmp_path, command):
    split_photos.add("unlabeled", 3)
    prepared(command, split_photos, tmp_path)
    for file in (split_photos.path / "unlabeled").iterdir():
        file.unlink()
    said = prepared(command, split_photos, tmp_path, "--force")
    assert f"{tmp_path / 's' / 'unlabeled'}: removed, since the source has no such split" in said
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["test", "train"]


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


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("seg_train", "seg_test", "seg_pred"),
                                   ("train_images", "test1")])
def test_folders_that_look_like_splits_are_no_classes(photos, tmp_path, command, names):
    for name in names:
        photos.add(f"{name}/cat", 2)
    status, _, err = run(command, photos.path, tmp_path / "s", "--test-fraction", "0.2")
    assert status == 2
    assert "look like splits, not like classes; rename them to train, test or unlabeled" in err
    assert run(command, photos.path, tmp_path / "s", "--test-fraction", "0.2", "--classes", *names)[0] == 0


@pytest.mark.parametrize("name", ["unlabeled_images", "Unlabelled photos", "cam2-unlabeled"])
def test_a_name_with_the_word_unlabeled_is_no_class(split_photos, tmp_path, command, name):
    more = split_photos.add(name, 3)
    prepared(command, split_photos, tmp_path)
    assert split_photos.names(tmp_path / "s" / "unlabeled") == more


def test_doubts_about_the_classes_are_said(photos, tmp_path, command):
    for name in ("fold0/cat", "fold0/dog", "fold1/cat", "fold1/dog"):
        photos.add(name, 3)
    assert "each of fold0, fold1 has the folders cat, dog; if those are the classes, move them up" in \
        prepared(command, photos, tmp_path, "--test-fraction", "0")
    inverted = Photos(tmp_path / "inverted")
    for name in ("cat/train", "cat/test", "dog/train"):
        inverted.add(name, 3)
    assert "cat/test, cat/train, dog/train: named as splits, but inside classes, whose images they are here" in \
        prepared(command, inverted, tmp_path, "--test-fraction", "0", "--force")
    case = Photos(tmp_path / "case")
    for name in ("Cat", "cat", "dog", "Ka\u0308fer", "K\u00e4fer"):
        case.add(name, 3)
    said = prepared(command, case, tmp_path, "--test-fraction", "0", "--force")
    assert sum("differ by case, spaces or the form of letters only" in line for line in said) == 2


def test_classes_below_unlabeled_are_taken_once(photos, tmp_path, command):
    for name in ("unlabeled/cat", "unlabeled/dog"):
        photos.add(name, 3)
    prepared(command, photos, tmp_path, "--classes", "unlabeled/cat", "unlabeled/dog", "--test-fraction", "0")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["train"]
    assert photos.names(tmp_path / "s" / "train") == sorted(photos.of)
    status, _, err = run(command, photos.path, tmp_path / "x", "--classes", "unlabeled", "unlabeled/cat")
    assert (status, "found unlabeled/cat twice, or inside another class" in err) == (2, True)


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


@pytest.mark.parametrize(("layout", "flags", "test", "unlabeled", "words"), [
    ({"test/images": 3}, ["--test-fraction", "0"], None, None, "3 images (test/, which has no class folders)"),
    ({"test/images": 3, "val/cat": 1}, [], 1, 3, None),
    ({"val": 2}, ["--test-fraction", "0"], None, None, "2 images (val/, which"),
    ({"test/cat": 1, "test/bird": 2}, ["--classes", "cat", "dog"], 1, None, "2 images (test/bird/)")])
def test_test_sets_of_other_forms(photos, tmp_path, command, layout, flags, test, unlabeled, words):
    for name in ("train/cat", "train/dog"):
        photos.add(name, 3)
    for name, count in layout.items():
        photos.add(name, count)
    said = prepared(command, photos, tmp_path, *flags)
    for split, count in (("test", test), ("unlabeled", unlabeled)):
        assert (len(ShardSet(tmp_path / "s" / split)) if (tmp_path / "s" / split).exists() else None) == count
    assert words is None or words in said[-1]


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


@pytest.mark.parametrize(("file", "name"), [("wnids.txt", "tinyimagenet"), ("train_X.bin", "stl10"),
                                            ("data_batch_1", "cifar10"), ("train_32x32.mat", "svhn")])
def test_known_datasets_are_named(photos, tmp_path, command, file, name):
    (photos.path / file).write_bytes(b"")
    status, _, err = run(command, photos.path, tmp_path / "s")
    assert (status, f"so this is {name}: python -m tools.prepare {name} reads it" in err) == (2, True)
    status, _, err = command(prepare.main, "numpy", "--source", photos.path, "--out", tmp_path / "s")
    assert (status, f"so this is {name}: python -m tools.prepare {name} reads it" in err) == (2, True)


def test_an_archive_is_to_be_unpacked(tmp_path, command):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    status, _, err = run(command, tmp_path / "photos.zip", tmp_path / "s")
    assert (status, "not a folder, but a file; if it is an archive, unpack it first" in err) == (1, True)


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
