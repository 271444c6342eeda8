"""Labels of WebDataset samples: in cls, json and txt; and captions, which are none."""

import json

import numpy as np
import pytest

from pipelines.common.errors import DataError, UsageError
from tests.conftest import random_images
from tests.tools.test_webdataset import IMAGE, found, labeled, left_out, png, read, run, write_tar
from tools.sources import sample_labels

NAMES = ["cat", "dog", "owl"]


@pytest.mark.parametrize(("kind", "label", "classes"), [
    ("json", lambda i: json.dumps({"x": [1], "label": i % 3}), ("0", "1", "2")),
    ("json", lambda i: json.dumps({"label": None, "category": NAMES[i % 3]}), tuple(NAMES)),
    ("json", lambda i: str(i % 3), ("0", "1", "2")), ("json", lambda i: json.dumps(NAMES[i % 3]), tuple(NAMES)),
    ("JSON", lambda i: json.dumps({"target": i % 3 * 1.0}), ("0", "1", "2")),
    ("txt", lambda i: NAMES[i % 3], tuple(NAMES)), ("txt", lambda i: f"\ufeff{i % 3}\n", ("0", "1", "2")),
    ("CLS", lambda i: str(i % 3), ("0", "1", "2")), ("cls", lambda i: f"{NAMES[i % 3]}\n", tuple(NAMES)),
    ("cls", lambda i: str(i % 3 + 5), ("5", "6", "7"))])
def test_labels_of_every_kind(tmp_path, kind, label, classes):
    """Those of the field's reports: in json, txt or CLS, or names."""
    images = random_images(24, 8)
    for split, start in (("train", 0), ("val", 12)):
        labels = [label(i).encode() for i in range(start, start + 12)]
        write_tar(tmp_path / f"data-{split}-000.tar", labeled(images[start:start + 12], labels, kind))
    source = read(tmp_path)
    splits = found(source)
    assert list(splits) == ["train", "test"]
    for split, start in (("train", 0), ("test", 12)):
        assert np.array_equal(splits[split][0], images[start:start + 12])
        assert splits[split][1:] == ([i % 3 for i in range(12)], classes)
    assert source.report.as_dict() == {}


def test_samples_without_a_label_are_unlabeled(tmp_path):
    images = random_images(8, 8)
    labels = [b"0", b"-1", b"1", b"", b"0", b"1"]
    write_tar(tmp_path / "x.tar", labeled(images[:6], labels, "cls") + labeled(images[6:], [b"", b""], "xyz", 6))
    source = read(tmp_path / "x.tar", test_fraction=0.5)
    splits = found(source)
    assert np.array_equal(splits["unlabeled"][0], images[[1, 3, 6, 7]])
    assert sorted(splits["train"][1] + splits["test"][1]) == [0, 0, 1, 1]
    together = np.concatenate([splits["train"][0], splits["test"][0]])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in images[[0, 2, 4, 5]]}
    held = [next(i for i in range(8) if np.array_equal(images[i], image)) for image in splits["test"][0]]
    assert [int(labels[i]) for i in held] == splits["test"][1] == [0, 1]
    assert source.origin["test_fraction"] == 0.5
    assert left_out(source) == {".xyz": 2}


@pytest.mark.parametrize(("key", "content", "classes"), [
    ("annotation.class", {"annotation": {"class": "b"}, "label": 1}, ("a", "b")),
    ("a.b", {"a.b": "b", "a": {"b": "c"}}, ("a", "b")), ("species", {"species": "b"}, ("a", "b")),
    ("flag", {"flag": True}, ("a", "true"))])
def test_a_field_of_the_json(tmp_path, key, content, classes):
    inner = {"annotation": {"class": "a"}} if key == "annotation.class" else {key: "a"}
    labels = [json.dumps(one).encode() for one in (content, inner, {"other": 1})]
    members = labeled(random_images(3, 8), labels, "json")
    write_tar(tmp_path / "x.tar", [*members[:4], ("001.cls", b"7"), *members[4:]])
    source = read(tmp_path / "x.tar", label_key=key, test_fraction=0)
    splits = found(source)
    assert splits["train"][1:] == ([1, 0], classes)
    assert len(splits["unlabeled"][0]) == 1
    assert source.origin["label_key"] == key
    assert left_out(source) == {".json": 1}


