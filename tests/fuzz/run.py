"""Runs a target's inputs in a process of its own, so that crashes below Python and hangs are seen and survived.

Each input has ten seconds of the kernel's alarm clock, which kills the process whatever it is doing; the next process
goes on behind the input that did it.
"""

import logging
import mmap
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.common.errors import DataError, UsageError
from pipelines.common.progress import progress_bar
from tests.fuzz.targets import TARGETS

HANG_SECONDS = 10
FIELDS = ("inputs", "past", "refused", "accepted", "crashes", "hangs")


@dataclass(frozen=True)
class Result:
    """What became of a target's inputs; ``past`` got past the header, ``peak_mb`` is resident memory."""

    target: str
    inputs: int
    past: int
    refused: int
    accepted: int
    crashes: int
    hangs: int
    peak_mb: float

    @property
    def share(self) -> float:
        """Of inputs that got past the header."""
        return self.past / max(1, self.inputs)


def mutated(target: str, seed: int, number: int) -> bytes:
    """An input, by these three alone."""
    draw = random.Random(f"{target} {seed} {number}")
    chosen = TARGETS[target]
    return chosen.mutate(draw, draw.choice(chosen.seeds()))


def run(target: str, seed: int, first: int, count: int, quiet: bool = False) -> Result:
    """Run inputs ``first`` to ``first + count`` of a target; crashes and hangs are said on stderr."""
    counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")  # shared with the processes forked below
    chosen = TARGETS[target]
    chosen.seeds()
    peak = 0
    with TemporaryDirectory(prefix="fuzz-") as folder:
        while counters[0] < count:
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                sys.stderr = os.fdopen(os.dup(2), "w")
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others talk there
                with progress_bar(count, " inputs", target, initial=counters[0], disable=quiet) as bar:
                    _inputs(target, seed, first, count, Path(folder), counters, bar.update)
                os._exit(0)
            _, status, usage = os.wait4(child, 0)
            peak = max(peak, usage.ru_maxrss)
            if os.WIFSIGNALED(status):
                hang = os.WTERMSIG(status) == signal.SIGALRM
                counters[5 if hang else 4] += 1
                _say(target, seed, first + counters[0] - 1,
                     "hang" if hang else f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
            elif status:
                raise RuntimeError(f"{target}: the fuzzer itself failed at input {first + counters[0] - 1}")
    return Result(target, *counters[:6].tolist(), peak_mb=peak / 1024)


def _inputs(target: str, seed: int, first: int, count: int, folder: Path, counters: memoryview,
            progress: Callable[[int], object]) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    read = TARGETS[target].reader(folder)
    while counters[0] < count:
        number = first + counters[0]
        counters[0] += 1
        content = mutated(target, seed, number)
        past = []
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            read(content, past)
            counters[3] += 1
        except (DataError, UsageError) as error:
            counters[2] += 1
            if len(str(error)) > 4000 + len(str(folder)):
                counters[4] += 1
                _say(target, seed, number, f"a message of {len(str(error)):,} characters")
        except BaseException as error:  # also MemoryError, RecursionError and what C code makes up
            counters[4] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            _say(target, seed, number, f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:"
                                       f"{place.lineno})")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        counters[1] += bool(past)
        progress(1)


def _say(target: str, seed: int, number: int, what: str) -> None:
    print(f"\n{target} --seed {seed} --number {number}: {what}", file=sys.stderr, flush=True)
