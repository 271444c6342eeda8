"""Checkpoints: everything a run needs to go on, in one file that is whole or absent."""

from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.errors import DataError
from pipelines.files import write_atomically


def save(path: Path, state: dict) -> None:
    """Write ``state`` (tensors, numbers, strings, containers of those) atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path, device: torch.device) -> dict:
    """Read what ``save`` wrote, without running any code it may contain; DataError for anything else."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no checkpoint here; has the run started, and reached its first checkpoint?") from None
    except Exception as error:  # a damaged file may have PyTorch raise anything
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a readable checkpoint ({reason})") from None


@contextmanager
def fits(path: Path):
    """While inside, what a checkpoint of another run raises becomes a DataError of one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: does not fit this run ({type(error).__name__}: {reason})") from None


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
