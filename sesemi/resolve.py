"""How the data and the machine make a configuration final, and refuse what they cannot do."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipelines.common.errors import DataError, UsageError
from pipelines.sampling import MAX_SHIFT
from pipelines.shards import ShardSet
from pipelines.shards.manifest import MANIFEST
from sesemi.config import Config
from sesemi.device import default_precision
from sesemi.networks import build_trunk, is_own, own_code
from sesemi.presets import preset_for

ZCA_PIXELS = 48  # the covariance of 48×48 RGB takes 0.4 GB, that of 96×96 takes 6


def open_sets(config: Config) -> dict[str, ShardSet]:
    """The shard sets of a run by name: train; unlabeled and test, where the dataset has them; extra and
    extra_unlabeled, where the configuration has one and that has it.
    """
    sets = {"train": ShardSet(config.train_path)}
    for name, path in (("unlabeled", config.unlabeled_path), ("test", config.test_path)):
        if os.path.lexists(path):
            sets[name] = ShardSet(path)
    return sets | {name: ShardSet(path) for name, path in extra_paths(config).items()}


def extra_paths(config: Config) -> dict[str, Path]:
    """The shard sets that ``extra`` names, by name; of a dataset its train and unlabeled sets.

    Raises:
        DataError: there is none.
    """
    if config.extra is None:
        return {}
    name = f"tinyimages-{config.extra}" if config.extra.isdecimal() or config.extra == "all" else config.extra
    for path in (Path(config.data) / name, Path(name)):
        if (path / "train" / MANIFEST).exists():
            more = path / "unlabeled"
            return {"extra": path / "train"} | ({"extra_unlabeled": more} if os.path.lexists(more) else {})
        if (path / MANIFEST).exists():
            return {"extra": path}
    raise DataError(f"--extra {config.extra}: no shard set {Path(config.data) / name / 'train'} here ({MANIFEST} not "
                    f"found); python -m tools.prepare makes one")


def resolve(config: Config, train: ShardSet, test: ShardSet | None = None, extra: ShardSet | None = None,
            unlabeled: ShardSet | None = None, extra_unlabeled: ShardSet | None = None) -> Config:
    """The configuration with nothing left open; raises UsageError where the data does not allow it."""
    height, width, _ = train.image_shape
    if train.classes is None:
        raise UsageError(f"--dataset {config.dataset}: {train.path} has no labels; prepare it from a source that has "
                         f"some (README, \"Your own images\"), or use it as unlabeled images by --extra")
    present = np.unique(train.labels)
    if len(present) < 2:
        raise UsageError(f"--dataset {config.dataset}: {train.path} has images of a single class, "
                         f"{train.classes[present[0]]}; expected two or more")
    if test is not None and (test.classes, test.image_shape) != (train.classes, train.image_shape):
        raise UsageError(f"--dataset {config.dataset}: {test.path} has other classes or another image size than "
                         f"{train.path}; prepare both together")
    if unlabeled is not None and unlabeled.image_shape != train.image_shape:
        raise UsageError(f"--dataset {config.dataset}: {unlabeled.path} has images of {_size(unlabeled)}, {train.path} "
                         f"of {_size(train)}; prepare both together")
    if height != width or height < 2 * MAX_SHIFT:
        raise UsageError(f"--dataset {config.dataset}: images of {height}×{width}, square ones of at least "
                         f"{2 * MAX_SHIFT} pixels expected")
    check_network(config, train)
    own = [one.fingerprint for one in (train, unlabeled) if one is not None]
    for one in filter(None, (extra, extra_unlabeled)):
        if one.fingerprint in own:
            raise UsageError(f"--extra {config.extra}: {one.path} has the images of --dataset {config.dataset}, which "
                             f"the proxy branch sees anyway; leave it out")
        if one.image_shape != train.image_shape:
            raise UsageError(f"--extra {config.extra}: images of {_size(one)} found, {_size(train)} expected as "
                             f"in {train.path}; they are in {one.path}")
    preprocess = config.preprocess or preset_for(train.manifest.dataset).preprocess
    if preprocess is None:
        preprocess = "zca" if height <= ZCA_PIXELS else "gcn"
    if preprocess == "zca" and height > ZCA_PIXELS:
        raise UsageError(f"--preprocess: found zca for images of {_size(train)}, expected at most {ZCA_PIXELS}×"
                         f"{ZCA_PIXELS}, since its matrices take gigabytes; gcn and standardize do not")
    device = config.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    labels = config.labels or len(train)
    if not len(present) <= labels <= len(train):
        raise UsageError(f"--labels: found {labels:,}, expected from {len(present):,}, one of each class, to "
                         f"{len(train):,}, all of {train.path}")
    if config.eval_images is not None and (test is None or config.eval_images > len(test)):
        raise UsageError(f"--eval-images: found {config.eval_images:,}, but "
                         + ("there is no test set" if test is None else f"{test.path} has {len(test):,}"))
    config = replace(config, labels=labels)
    steps_per_epoch = config.steps_per_epoch(len(train) + (0 if unlabeled is None else len(unlabeled)))
    preset = preset_for(train.manifest.dataset)
    dropout, trunk_dropout = preset.dropout(config.network, config.method)
    epochs = config.epochs or preset.epochs_of(config.method)
    evaluate = 0 if config.method == "asl" else steps_per_epoch
    extra_name = "" if config.extra is None else f"-extra-{Path(config.extra).name}"
    return replace(
        config, device=device, epochs=epochs, steps=config.steps or epochs * steps_per_epoch, preprocess=preprocess,
        flips=preset.flips if config.flips is None else config.flips,
        dropout=dropout if config.dropout is None else config.dropout,
        trunk_dropout=trunk_dropout if config.trunk_dropout is None else config.trunk_dropout,
        precision=config.precision or default_precision(torch.device(device)),
        cuda_graph=config.cuda_graph and device != "cpu",
        eval_every=evaluate if config.eval_every is None else config.eval_every,
        run=config.run or f"runs/{config.dataset}-{config.network.replace(':', '.')}-{labels}-{config.method}"
                          f"{extra_name}-seed{config.seed}")


def check_network(config: Config, images: ShardSet) -> None:
    """Send images through the network: on the meta device, but through the user's own, which may not know it.

    Raises UsageError where they do not go through it, or what comes out is not what the heads expect.
    """
    name, (height, width, channels) = config.network, images.image_shape
    if is_own(name):
        with own_code(name, f"images of {_size(images)} do not go through it"):
            _check_own(name, torch.rand(2, channels, height, width), config.ema is not None)
        return
    with torch.device("meta"):
        trunk = build_trunk(name, channels).eval()
        try:
            trunk(torch.zeros(1, channels, height, width))
        except RuntimeError:
            raise UsageError(f"--network {name}: images of {_size(images)} are too small for it") from None


def _check_own(name: str, images: torch.Tensor, averaged: bool) -> None:
    trunk = build_trunk(name, images.shape[1])
    for training in (True, False):
        with torch.no_grad():
            trunk = copy.deepcopy(trunk).to(memory_format=torch.channels_last).train(training)  # as --ema copies it
            features = trunk(images.clone())
        is_tensor = isinstance(features, torch.Tensor)
        if not is_tensor or features.ndim != 4 or features.shape[:2] != (len(images), trunk.out_channels):
            found = tuple(features.shape) if is_tensor else type(features).__name__
            raise UsageError(f"--network {name}: {found} for {len(images)} images found{' in training' * training}, "
                             f"expected features of ({len(images)}, {trunk.out_channels}, h, w) by its out_channels")
        if features.dtype != torch.float32:
            raise UsageError(f"--network {name}: features of {features.dtype} found, torch.float32 expected")
    if averaged and not _copies(trunk, images):
        raise UsageError(f"--network {name}: its copy, which --ema averages in, computes with weights of the original; "
                         f"make forward a method of a class, not a function put on the module")


@torch.no_grad()
def _copies(trunk: nn.Module, images: torch.Tensor) -> bool:
    """Whether a deep copy of a trunk computes with weights of its own, not by a closure over the original's."""
    copied = copy.deepcopy(trunk)
    weights = list(copied.parameters())
    for weight in weights:
        weight.normal_()
    return not weights or not torch.equal(copied(images.clone()), trunk(images.clone()))


def _size(shard_set: ShardSet) -> str:
    height, width, channels = shard_set.image_shape
    return f"{height}×{width}×{channels}"
