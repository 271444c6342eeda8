"""The reference's settings, each data set × network × method, as its scripts have them."""

import numpy as np
import pytest

from pipelines.common.errors import UsageError
from pipelines.shards import ShardSet
from sesemi.config import Config
from sesemi.resolve import extra_paths, open_sets, resolve
from tests.conftest import random_images, write_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A training and a test set of each kind of data, 40 images of 10 classes."""
    folder = tmp_path_factory.mktemp("sets")
    return {kind: tuple(write_set(folder / kind / split, random_images(40, 16), np.arange(40) % 10,
                                  tuple("0123456789"), split, kind) for split in ("train", "test"))
            for kind in ("cifar10", "cifar100", "svhn", "digits", "folder")}


# dataset, network, method: epochs, flips, preprocess, dropout before the class head, dropout in the trunk.
REFERENCE = [
    ("cifar10", "convnet", "sesemi", (50, True, "zca", 0.2, 0.0)),
    ("cifar10", "wrn", "sesemi", (50, True, "zca", 0.2, 0.0)),
    ("cifar10", "convnet", "asl", (300, True, "zca", 0.2, 0.0)),
    ("cifar100", "nin", "sesemi", (50, True, "zca", 0.2, 0.0)),
    ("cifar100", "nin", "asl", (300, True, "zca", 0.2, 0.0)),
    ("svhn", "convnet", "sesemi", (30, False, "gcn", 0.5, 0.5)),
    ("svhn", "convnet", "asl", (300, False, "gcn", 0.5, 0.5)),
    ("svhn", "wrn", "sesemi", (30, False, "gcn", 0.5, 0.0)),
    ("svhn", "wrn", "asl", (300, False, "gcn", 0.2, 0.0)),
    ("svhn", "wrn-10-1", "supervised", (30, False, "gcn", 0.5, 0.0)),
    ("svhn", "nin", "sesemi", (30, False, "gcn", 0.2, 0.0)),
    ("svhn", "nin", "asl", (300, False, "gcn", 0.2, 0.0))]


@pytest.mark.parametrize(("dataset", "network", "method", "expected"), REFERENCE)
def test_the_reference_s_settings(sets, dataset, network, method, expected):
    config = resolve(Config(dataset, network, method, labels=20, device="cpu"), *sets[dataset])
    assert (config.epochs, config.flips, config.preprocess, config.dropout, config.trunk_dropout) == expected
    steps_per_epoch = 20 // 16 if method == "asl" else 40 // 16
    assert config.steps == config.epochs * steps_per_epoch
    assert config.eval_every == (0 if method == "asl" else steps_per_epoch)


def test_each_setting_gives_way_to_a_flag(sets):
    flags = {"epochs": 2, "flips": True, "preprocess": "standardize", "dropout": 0.0, "trunk_dropout": 0.1,
             "eval_every": 7}
    config = resolve(Config("svhn", device="cpu", **flags), *sets["svhn"])
    assert {name: getattr(config, name) for name in flags} == flags


def test_with_extra_images_the_epoch_is_twice_as_long(sets, tmp_path):
    train, test = sets["cifar100"]
    extra = write_set(tmp_path / "extra", random_images(300, 16))
    config = resolve(Config("cifar100", extra="extra", device="cpu"), train, test, extra)
    assert config.steps == 50 * (40 // 8)
    with pytest.raises(UsageError, match="12×12×3 found, 16×16×3 expected"):
        resolve(Config("cifar100", extra="extra", device="cpu"), train, test, write_set(tmp_path / "x",
                                                                                       random_images(9, 12)))


@pytest.mark.parametrize(("size", "kind"), [(32, "zca"), (48, "zca"), (64, "gcn"), (96, "gcn")])
def test_own_images_are_whitened_up_to_48_pixels(tmp_path, size, kind):
    train, test = (write_set(tmp_path / split, random_images(16, size), np.arange(16) % 2, ("a", "b"), split,
                             shard_bytes=2**20) for split in ("train", "test"))
    assert resolve(Config("x", device="cpu"), train, test).preprocess == kind
    if size > 48:
        with pytest.raises(UsageError, match=f"--preprocess: found zca for images of {size}×{size}"):
            resolve(Config("x", preprocess="zca", device="cpu"), train, test)


def test_sets_by_number_name_and_path(tmp_path):
    for place in ("shards/tinyimages-500/train", "shards/svhn/extra", "elsewhere/mine/train"):
        write_set(tmp_path / place, random_images(9, 8))
    data = str(tmp_path / "shards")
    for extra, place in (("500", "shards/tinyimages-500/train"), ("tinyimages-500", "shards/tinyimages-500/train"),
                         ("svhn/extra", "shards/svhn/extra"),
                         (str(tmp_path / "elsewhere/mine"), "elsewhere/mine/train"),
                         (str(tmp_path / "elsewhere/mine/train"), "elsewhere/mine/train")):
        (path,) = extra_paths(Config("cifar100", extra=extra, data=data)).values()
        assert ShardSet(path).path.resolve() == (tmp_path / place).resolve()


def test_an_extra_dataset_brings_its_unlabeled_images(tmp_path):
    for place in ("mine/train", "mine/unlabeled", "other/train"):
        write_set(tmp_path / place, random_images(40, 8), np.arange(40) % 2, ("a", "b"))
    config = Config("other", extra="mine", data=str(tmp_path))
    assert {name: one.path for name, one in open_sets(config).items()} == {
        "train": tmp_path / "other/train", "extra": tmp_path / "mine/train",
        "extra_unlabeled": tmp_path / "mine/unlabeled"}
    assert list(extra_paths(Config("other", extra=str(tmp_path / "mine/unlabeled")))) == ["extra"]


@pytest.mark.parametrize(("method", "extra", "steps"), [
    ("sesemi", None, (40 + 300) // 16), ("supervised", None, (40 + 300) // 16), ("asl", None, 1),
    ("sesemi", "extra", (40 + 300) // 8)])
def test_an_epoch_is_a_pass_over_all_images_of_the_dataset(sets, tmp_path, method, extra, steps):
    train, test = sets["cifar10"]
    more = {"unlabeled": write_set(tmp_path / "unlabeled", random_images(300, 16))}
    if extra:
        more["extra"] = write_set(tmp_path / "extra", random_images(1000, 16))
    config = resolve(Config("cifar10", method=method, extra=extra, labels=10, device="cpu"), train, test, **more)
    assert config.steps == config.epochs * steps


def test_unlabeled_images_of_another_size_are_refused(sets, tmp_path):
    train, test = sets["cifar10"]
    small = write_set(tmp_path / "small", random_images(20, 12), np.arange(20) % 10, tuple("0123456789"), "test")
    with pytest.raises(UsageError, match="other classes or another image size"):
        resolve(Config("cifar10", device="cpu"), train, small)
    with pytest.raises(UsageError, match="images of 12×12×3 found, 16×16×3 expected"):
        resolve(Config("cifar10", extra="x", device="cpu"), train, test,
                write_set(tmp_path / "x", random_images(9, 16, 5)), extra_unlabeled=small)
    with pytest.raises(UsageError, match="unlabeled has images of 12×12×3"):
        resolve(Config("cifar10", device="cpu"), train, test, unlabeled=write_set(tmp_path / "unlabeled",
                                                                                 random_images(9, 12)))


@pytest.mark.parametrize(("network", "size", "fits"), [
    ("convnet", 8, False), ("convnet", 12, True), ("wrn", 4, True), ("nin", 4, True), ("nin", 3, False)])
def test_images_that_are_too_small_for_a_network(tmp_path, network, size, fits):
    train, test = (write_set(tmp_path / split, random_images(16, size), np.arange(16) % 2, ("a", "b"), split)
                   for split in ("train", "test"))
    config = Config("x", network, device="cpu")
    if fits:
        assert resolve(config, train, test).network == network
    else:
        with pytest.raises(UsageError, match=r"too small|at least 4 pixels"):
            resolve(config, train, test)
