"""Labels in a CSV file: its columns, how its rows name images, and what has no label."""

import csv

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.tools.layouts import Photos, left_out, lines, run
from tools.sources import labels_csv


@pytest.fixture
def kaggle(tmp_path):
    """As Kaggle's CIFAR-10 comes: train/1.png ..., test/1.png ..., trainLabels.csv beside them."""
    photos = Photos(tmp_path / "kaggle")
    for i in range(1, 13):
        photos.save(f"train/{i}.png")
    for i in range(1, 6):
        photos.save(f"test/{i}.png")
    names = ["frog", "truck", "deer"]
    photos.truth = {f"train/{i}.png": names[i % 3] for i in range(1, 13)}
    (photos.path / "trainLabels.csv").write_text("id,label\n" + "".join(f"{i},{names[i % 3]}\n" for i in range(1, 13)))
    return photos


def with_csv(command, photos, tmp_path, *flags, file="trainLabels.csv") -> tuple[int, list[str], str]:
    status, out, err = run(command, photos.path, tmp_path / "s", "--labels-csv", photos.path / file, *flags)
    return status, lines(out), err


def test_kaggle_s_cifar(kaggle, tmp_path, command):
    status, said, err = with_csv(command, kaggle, tmp_path, "--test-fraction", "0.25")
    assert status == 0, err
    assert f"{kaggle.path}: 3 classes: deer 4, frog 4, truck 4" in said
    assert said[-1] == "left out: 5 images (test/, which has no labels)"
    train, test = kaggle.labels(tmp_path / "s" / "train"), kaggle.labels(tmp_path / "s" / "test")
    assert (len(train), len(test), train | test) == (9, 3, kaggle.truth)
    order = sorted(kaggle.truth)  # as text: 1, 10, 11, 12, 2, ...
    assert list(train) == [name for name in order if name in train]
    assert not (tmp_path / "s" / "unlabeled").exists()


def test_without_the_flag_the_file_is_named(kaggle, tmp_path, command):
    status, out, _ = run(command, kaggle.path, tmp_path / "s")
    assert status == 0
    table = kaggle.path / "trainLabels.csv"
    assert lines(out)[0] == f"trainLabels.csv: not read; if it has the labels: --labels-csv {table}"
    assert lines(out)[-1] == "left out: trainLabels.csv; 5 images (test/, which has no class folders)"


def test_rows_without_a_label_and_images_without_a_row_are_unlabeled(kaggle, tmp_path, command):
    text = (kaggle.path / "trainLabels.csv").read_text().splitlines()
    text[1:4] = ["1,", "2,-1", "3, NaN"]
    (kaggle.path / "trainLabels.csv").write_text("\n".join([*text[:-1], "99,frog", "98,deer", ""]))  # 12 has no row
    status, said, err = with_csv(command, kaggle, tmp_path, "--test-fraction", "0")
    assert status == 0, err
    assert f"{kaggle.path / 'trainLabels.csv'}: 3 images without a label in their row, 6 images without a row" in said
    assert kaggle.labels(tmp_path / "s" / "train") == {name: label for name, label in kaggle.truth.items()
                                                       if name not in [f"train/{i}.png" for i in (1, 2, 3, 12)]}
    assert kaggle.names(tmp_path / "s" / "unlabeled") == [f"train/{i}.png" for i in (1, 12, 2, 3)]
    assert ShardSet(tmp_path / "s" / "unlabeled").classes is None
    assert "2 rows (trainLabels.csv: rows of images that are not there)" in said[-1]
    assert left_out(tmp_path / "s" / "train")["rows"] == {
        "trainLabels.csv: rows of images that are not there": {"count": 2, "names": ["99", "98"]}}


@pytest.mark.parametrize(("header", "row", "flags"), [
    ("file_name,label", "train/{}.png,{}", []), ("Filename;Class", "{0}.png;{1}", []), ("path\tcategory", "{}\t{}", []),
    ("breed,id", "{1},{0}", ["--label-column", "breed"]), ("photo,kind", "{},{}", ["--file-column", "photo",
                                                                                    "--label-column", "kind"]),
    ("x,Image,Label", "7,.\\train\\{0}.png,\"{1}\"", []), ("\ufefffile,label", "./train/{}.png,{}", [])])
def test_columns_and_names(kaggle, tmp_path, command, header, row, flags):
    rows = [row.format(i, kaggle.truth[f"train/{i}.png"]) for i in range(1, 13)]
    (kaggle.path / "trainLabels.csv").write_text("\r\n".join([header, *rows]), encoding="utf-8")
    status, _, err = with_csv(command, kaggle, tmp_path, "--test-fraction", "0", *flags)
    assert status == 0, err
    assert kaggle.labels(tmp_path / "s" / "train") == kaggle.truth


