"""A run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoint.pt, whitening.npz, result.json."""

import json
import os
import platform
import socket
import sys
import time
from importlib import metadata
from pathlib import Path

from pipelines.common.errors import DataError, reason
from pipelines.common.files import naming_errors, write_atomically
from pipelines.common.reading import open_regular

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
            with open_regular(path) as file:
                content = json.loads(file.read())
        except FileNotFoundError:
            raise DataError(f"{path}: not found; is {self.path} the folder of a run?") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not valid JSON ({reason(error)})") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: a {type(content).__name__} found, an object expected")
        return content

    def write(self, path: Path, content: dict) -> None:
        """Write a JSON file of the run."""
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


class MetricsLog:
    """Lines of numbers, to metrics.jsonl and, where it is installed, to TensorBoard.

    Args:
        folder: of the run.
        step: lines after this step are dropped: they were written after the checkpoint that is gone on from, and
            will be written again.
        evaluated: the step of the last evaluation that this checkpoint knows of; later ones will be made again.
    """

    def __init__(self, folder: RunFolder, step: int, evaluated: int):
        kept = []
        if step and folder.metrics.exists():
            with open_regular(folder.metrics) as file:
                lines = file.read().decode(errors="replace").splitlines()
            kept = [line for line in lines if _is_before(line, step, evaluated)]
        write_atomically(folder.metrics, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
        self._path = folder.metrics
        self._file = open(folder.metrics, "a", buffering=1)  # noqa: SIM115 - closed by close(); line by line
        try:
            self._events = EventFile(folder.path, step)
        except ImportError:
            self._events = None
            print(f"TensorBoard is not installed; {folder.metrics} has the same numbers", file=sys.stderr)

    def write(self, kind: str, line: dict) -> None:
        """Append a line of type ``train`` or ``eval``; ``line`` has the step, and None for what there is not."""
        with naming_errors(self._path):
            self._file.write(json.dumps({"type": kind, **line}) + "\n")
        if self._events is not None:
            self._events.write(line["step"], {f"{kind}/{name}": value for name, value in line.items()
                                              if name != "step" and value is not None})

    def close(self) -> None:
        """Close both."""
        with naming_errors(self._path), self._file:
            if self._events is not None:
                self._events.close()


class EventFile:
    """Numbers for TensorBoard, in a new file for each start of a run.

    Not ``torch.utils.tensorboard``: it writes on a thread, whose traceback is all that one sees of a full disk.

    Args:
        folder: of the run.
        step: what earlier files have of later steps is not shown. (An evaluation of that very step that was not saved
            is made again, and then shown twice.)

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        self._protocol = event_pb2
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in the order of their names
        self._path = folder / (f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}."
                               f"{os.getpid()}")
        self._file = open(self._path, "wb")  # noqa: SIM115 - closed by close()
        self._writer = RecordWriter(self._file)
        self._append(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(step=step + 1, session_log=start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step, by name."""
        values = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._append(step=step, summary={"value": values})

    def _append(self, **content: object) -> None:
        with naming_errors(self._path):
            self._writer.write(self._protocol.Event(wall_time=time.time(), **content).SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with naming_errors(self._path):
            self._file.close()


def _is_before(line: str, step: int, evaluated: int) -> bool:
    """Whether a line of metrics stays; half a line, which a process that is killed may leave, does not."""
    try:
        content = json.loads(line)
        return content["step"] <= (evaluated if content["type"] == "eval" else step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def versions(*more: str) -> dict[str, str | None]:
    """Of Python, of what the numbers depend on, and of ``more`` packages."""
    import torch  # not before: the commands that read a run's JSON need not wait for it
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # unpacked rather than installed
            found[package] = None
    return found
