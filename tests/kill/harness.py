"""Counts a command's moments, kills it at chosen ones and checks what is left and what the next start makes of it."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Protocol

from tests.kill.moments import Event, Moment, choose, events_of, tagged

ROOT = Path(__file__).parents[2]
TWICE_SHARE = 0.2  # of the kills: the command that goes on is killed too
LEFTOVERS = re.compile(r"\.partial$|\.old$|^\.")  # names of which nothing may stay behind
# Torch with one thread, since the process that forks may have no other; one hash seed, so that moments keep numbers.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, or minus a signal's number; what it printed; what it noted."""

    status: int
    text: str
    report: dict


@dataclass(frozen=True)
class Case:
    """A command on a folder that is laid out by ``scenario``, killed at ``moment``; the next one at ``second``."""

    scenario: str
    moment: int
    second: int | None = None

    def __str__(self) -> str:
        return f"{self.scenario}:{self.moment}" + (f"+{self.second}" if self.second else "")

    @classmethod
    def parse(cls, text: str) -> "Case":
        """What ``str`` made; ValueError for anything else."""
        scenario, moment, second = re.fullmatch(r"([a-z]+):(\d+)(?:\+(\d+))?", text).groups()
        return cls(scenario, int(moment), None if second is None else int(second))


@dataclass
class Result:
    """A case that was run: the moment of its last kill, and all that was wrong afterwards."""

    case: Case
    moment: Moment
    problems: list[str] = field(default_factory=list)


class Subject(Protocol):
    """A command to be killed, and what must hold after it was.

    ``work`` is the folder that is watched; ``shares`` says what part of the kills each scenario gets.
    """

    kind: str
    work: Path
    shares: dict[str, float]

    def set_up(self, run: Callable[[Sequence[str]], Outcome]) -> None:
        """What has to be made once, by commands that ``run`` runs and nobody kills."""

    def lay(self, scenario: str) -> None:
        """Make ``work`` what it is before the command."""

    def command(self, scenario: str) -> list[str]:
        """The command to give for what ``work`` holds now."""

    def finished(self, scenario: str, outcome: Outcome) -> None:
        """Remember ``work`` as what a run leaves that nobody killed."""

    def before_kill(self) -> None:
        """Look at what ``work`` holds before a command that will be killed."""

    def after_kill(self, scenario: str, events: Sequence[Event]) -> Iterator[str]:
        """What is wrong in ``work`` after a kill; ``events`` had happened before it."""

    def after_rerun(self, scenario: str, outcome: Outcome, killed: "Folder") -> Iterator[str]:
        """What is wrong after the next start, which found ``killed``."""


class Victim:
    """The process that forks commands; see ``tests.kill.victim``."""

    def __init__(self, kind: str, root: Path, folder: Path):
        self._root, self._output, self._report = root, folder / "output.txt", folder / "report.json"
        self._process = subprocess.Popen([sys.executable, "-m", "tests.kill.victim", kind], cwd=ROOT, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env=os.environ | ENVIRONMENT)

    def run(self, argv: Sequence[str], kill_at: int | None = None) -> Outcome:
        """Run a command to its end, counting its moments, or to moment ``kill_at``."""
        self._report.unlink(missing_ok=True)
        request = {"argv": list(argv), "root": str(self._root), "output": str(self._output),
                   "report": str(self._report), "kill_at": kill_at}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that forks the commands has ended; its last words are above")
        text = self._output.read_text().replace(f"{self._root}/", "")
        return Outcome(json.loads(answer)["status"], text, json.loads(self._report.read_text()))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Folder:
    """A folder's files by their paths inside it, bytes and all, and its folders."""

    def __init__(self, path: Path):
        paths = sorted(path.rglob("*"))
        self.files = {str(p.relative_to(path)): p.read_bytes() for p in paths if p.is_file()}
        self.names = [str(p.relative_to(path)) for p in paths]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and (self.files, self.names) == (other.files, other.names)

    __hash__ = None

    @property
    def leftovers(self) -> list[str]:
        """Temporary files and folders."""
        return [name for name in self.names if LEFTOVERS.search(Path(name).name)]

    def differences(self, other: "Folder") -> str:
        """Names of what differs, for messages."""
        differing = [name for name in sorted({*self.names, *other.names})
                     if (name in self.names) != (name in other.names) or self.files.get(name) != other.files.get(name)]
        return ", ".join(differing[:6]) + (f" and {len(differing) - 6} more" if len(differing) > 6 else "")