def test_one_hot_columns(kaggle, tmp_path, command):
    """As ISIC and Roboflow have them; a row without a 1 is unlabeled."""
    names = ("deer", "frog", "truck")
    rows = [f"{i}," + ",".join("1.0" if kaggle.truth[f"train/{i}.png"] == name and i > 2 else "0.0" for name in names)
            for i in range(1, 13)]
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["image,deer,frog,truck", *rows]))
    status, _, err = with_csv(command, kaggle, tmp_path, "--test-fraction", "0")
    assert status == 0, err
    assert kaggle.labels(tmp_path / "s" / "train") == {name: label for name, label in kaggle.truth.items()
                                                       if name not in ("train/1.png", "train/2.png")}
    assert kaggle.names(tmp_path / "s" / "unlabeled") == ["train/1.png", "train/2.png"]
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["image,deer,frog,truck", *rows, "x,1,1,0"]))
    status, _, err = with_csv(command, kaggle, tmp_path, "--test-fraction", "0", "--force")
    assert (status, "row 14: 2 columns with 1 found, expected one" in err) == (1, True)


def test_a_column_of_splits(kaggle, tmp_path, command):
    splits = {f"train/{i}.png": ("Train", "test", "valid", "unlabeled")[i % 4] for i in range(1, 13)}
    rows = [f"{i},{kaggle.truth[f'train/{i}.png']},{splits[f'train/{i}.png']}" for i in range(1, 13)]
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["id,label,Data Set", *rows]))
    status, said, err = with_csv(command, kaggle, tmp_path)
    assert status == 0, err
    assert "column Data Set has the splits" in said[0]
    for split, names in (("train", ("Train", "unlabeled")), ("test", ("test",))):
        assert kaggle.labels(tmp_path / "s" / split) == {name: label for name, label in kaggle.truth.items()
                                                         if splits[name] in names}
    assert "3 images (val/, since test/ is the test set)" in said[-1]
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["id,label,Data Set", *rows[:-1], "12,frog,7"]))
    status, said, _ = with_csv(command, kaggle, tmp_path, "--test-fraction", "0", "--force")
    assert (status, "column Data Set is not used, since '7' is no split's name" in said[0]) == (0, True)


@pytest.mark.parametrize("prefix", ["/data/upload/3/", "C:\\Users\\me\\photos\\", "https://storage.example/bucket/"])
def test_paths_of_another_machine(kaggle, tmp_path, command, prefix):
    rows = [f"{prefix}{i}.png,{kaggle.truth[f'train/{i}.png']}" for i in range(1, 13)]
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["image,choice", *rows]))
    status, _, err = with_csv(command, kaggle, tmp_path, "--test-fraction", "0", "--label-column", "choice")
    assert status == 0, err
    assert kaggle.labels(tmp_path / "s" / "train") == kaggle.truth
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["image,label", *rows, "other/1.png,frog"]))
    assert with_csv(command, kaggle, tmp_path, "--test-fraction", "0", "--force")[0] == 1


def test_excel_s_utf_16_and_quoted_names(tmp_path, command):
    photos = Photos(tmp_path / "p")
    truth = {}
    for i, name in enumerate(("a, b.png", 'say "x".png', "über.png", "d.png")):
        photos.save(name)
        truth[name] = ("grün", "blau")[i % 2]
    with open(photos.path / "l.csv", "w", encoding="utf-16", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("image", "class"), *truth.items()])
    status, _, err = with_csv(command, photos, tmp_path, "--test-fraction", "0", file="l.csv")
    assert status == 0, err
    assert photos.labels(tmp_path / "s" / "train") == truth
    assert ShardSet(tmp_path / "s" / "train").classes == ("blau", "grün")


def test_numbers_are_sorted_as_numbers_and_test_rows_are_the_test_set(tmp_path, command):
    photos = Photos(tmp_path / "p")
    rows = []
    for split in ("train", "val"):
        for i in range(12):
            photos.save(f"{split}/{i}.png")
            rows.append(f"{split}/{i}.png,{i + 1}")
    photos.add("test", 3)
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    status, out, err = run(command, photos.path, tmp_path / "s", "--labels-csv", tmp_path / "labels.csv")
    assert status == 0, err
    train, test = ShardSet(tmp_path / "s" / "train"), ShardSet(tmp_path / "s" / "test")
    assert train.classes == test.classes == tuple(str(i) for i in range(1, 13))
    assert photos.labels(test.path) == {f"val/{i}.png": str(i + 1) for i in range(12)}
    assert photos.names(tmp_path / "s" / "unlabeled") == [f"test/{i}.png" for i in range(3)]
    assert "unlabeled: 3 images (test/)" in out


