"""A run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoint.pt, whitening.npz, result.json."""

import json
import platform
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from pipelines.common.errors import DataError
from pipelines.common.files import write_atomically

PACKAGES = ("torch", "numpy", "numba", "nvidia-dali-cuda120")


class RunFolder:
    """Where the files of a run are, and how they are written: whole or not at all."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.whitening = self.path / "whitening.npz"
        self.result = self.path / "result.json"

    def read(self, path: Path) -> dict:
        """A JSON file of the run; DataError where it is missing or damaged."""
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise DataError(f"{path}: not found; is {self.path} the folder of a run?") from None
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: a {type(content).__name__} found, an object expected")
        return content

    def write(self, path: Path, content: dict) -> None:
        """Write a JSON file of the run."""
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


class MetricsLog:
    """Lines of numbers, to metrics.jsonl and to TensorBoard.

    Args:
        folder: of the run.
        step: lines after this step are dropped: they were written after the checkpoint that is gone on from, and
            will be written again.
        evaluated: the step of the last evaluation that this checkpoint knows of; later ones will be made again.
    """

    def __init__(self, folder: RunFolder, step: int, evaluated: int):
        kept = []
        if step and folder.metrics.exists():
            lines = folder.metrics.read_text(errors="replace").splitlines()
            kept = [line for line in lines if _is_before(line, step, evaluated)]
        write_atomically(folder.metrics, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
        self._file = open(folder.metrics, "a", buffering=1)  # noqa: SIM115 - closed by close(); line by line
        self._board = SummaryWriter(str(folder.path), purge_step=step + 1 if step else None)

    def write(self, kind: str, line: dict) -> None:
        """Append a line of type ``train`` or ``eval``; ``line`` has the step, and None for what there is not."""
        self._file.write(json.dumps({"type": kind, **line}) + "\n")
        for name, value in line.items():
            if name != "step" and value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, line["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def _is_before(line: str, step: int, evaluated: int) -> bool:
    """Whether a line of metrics stays; half a line, which a process that is killed may leave, does not."""
    try:
        content = json.loads(line)
        return content["step"] <= (evaluated if content["type"] == "eval" else step)
    except (ValueError, KeyError, TypeError):
        return False


def versions(*more: str) -> dict[str, str | None]:
    """Of Python, of what the numbers depend on, and of ``more`` packages."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # unpacked rather than installed
            found[package] = None
    return found
