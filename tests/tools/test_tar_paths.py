"""Which tars a source is, and of which split: folders, names and patterns."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tests.tools.test_webdataset import found, read, run, samples, write_tar
from tools.sources import webdataset
from tools.sources.report import Report
from tools.sources.tar_paths import expanded, find_tars


def test_val_as_part_of_a_word_is_no_test_set(tmp_path, command):
    for name in ("beach-000.tar", "carnival-000.tar", "latest.tar"):
        write_tar(tmp_path / "w" / name, samples(random_images(2, 8)))
    assert run(command, tmp_path / "w", tmp_path)[0] == 0
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["train"]
    assert len(ShardSet(tmp_path / "s" / "train")) == 6


@pytest.mark.parametrize(("train", "test"), [
    ("Train/0.tar", "TEST/0.tar"), ("training/0.tgz", "eval/0.TAR"), ("labeled/0.tar.bz2", "Validation/0.tbz2"),
    ("0.tar.xz", "dev/0.txz"), ("x-TRAIN-0.tar", "x-Testing-0.tar"), ("a.tar", "valid_0.tar.gz"),
    ("train/test-0.tar", "test/train-0.tar"), ("data-0.tar", "data-evaluation.tar")])
def test_which_tars_are_what(tmp_path, train, test):
    images = random_images(4, 8)
    write_tar(tmp_path / "w" / train, samples(images[:2], [0, 1]))
    write_tar(tmp_path / "w" / test, samples(images[2:], [1, 0]))
    splits = found(read(tmp_path / "w"))
    assert np.array_equal(splits["train"][0], images[:2])
    assert np.array_equal(splits["test"][0], images[2:])
    assert splits["test"][1] == [1, 0]


@pytest.mark.parametrize("names", ["{}/0.tar", "x-{}-0.tar"])
def test_test_sets_and_unlabeled_tars(tmp_path, names):
    images = random_images(10, 8)
    path = tmp_path / "w"

    def write(**labels) -> None:
        for start, split in zip((0, 2, 4, 6), ("train", "test", "val", "unlabeled"), strict=True):
            (path / names.format(split)).unlink(missing_ok=True)
            if split in labels:
                write_tar(path / names.format(split), samples(images[start:start + 2], labels[split]))

    def place(split: str) -> str:
        return f"{split}/" if "/" in names else names.format(split)
    write(train=[0, 1], test=[1, 0], val=[0, 5], unlabeled=[7, 8])
    source = read(path)
    splits = found(source)
    assert (splits["train"][1:], splits["test"][1:]) == (([0, 1], ("0", "1")), ([1, 0], ("0", "1")))
    assert np.array_equal(splits["test"][0], images[2:4])
    assert np.array_equal(splits["unlabeled"][0], images[6:8])
    assert source.report.as_dict()["images"] == {f"{place('val')}, since {place('test')} is the test set": {"count": 2}}
    write(train=[0, 1], test=None, val=[1, 0])
    splits = found(read(path))
    assert np.array_equal(splits["test"][0], images[4:6])
    assert np.array_equal(splits["unlabeled"][0], images[2:4])
    write(train=[0, 1], test=None)
    source = read(path, test_fraction=0)
    assert [split.name for split in source.splits] == ["train"]
    assert source.report.as_dict()["images"] == {f"{place('test')}, which has no labels": {"count": 2}}
    write(train=[0, 1], test=None, val=None)
    assert set(read(path, test_fraction=0).report.as_dict()["images"]) == {
        f"{place(split)}, which has no labels" for split in ("test", "val")}
    write(train=None, test=[0, 1])
    with pytest.raises(DataError, match=r"labels found in .* only"):
        read(path)
    write(train=[0, 1], test=[0, 1], unlabeled=None)
    splits = found(read(path, unlabeled=True))
    assert list(splits) == ["train"]
    expected = {image.tobytes() for image in images[[0, 1, 2, 3, 6, 7]]}
    assert {image.tobytes() for image in splits["train"][0]} == expected
    write(unlabeled=[0, 1])
    if "/" in names:
        assert np.array_equal(found(read(path))["train"][0], images[6:8])
    write(test=[0, 1], val=[0, 1])
    with pytest.raises(DataError, match="no tars of training samples found, but of test"):
        read(path)


def test_what_lies_beside_tars_is_said(tmp_path):
    for name in ("train/0.tar", "train/deep/1.tar", "other/2.tar", "train/._0.tar", ".cache/3.tar"):
        write_tar(tmp_path / "w" / name, samples(random_images(2, 8)))
    for name in ("index.json", "train/0.idx", "train/1.idx", "README"):
        (tmp_path / "w" / name).write_text("x")
    source = read(tmp_path / "w")
    assert source.splits[0].num_images == 2
    found = source.report.as_dict()
    assert {kind: one["names"] for kind, one in found["folders"].items()} == {
        "other/": ["other"], "train/deep/": ["train/deep"], ".cache": [".cache"]}
    found["files"][".json"]["names"].remove("index.json")
    assert {kind: one["count"] for kind, one in found["files"].items()} == {
        ".json": 3, ".idx": 2, "no extension": 1, "._*": 1}


@pytest.fixture
def thirteen(tmp_path) -> tuple[Path, np.ndarray]:
    """d-train-000.tar to d-train-012.tar with an image each, its number the label, and d-val-000.tar."""
    images = random_images(14, 8)
    for i in range(13):
        write_tar(tmp_path / "w" / f"d-train-{i:03}.tar", samples(images[i:i + 1], [i]))
    write_tar(tmp_path / "w" / "d-val-000.tar", samples(images[13:], [4]))
    (tmp_path / "w" / "d-train-000.txt").write_text("x")
    return tmp_path / "w", images


@pytest.mark.parametrize(("patterns", "numbers", "test"), [
    (["d-train-{000..012}.tar"], range(13), False), (["d-train-{012..000}.tar", "d-val-*.tar"], range(13), True),
    (["d-train-*.tar"], range(13), False), (["d-train-*"], range(13), False), (["*.tar"], range(13), True),
    (["d-train-00[0-3].tar"], range(4), False), (["d-train-01?.tar"], range(10, 13), False),
    (["d-train-{000,005}.tar", "d-train-{005..006}.tar"], (0, 5, 6), False),
    (["d-{train-0{00..02},val-*}.tar"], range(3), True), (["d-train-0{0,1}{0..2}.tar"], (0, 1, 2, 10, 11, 12), False),
    (["d-train-001.tar", "d-train-000.tar"], (0, 1), False)])
def test_patterns(thirteen, patterns, numbers, test):
    folder, images = thirteen
    paths = [folder / pattern for pattern in patterns]
    tars = find_tars(paths, Report())
    assert [int(tar.path.name[8:11]) for tar in tars["train"]] == list(numbers)
    assert ("val" in tars) == test
    source = webdataset.read(paths, 8, unlabeled=True)
    expected = images[[*numbers, *([13] if test else [])]]
    assert np.array_equal(found(source)["train"][0], expected)
    names = [str(path.resolve()) for path in paths]
    assert source.origin["path"] == (names if len(names) > 1 else names[0])


@pytest.mark.parametrize(("pattern", "message"), [
    ("d-train-{000..013}.tar", "there is no .*d-train-013.tar"), ("d-train-{00..02}.tar", "there is no .*train-00.tar"),
    ("d-train-{0..999999999999999}.tar", "there is no .*d-train-0.tar"), ("x*.tar", r"no tars found that it matches"),
    ("d-{train,test}-*.tar", r"no tars found that .*d-test-\*.tar matches"), ("*.txt", "no tars found that it matches"),
    ("d-train-{a..b}.tar", "there is no .*a..b"), ("none.tar", "there is no such file or folder")])
def test_patterns_that_match_nothing(thirteen, pattern, message):
    folder, _ = thirteen
    with pytest.raises(DataError, match=message):
        find_tars([folder / pattern], Report())


def test_braces_as_a_shell_spells_them_out():
    for pattern, words in {"a": "a", "{1..3}": "1 2 3", "{08..11}": "08 09 10 11", "{1..03}": "01 02 03",
                           "{0..1}": "0 1", "{a,b}{1..2}": "a1 a2 b1 b2", "{a}": "{a}", "{a,}x": "ax x",
                           "{1..2": "{1..2", "{x,y{1,2}}": "x y1 x y2"}.items():
        assert list(expanded(pattern)) == words.split(), pattern


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    write_tar(tmp_path / "x[1]{0..1}.tar", samples(random_images(2, 8)))
    assert read(tmp_path / "x[1]{0..1}.tar").splits[0].num_images == 2


def test_folders_and_tars_given_side_by_side(tmp_path):
    images = random_images(6, 8)
    for start, name in ((0, "train/0.tar"), (2, "test/0.tar"), (4, "unlabeled/0.tar")):
        write_tar(tmp_path / name, samples(images[start:start + 2], [0, 1]))
    folders = [tmp_path / name for name in ("test", "train", "unlabeled")]
    for paths in (folders, [tmp_path / "*"], [tmp_path / "*" / "0.tar"], [tmp_path, *folders],
                  [tmp_path / "{train,test,unlabeled}" / "*.tar"]):
        splits = found(webdataset.read(paths, 8))
        for start, name in ((0, "train"), (2, "test"), (4, "unlabeled")):
            assert np.array_equal(splits[name][0], images[start:start + 2])
    for alone in (folders[0], tmp_path / "test" / "0.tar", tmp_path / "te*"):
        assert np.array_equal(found(read(alone, test_fraction=0))["train"][0], images[2:4])
