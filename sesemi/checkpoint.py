"""Checkpoints: everything a run needs to go on, in a file that is whole or absent; the newest, and some before it."""

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from pipelines.common.errors import DataError, damage
from pipelines.common.files import write_atomically
from pipelines.common.reading import open_regular

VERSION = 4  # 1: some convolutions had biases; 2: streams saved DALI's noise; 3: no average, other names


def save(path: Path, state: dict, keep: int = 1, before: int | None = None) -> None:
    """Write ``state`` (tensors, numbers, strings, containers of those) atomically to ``path``.

    Args:
        path: of the newest checkpoint.
        state: what to save.
        keep: checkpoints to have afterwards: ``path``, and ``kept``'s.
        before: the step of the checkpoint that is at ``path`` now; None where there is none worth keeping. Kept ones of
            later steps, which could not be gone on from, go.
    """
    if before is not None and keep > 1 and path.exists():
        earlier = path.with_name(f"{path.stem}-{before:09d}{path.suffix}")
        earlier.unlink(missing_ok=True)
        try:
            os.link(path, earlier)  # a second name, so that there is a checkpoint at every moment
        except OSError:  # a file system without links
            with open(path, "rb") as newest:
                write_atomically(earlier, lambda file: shutil.copyfileobj(newest, file))
    write_atomically(path, lambda file: _write({"version": VERSION, **state}, file))
    found = kept(path)
    sound = [one for one in found if before is None or int(one.stem[-9:]) <= before]
    for old in set(found) - set(sound[:keep - 1]):
        old.unlink()


class _Watched:
    """A file for torch.save, which keeps the error of a write that failed: PyTorch raises one of its own over it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        return self._watch(self._file.write, data)

    def flush(self) -> None:
        self._watch(self._file.flush)

    def _watch(self, act: Callable, *arguments: object) -> object:
        try:
            return act(*arguments)
        except BaseException as error:  # Ctrl-C, too
            self.error = error
            raise


def _write(state: dict, file: BinaryIO) -> None:
    watched = _Watched(file)
    try:
        torch.save(state, watched)
    except RuntimeError:
        if watched.error is None:
            raise
    if watched.error is not None:
        raise watched.error from None


def kept(path: Path) -> list[Path]:
    """The checkpoints before the newest, whose step is in their name; the youngest first."""
    return sorted(path.parent.glob(f"{path.stem}-{'[0-9]' * 9}{path.suffix}"), reverse=True)


def load_newest(path: Path, device: torch.device) -> tuple[dict, Path]:
    """The newest checkpoint that can be read, and where it is: at ``path``, else one of ``kept``, which is said."""
    try:
        return load(path, device), path
    except DataError as first:
        for earlier in kept(path):
            try:
                state = load(earlier, device)
            except DataError:
                continue
            print(f"{first}; going on from {earlier.name}", file=sys.stderr)
            return state, earlier
        raise


def load(path: Path, device: torch.device) -> dict:
    """Read what ``save`` wrote, without running any code it may contain; DataError for anything else.

    Where it is not the file that fails, but memory or the disk, that is raised: another checkpoint would not help.
    """
    with damage(f"{path}: not a readable checkpoint",
                missing=f"{path}: no checkpoint here; a run that did not reach its first one is started again, without "
                        f"--resume",
                passes=(MemoryError, torch.OutOfMemoryError, OSError)):
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:  # PyTorch does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
    version = state.get("version", 1) if isinstance(state, dict) else VERSION
    if version != VERSION:
        raise DataError(f"{path}: checkpoint of version {version!r} found, {VERSION} expected: another version of this "
                        f"program wrote it; use that one, or start a new --run")
    return state


def check_same_run(path: Path, saved: dict, expected: dict) -> None:
    """Raise DataError, naming the first difference, where a checkpoint is from another run than its folder's.

    Args:
        path: of the checkpoint.
        saved, expected: settings and fingerprints of data by name, in the checkpoint and in the run.
    """
    for name, value in expected.items():
        if saved.get(name) != value:
            raise DataError(f"{path}: of another run: {name} {saved.get(name)!r} found, {value!r} expected")


@contextmanager
def fits(path: Path):
    """While inside, what a checkpoint of another run raises becomes a DataError of one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = " ".join(str(error).split())[:400]  # all lines: PyTorch's first one names no tensor
        raise DataError(f"{path}: does not fit this run ({type(error).__name__}: {what})") from None


def random_state(device: torch.device) -> dict:
    """PyTorch's random generators, which dropout draws from. (DALI's and the streams' are in the loader's state.)"""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict, device: torch.device) -> None:
    """Put back what ``random_state`` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