@pytest.mark.parametrize(("members", "options", "error", "message"), [
    ({"json": b'{"a": [1]}'}, {"label_key": "a"}, DataError, "x.tar:0.json: a list found as 'a', expected a number"),
    ({"json": b'{"a": {"b": 1}}'}, {"label_key": "a"}, DataError, "an object found as 'a'"),
    ({"json": b'{"a": 1, "b": 2}'}, {"label_key": "c"}, UsageError, "found 'c', but no sample in .* has a label there; "
                                                                    ".*x.tar:0.json has the fields a, b"),
    ({"json": b'{"a": 1}'}, {"label_key": "cls"}, UsageError, "found 'cls', but no sample in .*x.tar has a label"),
    ({"cls": b"1"}, {"label_key": "cls", "unlabeled": True}, UsageError, "--label-key: found 'cls' with --unlabeled"),
    ({"cls": b"1"}, {"test_fraction": 0.5, "unlabeled": True}, UsageError, "no labeled images to hold out")])
def test_wrong_keys(tmp_path, members, options, error, message):
    write_tar(tmp_path / "x.tar", [("0.png", IMAGE), *((f"0.{kind}", content) for kind, content in members.items())])
    with pytest.raises(error, match=message):
        read(tmp_path / "x.tar", **options)


def test_labels_of_two_kinds_are_not_mixed(tmp_path):
    members = [("0.png", IMAGE), ("0.cls", b"1"), ("1.png", IMAGE), ("1.txt", b"a text"), ("2.png", IMAGE),
               ("2.cls", b"0"), ("2.json", b'{"label": 5}'), ("3.png", IMAGE), ("3.json", b'{"class": 6}')]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UsageError, match=r"label of .*x.tar:0.cls is from the cls, that of .*x.tar:1.txt from the txt"):
        read(tmp_path / "x.tar", test_fraction=0)
    source = read(tmp_path / "x.tar", label_key="CLS", test_fraction=0)
    assert found(source)["train"][1:] == ([1, 0], ("0", "1"))
    assert left_out(source) == {".txt": 1, ".json": 2}
    write_tar(tmp_path / "x.tar", [members[4], *members[6:]])
    with pytest.raises(UsageError, match=r"from 'label' of the json, that .* from 'class' of the json; --label-key "
                                         r"label or --label-key class takes one"):
        read(tmp_path / "x.tar", test_fraction=0)


def test_json_without_a_known_field_says_which_it_has(tmp_path, command):
    write_tar(tmp_path / "x.tar", labeled(random_images(2, 8), [b'{"kind": 1, "width": 8}'] * 2, "json"))
    status, out, _ = run(command, tmp_path / "x.tar", tmp_path)
    assert status == 0
    assert "x.tar:000.json has the fields kind, width: --label-key names the one that is the label" in out
    assert "left out: 2 files (.json 2)" in out


@pytest.mark.parametrize("text", ["a cat on mat {}", "line\n{}", "x" * 2000 + "{}"])
def test_captions_are_no_labels(tmp_path, text, monkeypatch):
    """As img2dataset writes them: a jpg, a txt with its caption, a json about the download."""
    images = random_images(40, 8)
    members = [member for i, image in enumerate(images) for member in (
        (f"{i}.png", png(image)), (f"{i}.txt", text.format(i).encode()),
        (f"{i}.json", b'{"caption": "x", "status": "success"}'))]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UsageError, match="captions, which are no labels; --unlabeled takes"):
        read(tmp_path / "x.tar", test_fraction=0)
    source = read(tmp_path / "x.tar", unlabeled=True)
    assert np.array_equal(found(source)["train"][0], images)
    assert left_out(source) == {".txt": 40, ".json": 40}
    assert source.origin["unlabeled"] is True
    write_tar(tmp_path / "y.tar", labeled(images, [f"class {i % 20}".encode() for i in range(40)], "txt"))
    assert found(read(tmp_path / "y.tar", test_fraction=0))["train"][1] == [
        sorted(f"class {j}" for j in range(20)).index(f"class {i % 20}") for i in range(40)]
    monkeypatch.setattr(sample_labels, "EARLY", 25)
    write_tar(tmp_path / "x.tar", [*members, ("end.png", IMAGE), ("end.png", IMAGE)])  # not reached
    if len(text) < 20 and "\n" not in text:
        with pytest.raises(UsageError, match="captions"):
            read(tmp_path / "x.tar", test_fraction=0)


def test_labels_take_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_labels, "MAX_TEXT", 100)
    write_tar(tmp_path / "x.tar", labeled(random_images(3, 8), [b"a" * 50, b"b" * 50, b"c"], "cls"))
    with pytest.raises(DataError, match="labels of more than 100 characters in all"):
        read(tmp_path / "x.tar", test_fraction=0)
