"""The process that is killed: forks commands that count their moments and send themselves SIGKILL at a given one.

A moment is a line that is about to run in the product's own code or in the library modules that write and remove
files for it, or a change of the watched folder that is about to happen (Python's audit events). Only the main thread's
count, because its moments come in the same order every time. So shards are written on it here rather than beside it:
the files pass through the same states, since until a shard is written the main thread only fills memory. What another
thread opens for writing all the same is noted.

    python -m tests.kill.victim prepare|train      one request a line on stdin, one answer a line on stdout, both JSON
"""

import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import zipfile
from concurrent.futures import Future
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("pipelines", "sesemi", "tools")
HELPERS = "pipelines/common/files.py"  # writes for all others: its lines are put down to its caller
LIBRARIES = ("torch.serialization", "numpy.lib._npyio_impl", "numpy.lib._format_impl")  # where they are loaded
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LIMIT_SECONDS = 300  # a command that hangs is ended by SIGALRM, and reported as that
CLOCK = re.compile(r"\b\d{10}\.\d{9}\b")  # in the names of TensorBoard's files
SMALL_SHARD = 2**15  # several shards from a few images


class Recorder:
    """Numbers the moments of this process from 1 and notes where they are, or ends the process at one of them.

    Args:
        root: the folder whose changes count.
        report: file that gets what was noted, at the end or just before the kill.
        kill_at: number of the moment to die at; None to count all.
    """

    def __init__(self, root: Path, report: Path, kill_at: int | None):
        self.root, self.report, self.kill_at = os.path.realpath(root), report, kill_at
        self.number = 0
        self.places: dict[tuple, int] = {}
        self.moments: list[int] = []  # the place of each
        self.events: list[tuple[int, str, str, str]] = []  # number, what, path and new path in the folder
        self.others: set[str] = set()  # files that other threads opened for writing
        self._followed: dict[str, str] = {}  # what a file of code is called here; "" where it is not followed
        loaded = [sys.modules[name] for name in LIBRARIES if name in sys.modules]
        self._libraries = {module.__file__ for module in (shutil, zipfile, *loaded)}
        self._thread, self._pid = threading.get_ident(), re.compile(rf"\b{os.getpid()}\b")

    def start(self) -> None:
        """Count from here on."""
        sys.addaudithook(self._audit)
        sys.settrace(self._call)

    def write(self) -> None:
        """The report, as JSON."""
        sys.settrace(None)
        self.report.write_text(json.dumps({"number": self.number, "places": list(self.places),
                                           "moments": self.moments, "events": self.events,
                                           "others": sorted(self.others)}))

    def _call(self, frame, event, argument):
        return self._line if self._name(frame) and not _within_dali(frame) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self._moment("line", frame)
        return self._line

    def _audit(self, event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link",
                         "os.symlink"):
            return
        what, path, to = event.removeprefix("os."), arguments[0], ""
        if what == "open":
            flags = arguments[2]
            if not isinstance(path, (str, bytes, os.PathLike)) or not flags & WRITING:
                return
            what = "append" if flags & os.O_APPEND else "open"
            path = self._inside(path)
        elif what in ("rename", "link", "symlink"):
            folders = arguments[2:] if len(arguments) == 4 else (-1, -1)
            path, to = self._inside(path, folders[0]), self._inside(arguments[1], folders[1])
        elif what != "truncate" or not isinstance(path, int):
            path = self._inside(path, arguments[-1] if what in ("remove", "rmdir", "mkdir") else -1)
        if not isinstance(path, str) or not (path or to):
            return
        if threading.get_ident() != self._thread:
            self.others.add(path or to)
        else:
            self._moment(what, sys._getframe(1), path, to)

    def _inside(self, path, folder: int = -1) -> str:
        """A path relative to the watched folder, without process and clock in names; empty for one outside."""
        path = os.fsdecode(path)
        if folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        if not f"{path}/".startswith(f"{self.root}/"):
            return ""
        return CLOCK.sub("TIME", self._pid.sub("PID", os.path.relpath(path, self.root)))

    def _moment(self, what: str, frame, path: str = "", to: str = "") -> None:
        self.number += 1
        if what != "line":
            self.events.append((self.number, what, path, to))
        if self.kill_at is None or self.number == self.kill_at:
            place = self._place(frame)
            self.moments.append(self.places.setdefault((*place, what), len(self.places)))
        if self.number == self.kill_at:
            self.write()
            os.kill(os.getpid(), signal.SIGKILL)

    def _place(self, frame) -> tuple[str, str]:
        """The product's function that is at work, and the line: its own, and the library's below it."""
        lines, owner = [], None
        while frame is not None and owner is None:
            name = self._name(frame)
            if name and not lines:
                lines.append(f"{name}:{frame.f_lineno}")
            if name.startswith(PRODUCT) and name != HELPERS:
                owner = f"{name} {_function(frame.f_code)}"
                if f"{name}:{frame.f_lineno}" not in lines:
                    lines.append(f"{name}:{frame.f_lineno}")
            frame = frame.f_back
        return owner or "elsewhere", " < ".join(lines)

    def _name(self, frame) -> str:
        path = frame.f_code.co_filename
        if path not in self._followed:
            inside = path.startswith(tuple(f"{ROOT / folder}/" for folder in PRODUCT))
            self._followed[path] = os.path.relpath(path, ROOT) if inside else \
                os.path.basename(path) if path in self._libraries else ""
        return self._followed[path]


def _within_dali(frame) -> bool:
    """Whether DALI called: it asks for the parts of a batch in an order that is another in every process."""
    while frame := frame.f_back:
        if "/nvidia/dali/" in frame.f_code.co_filename:
            return True
    return False


class InPlace:
    """Stands in for a ThreadPoolExecutor; does at once, on the caller's thread, what it is given."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self) -> "InPlace":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def submit(self, work, *arguments) -> Future:
        """A future that is done."""
        future = Future()
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


def _function(code) -> str:
    return code.co_qualname.replace(".<locals>", "")


def preload(kind: str):
    """Import all that a command of this kind needs and make its shards small; returns its ``main``."""
    from pipelines.shards import writer
    writer.ShardWriter.__init__.__kwdefaults__["shard_bytes"] = SMALL_SHARD
    writer.ThreadPoolExecutor = InPlace
    if kind == "prepare":
        from tools import prepare
        return prepare.main

    from sesemi import cli, experiment  # noqa: F401 - all that a run imports
    return cli.main


def run_command(main, request: dict) -> None:
    """In the child: one command, to its end or its moment. Does not return."""
    from pipelines.common import errors
    signal.alarm(LIMIT_SECONDS)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    recorder = Recorder(Path(request["root"]), Path(request["report"]), request["kill_at"])
    status = 70
    try:
        recorder.start()
        status = errors.run(main, request["argv"])
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        recorder.write()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def serve(kind: str) -> None:
    """Fork a child for each request and answer by how it ended: what waitpid says, negative for a signal."""
    main = preload(kind)
    for line in sys.stdin:
        request = json.loads(line)
        threads = os.listdir("/proc/self/task")
        if len(threads) != 1:  # a lock that another thread holds would stay locked in the child
            raise RuntimeError(f"{len(threads)} threads in the process that forks, expected 1")
        child = os.fork()
        if child == 0:
            run_command(main, request)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
