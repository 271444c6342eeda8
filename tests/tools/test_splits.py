"""Labels to classes, images to splits, and the report of what was left out: by hand and by obvious loops."""

import numpy as np
import pytest

from pipelines.common.errors import DataError, UsageError
from tools.sources.report import FILES, FOLDERS, IMAGES, NAMES, Report
from tools.sources.splits import Part, Vocabulary, assemble, find_split, held_out, is_split
from tools.sources.walk import extension, looks_like_an_image


@pytest.mark.parametrize(("labels", "names", "classes"), [
    (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]), (["2", "0", "2"], ("0", "1", "2"), [2, 0, 2]),
    (["10", "9", "1"], ("1", "9", "10"), [2, 1, 0]), (["3", "1", "2"], ("1", "2", "3"), [2, 0, 1]),
    (["1.0", "0.0", "2."], ("0", "1", "2"), [1, 0, 2]), (["1", "x", "0"], ("0", "1", "x"), [1, 2, 0]),
    ([" cat", "cat ", "", "nan", "-1", "NaN"], ("cat",), [0, 0, -1, -1, -1, -1]), (["7", "7"], ("7",), [0, 0]),
    (["+1", "2"], ("1", "2"), [0, 1]), ([""], (), [-1]),
    (["-1.0", "0.0", "Unlabeled", "1"], ("0", "1"), [-1, 0, -1, 1])])
def test_labels_become_classes(labels, names, classes):
    vocabulary = Vocabulary("here")
    numbers = [vocabulary.number(label) for label in labels]
    found, order = vocabulary.classes()
    assert found == names
    assert [int(order[number]) if number >= 0 else -1 for number in numbers] == classes


@pytest.mark.parametrize("labels", [["0", "-2"], ["-3"], ["0", "1048576"], ["0", "1" * 18]])
def test_numbers_that_are_no_classes(labels):
    vocabulary = Vocabulary("here")
    for label in labels:
        vocabulary.number(label)
    with pytest.raises(DataError, match="here: label "):
        vocabulary.classes()


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_held_out_by_a_loop(fraction):
    labels = np.random.default_rng(0).integers(-1, 6, 200)
    labels[labels == 5] = np.where(np.arange((labels == 5).sum()) == 0, 5, 4)  # class 5 has one image
    expected = set()
    for label in range(6):
        order = [i for i in range(200) if labels[i] == label]
        np.random.RandomState(2).shuffle(order)
        most = len(order) - 1
        expected |= set(order[len(order) - min(most, max(1, round(fraction * len(order)))):])
    held = held_out(labels, fraction)
    assert set(np.flatnonzero(held)) == expected
    assert not held[labels < 0].any()
    assert not held_out(labels, 0).any()


def test_held_out_of_one_class_does_not_depend_on_another():
    small, large = np.array([0] * 10 + [1] * 5), np.array([0] * 10 + [1] * 50)
    assert held_out(small, 0.3)[:10].tolist() == held_out(large, 0.3)[:10].tolist()


def test_names_of_splits():
    names = ["Train", "labeled", "TEST", "val", "dev", "eval", "cats", "validation"]
    assert find_split(names, ("train", "labeled")) == ["Train", "labeled"]
    assert find_split(names, ("test", "eval", "val", "validation")) == ["TEST", "eval", "val", "validation"]
    assert [name for name in names if not is_split(name)] == ["cats"]


@pytest.mark.parametrize(("name", "found"), [
    ("a.JPG", ".jpg"), ("a", ""), ("a.b.Png", ".png"), ("scan 12.5cm", ""), ("2019.03", ""),
    ("a.jpg_large", ".jpg_large"), ("a.", ""), ("a.mp4", ".mp4"), ("a." + "x" * 40, "")])
def test_extensions(name, found):
    assert extension(name) == found


def test_signatures():
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0", b"MM\0*",
                  b"P6 3 3", b"\0\0\0\x1cftypavif", b"BM" + bytes(12) + b"\x28\0\0\0"):
        assert looks_like_an_image(start), start
    for start in (b"", b"BMW is a car, this a text", b"PK\3\4", b"P6", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypheic",
                  b"text"):
        assert not looks_like_an_image(start), start


def test_a_report_stays_small():
    report = Report()
    for i in range(5000):
        report.leave_out(FILES, f".x{i % 3000}", f"a/{i}.x")
        report.leave_out(FILES, ".txt", f"a/{i}.txt")
    found = report.as_dict()["files"]
    assert len(found) == 1001
    assert found[".txt"]["count"] == 5000
    assert len(found[".txt"]["names"]) == NAMES
    assert sum(kind["count"] for kind in found.values()) == 10_000
    (line,) = report.lines()
    assert line.startswith("left out: 10,000 files (.txt 5,000, others ")
    assert len(line) < 300


def test_a_report_in_words():
    report = Report()
    assert (report.lines(), report.as_dict()) == ([], {})
    for i in range(5):
        report.leave_out(FILES, ".avif", f"{i}.avif")
    for i in range(3):
        report.leave_out(FILES, "no extension", str(i))
    report.leave_out(FILES, ".csv", "trainLabels.csv")
    report.leave_out(IMAGES, "val/, since test/ is the test set", count=1200)
    report.leave_out(FOLDERS, "__MACOSX", "train/__MACOSX")
    report.used.add("labels.csv")
    report.leave_out(FILES, ".csv", "labels.csv")
    assert report.lines() == ["left out: 8 files (.avif 5, no extension 3), trainLabels.csv; 1,200 images (val/, since "
                              "test/ is the test set); no images taken from: __MACOSX"]


def part(labels, place="", count=None) -> Part:
    """A part whose images are their numbers."""
    count = len(labels) if count is None else count

    def read(mask):
        yield np.arange(count)[slice(None) if mask is None else mask], None
    return Part(count, None if labels is None else np.array(labels, np.int32), read, place)


def images_of(split) -> list[int]:
    return np.concatenate([images for images, _ in split.batches()]).tolist()


def test_splits_are_put_together():
    train, test = part([0, -1, 1, 0, 1], "train/"), part([1, -1, 0], "test/")
    found = assemble("here", ("a", "b"), train, test, [part(None, "more/", 3)], None, Report())
    assert [(split.name, split.num_images, split.classes) for split in found] == [
        ("train", 4, ("a", "b")), ("unlabeled", 5, None), ("test", 2, ("a", "b"))]
    assert [images_of(split) for split in found] == [[0, 2, 3, 4], [1, 1, 0, 1, 2], [0, 2]]


def test_held_out_images_are_in_no_other_split():
    train = part([0, 1] * 10 + [-1])
    found = {split.name: images_of(split) for split in assemble("here", ("a", "b"), train, None, [], 0.3, Report())}
    assert sorted(found["train"] + found["test"]) == list(range(20))
    assert (len(found["test"]), found["unlabeled"]) == (6, [20])


@pytest.mark.parametrize(("train", "test", "fraction", "error"), [
    ([0, 1], None, None, UsageError), ([0, 1], [0], 0.2, UsageError), ([-1, -1], None, 0.2, UsageError),
    ([0, 0], [0], None, DataError), ([-1, -1], [0], None, DataError)])
def test_what_cannot_be_put_together(train, test, fraction, error):
    with pytest.raises(error, match="here"):
        assemble("here", ("a", "b"), part(train), None if test is None else part(test, "test/"), [], fraction, Report())