@pytest.mark.parametrize(("text", "flags", "status", "words"), [
    ("", [], 1, "empty, expected a header"), ("id,label\n", [], 1, "no rows found"),
    ("a,b\n1,2\n", [], 2, "--file-column: needed; "), ("id,b\n1,2\n", [], 2, "has the columns id, b (its first line)"),
    ("id,label\n1,x\n", ["--label-column", "y"], 2, "--label-column: found 'y', expected one of the columns of"),
    ("id,label\n1,x\n1,y\n", [], 1, "row 3: '1' has another label above"),
    ("id,label\n77,x\n88,y\n", [], 1, "none of its 2 rows names one of the 17 images below"),
    ("label,id\nx\n", [], 1, "row 2 has 1 columns, the header 2"),
    ("id,id,label\n1,1,x\n", [], 2, "--file-column: needed"), ("id,label\n1.png,a,b\n", [], 1, "row 2 has 3 columns"),
    ("id,label\n,x\n", [], 1, "row 2 names no image in column id"),
    ("id,label\n1,\"x\n2,y\n", [], 1, "not a readable CSV"),
    ("id,label\n1,x\n2,0.5\n3,1.5\n", [], 2, "no test set"), ("id,label\n1,0.5\n2,1\n", [], 1, "label '0.5' found"),
    (b"id,label\n1,\xff\xfe\n", [], 1, "not in UTF-8"), ("id,label\n1,x\n2,x\n", [], 1, "a single class found, x"),
    ("id,label\n" + "1" * 70000 + ",x\n", [], 1, "not a readable CSV file (field larger"),
    ("id,label\n1,x\n2,y\n", ["--unlabeled"], 2, "choose one"), (None, [], 1, "gone.csv")])
def test_files_that_are_refused(kaggle, tmp_path, command, text, flags, status, words):
    file = "gone.csv"
    if text is not None:
        file = "trainLabels.csv"
        (kaggle.path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    found, out, err = with_csv(command, kaggle, tmp_path, *flags, file=file)
    assert (found, out, len(lines(err))) == (status, [], 1), err
    assert words in err
    assert not (tmp_path / "s").exists()


def test_a_class_of_test_images_alone_is_refused(kaggle, tmp_path, command):
    rows = [f"train/{i}.png,{'xy'[i % 2]}" for i in range(1, 13)]
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["file,label", *rows, "test/1.png,z", "gone.png,w"]))
    status, _, err = with_csv(command, kaggle, tmp_path)
    assert (status, "class 'z' of test images is none of the training images, which have x, y" in err) == (1, True)
    (kaggle.path / "trainLabels.csv").write_text("\n".join(["file,label", *rows, "test/1.png,x", "gone.png,w"]))
    assert with_csv(command, kaggle, tmp_path)[0] == 0
    assert ShardSet(tmp_path / "s" / "train").classes == ("x", "y")


@pytest.mark.parametrize(("names", "row"), [(("a.png", "a.jpg"), "a"), (("train/a.png", "labeled/a.png"), "a.png")])
def test_a_row_that_names_two_images(tmp_path, command, names, row):
    photos = Photos(tmp_path / "p")
    for name in (*names, "train/b.png", "train/c.png"):
        photos.save(name)
    (photos.path / "l.csv").write_text(f"file,label\n{row},cat\nb,dog\nc,cat\n")
    status, _, err = with_csv(command, photos, tmp_path, "--test-fraction", "0", file="l.csv")
    if names[0] == "a.png":  # by their names, else by their paths from train/
        assert (status, f"'{row}' names several images" in err) == (1, True)
    else:
        assert status == 0
        assert photos.labels(tmp_path / "s" / "train") == {"train/a.png": "cat", "train/b.png": "dog",
                                                           "train/c.png": "cat"}


def test_files_that_are_renamed_meanwhile_are_noticed(kaggle, tmp_path):
    source = labels_csv.read(kaggle.path, 8, kaggle.path / "trainLabels.csv", test_fraction=0.3)
    (kaggle.path / "train" / "1.png").rename(kaggle.path / "train" / "99.png")
    for split in source.splits:
        with pytest.raises(DataError, match="it had 17 images, and now has others"):
            list(split.batches())


def test_one_name_in_two_folders_is_not_enough(tmp_path, command):
    photos = Photos(tmp_path / "p")
    photos.add("a", 3)
    photos.add("b", 3)
    (photos.path / "l.csv").write_text("id,label\n0,x\n1,y\n2,x\n")
    status, _, err = with_csv(command, photos, tmp_path, file="l.csv")
    assert (status, "names several images; name them by their paths" in err) == (1, True)


def test_columns_without_the_file(kaggle, tmp_path, command):
    status, _, err = run(command, kaggle.path, tmp_path / "s", "--file-column", "id")
    assert (status, "--file-column: found without --labels-csv" in err) == (2, True)


def test_many_rows_are_read_in_a_moment(tmp_path, frugal):
    from tools.sources.label_table import LabelTable
    labels = np.arange(200_000) % 1000
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    with frugal(64):
        rows = LabelTable(tmp_path / "l.csv", None, None)
    _, order = rows.vocabulary.classes()
    assert np.array_equal(order[list(rows.labels.values())], labels)
