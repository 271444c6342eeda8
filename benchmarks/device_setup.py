"""What the stages of benchmarks.device share: what they run on, how they time, and what they say."""

import json
import math
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import synchronize

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Setup:
    """What a stage is to measure.

    Args:
        device: a GPU; or the CPU, for a dry run that keeps everything tiny.
        data: the folder of prepared sets.
        network: that is profiled; None for the stage's own.
        networks: whose steps are timed; none for the stage's own.
    """

    device: torch.device
    data: Path
    network: str | None = None
    networks: tuple[str, ...] = ()

    @property
    def dry(self) -> bool:
        """Whether this is a dry run, whose figures mean nothing."""
        return self.device.type == "cpu"


class Report:
    """Prints a stage's results and appends them to ``results.jsonl``, a line of JSON each.

    Args:
        folder: of the results.
        stage: whose they are.
    """

    def __init__(self, folder: Path, stage: str):
        self._path, self._stage = folder / RESULTS, stage
        self.wrong = 0  # results so far that are not as they should be

    def note(self, name: str, value: object, ok: bool | None = None) -> None:
        """One result; ``ok`` is for what can be right or wrong."""
        line = {"stage": self._stage, "name": name, "value": _for_json(value)}
        if ok is not None:
            line["ok"] = bool(ok)
        self.wrong += line.get("ok") is False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(shown(line), flush=True)

    def attempt(self, name: str, work: Callable[..., object], *arguments: object) -> None:
        """Do a part of a stage. What it raises is printed and noted, so that the next part goes on."""
        start = time.perf_counter()
        try:
            work(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.note(name, f"{type(error).__name__}: {str(error)[:300]}", ok=False)
        print(f"      [{name}: {time.perf_counter() - start:.1f} s]", flush=True)


def shown(line: dict) -> str:
    """A result as people read it."""
    sign = {True: "ok", False: "WRONG"}.get(line.get("ok"), "")
    value = line["value"] if isinstance(line["value"], str) else json.dumps(line["value"], ensure_ascii=False)
    return f"{sign:5} {line['name']}: {value}"


def _for_json(value: object) -> object:
    """The value without infinities and NaN, which JSON does not know: they become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_for_json(part) for part in value] if isinstance(value, list) else value


def pace(step: Callable[[], object], device: torch.device, steps: int, warm: int = 10) -> list[float]:
    """Milliseconds a step, the first ``warm`` left out: of the host until all is queued, and in all."""
    for _ in range(warm):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    queued = time.perf_counter() - start
    synchronize(device)
    return [round(1e3 * seconds / steps, 5) for seconds in (queued, time.perf_counter() - start)]


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3) -> float:
    """The median time of ``work``, which need not wait for the device: on a GPU its own clock is read."""
    for _ in range(warm):
        work()
    synchronize(device)
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last) / 1e3)
        else:
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return statistics.median(found)
