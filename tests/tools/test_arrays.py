"""NumPy arrays under the names their users give them, in every layout of pixels, split by split."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError, UsageError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare
from tools.sources import arrays


def run(command, source, tmp_path, *flags) -> tuple[int, str, str]:
    return command(prepare.main, "numpy", "--source", source, "--out", tmp_path / "s", *flags)


def contents(path) -> tuple[np.ndarray, list | None]:
    shard_set = ShardSet(path)
    return shard_set.read(np.arange(len(shard_set))), None if shard_set.classes is None else shard_set.labels.tolist()


@pytest.mark.parametrize("names", [("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y")])
@pytest.mark.parametrize("form", ["npz", "compressed", "folder"])
def test_train_and_test(tmp_path, command, monkeypatch, names, form):
    monkeypatch.setattr(arrays, "CHUNK", 7)
    train, test = random_images(50, 8, 1), random_images(9, 8, 2)
    train_labels, test_labels = (np.arange(50) % 3)[:, None], np.arange(9, dtype=np.uint8) % 3  # MedMNIST has (N, 1)
    content = {names[0].format("train"): train, names[1].format("train"): train_labels,
               names[0].format("test"): test, names[1].format("test"): test_labels, "val_images": train}
    source = tmp_path / "data.npz"
    if form == "folder":
        source = tmp_path / "data"
        source.mkdir()
        for name, array in content.items():
            np.save(source / f"{name}.npy", array)
    else:
        (np.savez if form == "npz" else np.savez_compressed)(source, **content)
    status, out, _ = run(command, source, tmp_path)
    assert status == 0
    assert "50 images of 8×8, 3 classes" in out
    assert "val_images, since" in out
    for split, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        got, classes = contents(tmp_path / "s" / split)
        assert np.array_equal(got, images)
        assert classes == labels.reshape(-1).tolist()


@pytest.mark.parametrize(("stored", "expected"), [
    (lambda x: x, lambda x: x), (lambda x: x.transpose(0, 3, 1, 2).copy(), lambda x: x),
    (lambda x: x[..., 0].copy(), lambda x: np.repeat(x[..., :1], 3, 3)),
    (lambda x: x[..., :1].copy(), lambda x: np.repeat(x[..., :1], 3, 3)),
    (lambda x: x[..., :1].transpose(0, 3, 1, 2).copy(), lambda x: np.repeat(x[..., :1], 3, 3)),
    (lambda x: np.concatenate([x, np.full_like(x[..., :1], 255)], 3), lambda x: x)])
def test_layouts_of_an_unlabeled_array(tmp_path, command, stored, expected):
    images = random_images(11, 8)
    np.save(tmp_path / "x.npy", stored(images))
    assert run(command, tmp_path / "x.npy", tmp_path)[0] == 0
    got, labels = contents(tmp_path / "s" / "train")
    assert labels is None
    assert np.array_equal(got, expected(images))


def test_resized(tmp_path, command):
    images = np.full((3, 12, 20, 3), 90, np.uint8)
    np.save(tmp_path / "x.npy", images)
    status, _, err = run(command, tmp_path / "x.npy", tmp_path)
    assert status == 2
    assert "--size" in err
    assert "12×20" in err
    assert run(command, tmp_path / "x.npy", tmp_path, "--size", 6)[0] == 0
    assert np.array_equal(contents(tmp_path / "s" / "train")[0], np.full((3, 6, 6, 3), 90))


IMAGES = random_images(4, 8)
OTHER = random_images(6, 8, 1)
TWO = np.arange(4) % 2


@pytest.mark.parametrize(("content", "message"), [
    ({"pictures": IMAGES}, "arrays pictures found"),
    ({"arr_0": IMAGES, "arr_1": TWO}, "np.savez('named.npz', x_train=a['arr_0'], y_train=a['arr_1'])"),
    ({"images": IMAGES[0]}, None), ({"images": IMAGES[:, :, :, :2]}, "expected uint8"),
    ({"images": IMAGES[:0]}, "expected uint8"),
    ({"images": IMAGES, "labels": np.arange(5)}, "int64 (5,) found, expected a label for each image of images, (4,)"),
    ({"images": IMAGES, "labels": -np.arange(4)}, "class numbers"), ({"images": IMAGES, "x": IMAGES}, "images and x"),
    ({"train_images": IMAGES, "X-Train": IMAGES}, "train_images and X-Train found, both of which mean train images"),
    ({"images": np.asfortranarray(IMAGES)}, "Fortran"), ({"images": np.array([{}])}, "expected uint8"),
    ({"train_images": IMAGES, "test_images": IMAGES, "test_labels": TWO}, "labels found in test_images only"),
    ({"test_images": IMAGES}, "arrays test_images found, expected training images among them"),
    ({"train_labels": TWO}, "arrays train_labels found, expected"),
    ({"images": IMAGES, "labels": np.zeros(4, int)}, "a single class found, 0 (4 images)"),
    ({"train_images": IMAGES, "train_labels": TWO, "test_images": IMAGES, "test_labels": np.arange(4)},
     "test_labels.npy: label 2 found, which no training image has; the classes of train_labels are 0, 1")])
def test_wrong_arrays(tmp_path, command, content, message):
    np.savez(tmp_path / "x.npz", **content)
    status, out, err = run(command, tmp_path / "x.npz", tmp_path)
    if message is None:  # (8, 8, 3): eight gray images of 8×3
        assert status == 2
        return
    assert status == 1
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("images", ["images", "X", "data", "{}_images", "{}-image", "x_{}", "X{}", "{}x", "{}img"])
@pytest.mark.parametrize("labels", ["labels", "y", "Target", "{}_labels", "y_{}", "{}-Y", "y{}", "targets_{}"])
def test_names(tmp_path, images, labels):
    """In either order, by any word, in any case; the parts of different schemes go together."""
    splits = ("", "") if "{}" not in images + labels else ("training", "evaluation")
    content = {images.format(splits[0]): IMAGES, labels.format(splits[0]): TWO}
    if "{}" in images and "{}" in labels:
        content |= {images.format(splits[1]): OTHER, labels.format(splits[1]): [1, 0, 1, 1, 0, 0], "x_dev": IMAGES}
    np.savez(tmp_path / "x.npz", **content)
    source = arrays.read(tmp_path / "x.npz", test_fraction=None if len(content) > 2 else 0)
    for split, expected in zip(source.splits, (IMAGES, OTHER), strict=False):
        ((found, _),) = split.batches()
        assert np.array_equal(found, expected)
    assert len(source.splits) == (len(content) + 1) // 2 - (len(content) > 4)


@pytest.mark.parametrize(("content", "splits", "left_out"), [
    ({"x_val": OTHER[:4], "y_val": TWO}, {"train": IMAGES, "test": OTHER[:4]}, []),
    ({"x_val": OTHER[:4], "y_val": TWO, "x_test": OTHER},
     {"train": IMAGES, "unlabeled": OTHER, "test": OTHER[:4]}, []),
    ({"x_val": OTHER[:4], "y_val": TWO, "x_test": OTHER, "y_test": np.full(6, -1)},
     {"train": IMAGES, "unlabeled": OTHER, "test": OTHER[:4]}, []),
    ({"x_test": OTHER[:4], "y_test": TWO, "x_val": np.asfortranarray(OTHER), "y_val": np.arange(6)},
     {"train": IMAGES, "test": OTHER[:4]}, ["x_val, since x_test is the test set", "y_val"]),
    ({"x_test": OTHER[:4], "y_test": TWO, "unlabeled": OTHER, "y_unlabeled": np.arange(6)},
     {"train": IMAGES, "unlabeled": OTHER, "test": OTHER[:4]},
     ["y_unlabeled, since its images are taken as unlabeled"]),
    ({"x_test": OTHER, "y_test": [0, 1, -1, 1, -1, 1]},
     {"train": IMAGES, "unlabeled": OTHER[[2, 4]], "test": OTHER[[0, 1, 3, 5]]}, []),
    ({"x_test": OTHER, "y_val": TWO, "extra": np.asfortranarray(IMAGES)}, None,
     ["y_val, whose images are not there", "x_test, which has no labels", "extra"]),
    ({"x_test": OTHER, "y_test": np.full(6, np.nan), "x_val": OTHER}, None,
     ["x_test, which has no labels", "y_test", "x_val, which has no labels"])])
def test_which_arrays_are_what(tmp_path, content, splits, left_out):
    np.savez(tmp_path / "x.npz", x_train=IMAGES, y_train=TWO, **content)
    source = arrays.read(tmp_path / "x.npz", test_fraction=0 if splits is None else None)
    found = {split.name: np.concatenate([images for images, _ in split.batches()]) for split in source.splits}
    assert list(found) == list(splits or ["train"])
    for name, expected in (splits or {"train": IMAGES}).items():
        assert np.array_equal(found[name], expected)
    arrays_left = source.report.as_dict().get("arrays", {})
    assert sorted(arrays_left) == sorted(left_out)
    assert all(name in "".join(source.report.lines()) for name in left_out)


def test_all_unlabeled(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.full(4, -1), unlabelled_images=OTHER)
    source = arrays.read(tmp_path / "x.npz")
    (split,) = source.splits
    assert (split.name, split.num_images, split.classes) == ("train", 10, None)
    assert np.array_equal(np.concatenate([images for images, _ in split.batches()]), np.concatenate([IMAGES, OTHER]))
    np.savez(tmp_path / "x.npz", x_unlabeled=OTHER)
    assert [split.name for split in arrays.read(tmp_path / "x.npz").splits] == ["train"]


def test_held_out(tmp_path, command):
    """By the flag, which is in the origin; without it, the line says which there are."""
    images, labels = random_images(40, 8), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", X=images, y=np.where(np.arange(40) < 30, labels, -1))
    status, _, err = run(command, tmp_path / "x.npz", tmp_path)
    assert status == 2
    assert "--test-fraction 0.2" in err
    assert "0: 15, 1: 15" in err
    assert run(command, tmp_path / "x.npz", tmp_path, "--test-fraction", "0.2")[0] == 0
    (train, of_train), (test, of_test), (rest, _) = (contents(tmp_path / "s" / name)
                                                     for name in ("train", "test", "unlabeled"))
    assert np.array_equal(rest, images[30:])
    places = [next(i for i, image in enumerate(images) if np.array_equal(image, one)) for one in (*train, *test)]
    assert sorted(places) == list(range(30))
    assert labels[places].tolist() == of_train + of_test
    assert np.bincount(of_test).tolist() == [3, 3]
    assert ShardSet(tmp_path / "s" / "train").manifest.source["test_fraction"] == 0.2
    with pytest.raises(UsageError, match="no test set found"):
        arrays.read(tmp_path / "x.npz")


def test_errors_come_in_the_order_of_their_weight(tmp_path):
    """Bad arrays, sizes, then what only flags decide."""
    oblong = np.zeros((4, 8, 6, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=oblong, y=TWO + 0.5)
    with pytest.raises(DataError, match="whole numbers"):
        arrays.read(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=oblong, y=TWO)
    with pytest.raises(UsageError, match="--size"):
        arrays.read(tmp_path / "x.npz")
    with pytest.raises(UsageError, match="--test-fraction"):
        arrays.read(tmp_path / "x.npz", 8)


FIELD = Path(__file__).parents[3] / "shared" / "field" / "make_npz_types.py"


@pytest.fixture(scope="module")
def field_files(tmp_path_factory) -> dict:
    """The arrays of files as people have them, by file."""
    if not FIELD.exists():
        pytest.skip(f"needs the files as people have them: {FIELD} is absent")
    spec = importlib.util.spec_from_file_location("make_npz_types", FIELD)
    module, argv = importlib.util.module_from_spec(spec), sys.argv
    try:
        sys.argv = [str(FIELD), str(tmp_path_factory.mktemp("npz"))]
        spec.loader.exec_module(module)
    finally:
        sys.argv = argv
    return {file.stem: file for file in module.OUT.glob("*.npz")} | {"x": module.x, "y": module.y, "test": module.test,
                                                                     "truth": module.truth}


@pytest.mark.parametrize(("name", "classes", "said"), [
    ("float01", "012", "x_train: float32 in [0, 1] taken as 8 bits"),
    ("float255", "012", "x_test: float32 in [0, 255] taken as 8 bits"), ("onehot", "012", "x_train: 0: 8, 1: 8, 2: 8"),
    ("floatlabels", "012", "x_train: 0: 8, 1: 8, 2: 8"), ("names", ("cat", "dog", "owl"), "cat 8, dog 8, owl 8"),
    ("capital", "012", "X_train: 0: 8"), ("xy", "012", "test set: none"), ("fromone", "123", "1: 8, 2: 8, 3: 8"),
    ("minusone", "012", "unlabeled: 12 images (x_train)"), ("semi", "012", "unlabeled: 9 images (x_unlabeled)"),
    ("medmnist", "012", "val_images, since test_images is the test set")])
def test_files_as_people_have_them(tmp_path, command, field_files, name, classes, said):
    x, y, test, truth = (field_files[one] for one in ("x", "y", "test", "truth"))
    flags = ("--test-fraction", "0") if name == "xy" else ()
    status, out, err = run(command, field_files[name], tmp_path, *flags)
    assert status == 0, err
    assert said in out
    labeled = np.arange(24) < 12 if name == "minusone" else np.ones(24, bool)
    expected = {"train": (x[labeled], y[labeled].tolist())}
    expected |= {} if name == "xy" else {"test": (test, truth.tolist())}
    expected |= {"minusone": {"unlabeled": (x[12:], None)}, "semi": {"unlabeled": (test, None)}}.get(name, {})
    assert {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()} == set(expected)
    for split, (images, labels) in expected.items():
        got, found = contents(tmp_path / "s" / split)
        assert np.array_equal(got, images)
        assert found == labels
        assert split == "unlabeled" or ShardSet(tmp_path / "s" / split).classes == tuple(classes)
