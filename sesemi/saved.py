"""A run's folder → its configuration, its whitening, its trained task; and what another run may begin with. No DALI."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from torch import nn

from pipelines.common.errors import DataError, UsageError, damage, shown
from pipelines.common.reading import open_regular
from pipelines.shards import ShardSet
from pipelines.whitening import Preprocess
from sesemi import checkpoint
from sesemi.config import CHANGEABLE, OPTIONAL, Config
from sesemi.ema import by_error
from sesemi.networks import is_own
from sesemi.runlog import RunFolder
from sesemi.task import SesemiTask, build_task

HEADS = ("class_head.", "proxy_head.")
TRUNK = "trunk."
LISTED = 8  # names in a message, of each kind


def load_config(folder: RunFolder, device: str | None = None, network: str | None = None) -> Config:
    """The configuration a run was started with, on its device or another.

    Args:
        folder: of the run.
        device: None for the run's.
        network: what the user asked for; has to be given where it is the user's own code, ``module:function``: what a
            folder says never makes code run.
    """
    saved = folder.read(folder.config)
    for name, hint in get_type_hints(Config).items():
        value = saved.get(name)
        if not _is(value, hint) or (value is None and name not in OPTIONAL):
            raise DataError(f"{folder.config}: not the configuration of a run ({name} {shown(value)} found)")
    try:
        config = Config(**{name: saved.get(name) for name in get_type_hints(Config)})
    except UsageError as error:  # of flags that nobody gave
        raise DataError(f"{folder.config}: not the configuration of a run ({error})") from None
    if is_own(config.network) and network != config.network:
        raise UsageError(f"--network: {folder.path} has a network of its own; if you trust that code, add --network "
                         f"{config.network}, which imports it")
    device = device or config.device
    if device != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--gpu: {folder.path} was trained on {device}, which is not here; to evaluate it, --gpu none "
                         f"takes the CPU")
    return replace(config, device=device, run=str(folder.path))


def _is(value: object, hint: type) -> bool:
    """Whether JSON's value is of a field's type; an integer is a float, too, but True is neither."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str):  # no path has a zero byte, or characters that no file system takes
        try:
            return str in kinds and b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False
    return type(value) in kinds or (type(value) is int and float in kinds)


def saved_fingerprints(folder: RunFolder) -> dict[str, str]:
    """The fingerprints of the sets that a run was started with, by name, from its config.json."""
    saved = folder.read(folder.config).get("data_fingerprints")
    if not isinstance(saved, dict):
        raise DataError(f"{folder.config}: not the configuration of a run (no data_fingerprints)")
    return saved


def check_sets(folder: RunFolder, sets: dict[str, ShardSet], words: str, whole: bool = False) -> dict[str, str]:
    """The fingerprints that ``saved_fingerprints`` reads; DataError, ending in ``words``, where a set has another.

    ``whole``: where a set is missing, too.
    """
    saved = saved_fingerprints(folder)
    if whole and (missing := sorted(saved.keys() - sets.keys())):
        raise DataError(f"{sets['train'].path.parent}: no {' and no '.join(missing)} set here, which {folder.path} "
                        f"{words}")
    for name, shard_set in sets.items():
        if saved.get(name) != shard_set.fingerprint:
            raise DataError(f"{shard_set.path}: not the shards that {folder.path} {words}")
    return saved


def identity(config: Config, fingerprints: dict[str, str]) -> dict:
    """What a checkpoint holds for: the settings that a resumed run may not change, and the data."""
    fixed = {name: value for name, value in config.as_dict().items() if name not in {*CHANGEABLE, "device", "data"}}
    return fixed | {f"images of {name}": fingerprint for name, fingerprint in fingerprints.items()}


def load_whitening(folder: RunFolder, config: Config, fingerprints: dict[str, str],
                   image_shape: tuple[int, int, int]) -> Preprocess:
    """What a run normalises its images by; DataError where its file is another's."""
    preprocess = Preprocess.load(folder.whitening)
    expected = [fingerprint for name, fingerprint in fingerprints.items() if name != "test"]
    found = preprocess.fitted_on.get("fingerprints", expected)  # nothing is fitted for GCN
    if (preprocess.kind, preprocess.image_shape, found) != (config.preprocess, image_shape, expected):
        raise DataError(f"{folder.whitening}: of another run: {preprocess.kind} of {preprocess.image_shape} found, "
                        f"fitted on other images or not {config.preprocess} of {image_shape}")
    return preprocess


