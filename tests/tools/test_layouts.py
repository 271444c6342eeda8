"""The rule by which a folder's layout is understood: what is a class, what is unlabeled, what is the test set."""


import numpy as np
import pytest

from pipelines.shards import ShardSet
from tests.tools.layouts import Photos, classes_of, lines, prepared, run
from tools import prepare, verify


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