def copy_folder(source: Path, target: Path) -> None:
    """Copy in the order of the names, so that listing any copy gives one order, and moments keep their numbers."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copied = target / path.relative_to(source)
        copied.mkdir() if path.is_dir() else shutil.copyfile(path, copied)


@dataclass
class Counted:
    """What a run that nobody killed noted."""

    moments: list[Moment]
    events: list[Event]


class Harness:
    """Kills a subject's command. Use as a context manager: it owns a process and a folder for copies."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self._folder = tempfile.TemporaryDirectory()
        self._saved = Path(self._folder.name) / "saved"
        self._victim = Victim(subject.kind, subject.work, Path(self._folder.name))
        self.counted: dict[str, Counted] = {}

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *exception) -> None:
        self._victim.close()
        self._folder.cleanup()

    def count(self) -> None:
        """Run each scenario's command once, unkilled; RuntimeError where one fails even so."""
        self.subject.set_up(self._victim.run)
        for scenario in self.subject.shares:
            self.subject.lay(scenario)
            outcome = self._victim.run(self.subject.command(scenario))
            if outcome.status:
                raise RuntimeError(f"{scenario}: status {outcome.status} without any kill: {outcome.text}")
            if others := outcome.report["others"]:
                raise RuntimeError(f"{scenario}: {', '.join(others)} written by another thread than the main one, "
                                   f"whose moments are not counted")
            self.counted[scenario] = Counted(tagged(outcome.report), events_of(outcome.report))
            self.subject.finished(scenario, outcome)

    def choose(self, kills: int, seed: int) -> list[Case]:
        """The cases of a session; of those killed twice, the second moment is drawn when it can be counted."""
        shares, cases, left = self.subject.shares, [], kills
        for number, (scenario, share) in enumerate(shares.items()):
            count = left if number == len(shares) - 1 else round(kills * share)
            left -= count
            chosen = choose(self.counted[scenario].moments, count, seed + number)
            twice = random.Random(seed + number).sample(range(count), round(count * TWICE_SHARE))
            cases += [Case(scenario, moment.number, 0 if index in twice else None)
                      for index, moment in enumerate(chosen)]
        return cases

    def kill(self, case: Case, seed: int = 0) -> Result:
        """Run one case: lay, kill, check, start again, check. ``second`` 0 means: draw the second moment by ``seed``.

        The second moment is counted in a copy of what the first kill left.
        """
        subject, scenario = self.subject, case.scenario
        counted = self.counted[scenario]
        result = Result(case, counted.moments[case.moment - 1])
        subject.lay(scenario)
        self._kill(case.moment, counted, result)
        if case.second is None:
            self._start_again(scenario, result)
            return result
        shutil.rmtree(self._saved, ignore_errors=True)
        copy_folder(subject.work, self._saved)
        self._lay_saved()
        outcome = self._start_again(scenario, result)
        if outcome.status:
            return result  # nothing to kill: it does not even start
        again = Counted(tagged(outcome.report), events_of(outcome.report))
        second = case.second or self._second(again, result.moment, seed + case.moment).number
        result.case = Case(scenario, case.moment, second)
        result.moment = again.moments[second - 1]
        self._lay_saved()
        self._kill(second, again, result)
        self._start_again(scenario, result)
        return result

    def _second(self, again: Counted, first: Moment, seed: int) -> Moment:
        """A moment of the next start: between opening and rename where the first was, so that their number stays."""
        chosen = choose(again.moments, 10, seed)
        alike = [moment for moment in chosen if moment.between] if first.between else chosen
        return random.Random(seed).choice(alike or chosen)

    def _lay_saved(self) -> None:
        shutil.rmtree(self.subject.work)
        copy_folder(self._saved, self.subject.work)

    def _kill(self, number: int, counted: Counted, result: Result) -> None:
        """Kill at a moment, see that it was this moment and no other, and check what is left."""
        scenario, moment = result.case.scenario, counted.moments[number - 1]
        self.subject.before_kill()
        outcome = self._victim.run(self.subject.command(scenario), number)
        before = [event for event in counted.events if event.number <= number]
        events = events_of(outcome.report)
        if outcome.status != -SIGKILL:
            result.problems.append(f"harness: ended with {outcome.status} instead of {-SIGKILL}: {outcome.text}")
        elif events != before:
            result.problems.append(f"harness: other changes before the kill than counted: {events[-1:]} last, "
                                   f"{before[-1:]} expected")
        else:
            function, line, what = outcome.report["places"][-1]
            if (function, line, what) != (moment.function, moment.line, moment.what):
                result.problems.append(f"harness: killed in {function} at {line}, counted as {moment.function} at "
                                       f"{moment.line}")
        done = [event for event in events if event.number < number]  # that at the moment itself had not happened
        result.problems += self.subject.after_kill(scenario, done)

    def _start_again(self, scenario: str, result: Result) -> Outcome:
        killed = Folder(self.subject.work)
        outcome = self._victim.run(self.subject.command(scenario))
        result.problems += self.subject.after_rerun(scenario, outcome, killed)
        return outcome


@contextmanager
def opened(make: Callable[[Path], Subject]) -> Iterator[Harness]:
    """A harness that has counted, on a subject ``make(folder)`` in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, Harness(make(Path(folder))) as harness:
        harness.count()
        yield harness