def load_tasks(folder: RunFolder, config: Config, num_classes: int, channels: int) -> dict[str, SesemiTask]:
    """A run's trained tasks, named as ``Trainer.evaluated`` names them: the averaged one first, where it has one."""
    state = checkpoint.load(folder.checkpoint, torch.device(config.device))
    with checkpoint.fits(folder.checkpoint):
        checkpoint.check_same_run(folder.checkpoint, state["run"], identity(config, saved_fingerprints(folder)))
        states = by_error(state["trainer"]["task"], state["trainer"]["averaged"])
        task = build_task(config, num_classes, channels)
        tasks = {name: copy.deepcopy(task) for name in states}  # a user's function may return one module twice
        for name, task in tasks.items():
            task.load_state_dict(states[name])
    return tasks


def read_trunk(path: Path) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, for ``load_trunk``.

    Args:
        path: a run's folder, whose average is taken where it has one; or a .safetensors file of a whole task
            (``trunk.…``), or of a trunk alone.

    Raises:
        DataError: neither; missing or damaged.
        UsageError: a .safetensors file, and no package of that name.
    """
    if path.is_dir():
        where = RunFolder(path).checkpoint
        try:
            state, where = checkpoint.load_newest(where, torch.device("cpu"))
        except DataError as error:
            raise DataError(f"--init: {error}") from None
        with checkpoint.fits(where):
            tensors = dict(by_error(state["trainer"]["task"], state["trainer"]["averaged"])["test_error"])
    elif path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise UsageError(f"--init: reading {path} needs the package safetensors: pip install safetensors") from None
        with damage(f"{path}: not a readable .safetensors file", passes=(OSError,)):
            open_regular(path).close()  # for its errors: the library says of any file that it is not there
            tensors = load_file(path)
    else:
        raise DataError(f"--init: {path} found, expected the folder of a run, or a file that ends in .safetensors")
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise DataError(f"--init: {path} holds no weights by name")
    return tensors


def load_trunk(trunk: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Have a trunk begin with what ``read_trunk`` read; UsageError, listing the differences, where it does not fit."""
    expected = {name: value for name, value in trunk.state_dict().items() if isinstance(value, torch.Tensor)}
    if tensors.keys() != expected.keys() and all(name.startswith((TRUNK, *HEADS)) for name in tensors):
        tensors = {name.removeprefix(TRUNK): value for name, value in tensors.items() if name.startswith(TRUNK)}
    shapes = [f"{name} {tuple(tensors[name].shape)} found, {tuple(value.shape)} expected"
              for name, value in expected.items() if name in tensors and tensors[name].shape != value.shape]
    kinds = {name: (_kind(tensors[name], value.dtype), _kind(value, value.dtype))
             for name, value in expected.items() if name in tensors}
    numbers = [f"{name} {found} found, {wanted} expected" for name, (found, wanted) in kinds.items() if found != wanted]
    differences = [_listed("missing", [name for name in expected if name not in tensors]),
                   _listed("unexpected", [name for name in tensors if name not in expected]),
                   _listed("of other shapes", shapes), _listed("of other numbers", numbers)]
    if any(differences):
        raise UsageError(f"--init: {where} does not fit the network: {'; '.join(filter(None, differences))}")
    for name, value in expected.items():
        value.copy_(tensors[name])


def _kind(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    """What a tensor's numbers are; of floating-point ones, whether they are finite as ``dtype``."""
    if not tensor.is_floating_point():
        return "complex numbers" if tensor.is_complex() else "integers"
    finite = not dtype.is_floating_point or tensor.to(dtype).isfinite().all()
    return "floating point" if finite else "NaN or infinity"


def _listed(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{kind}: {', '.join(names[:LISTED])}{more}" if names else ""
