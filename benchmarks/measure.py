"""How things are timed: warmed up, alternating, medians of repeats; and what they were timed on."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sesemi.device import device_name
from sesemi.runlog import versions


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_per_second(step: Callable[[], object], device: torch.device, seconds: float, unit: int = 10,
                     settle: Callable[[], None] | None = None) -> float:
    """Call ``step`` for about so many seconds; how many a second were done.

    ``unit`` steps are done between looks at the clock. What they left to be done counts too: the device's work, and
    what ``settle`` waits for.
    """
    synchronize(device)
    start = time.perf_counter()
    steps = 0
    while True:
        for _ in range(unit):
            step()
        steps += unit
        if time.perf_counter() - start > seconds:
            if settle is not None:
                settle()
            synchronize(device)
            return steps / (time.perf_counter() - start)


def alternate(candidates: Mapping[str, Callable[[], object]], device: torch.device, seconds: float, repeats: int,
              unit: int = 10, settle: Callable[[], None] | None = None) -> dict[str, float]:
    """Steps a second of each candidate: the median of ``repeats`` turns, taken in rounds so that a machine that slows
    down slows all of them; ``unit`` and ``settle`` as for ``steps_per_second``, so that no turn does another's work."""
    for step in candidates.values():
        steps_per_second(step, device, seconds / 2, unit, settle)  # caches, workers, prefetching
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, step in candidates.items():
            found[name].append(steps_per_second(step, device, seconds, unit, settle))
    return {name: statistics.median(values) for name, values in found.items()}


def machine(device: torch.device) -> dict:
    """What a figure belongs to: device, processor, versions."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return {"device": device_name(device), "cpu": cpu, "versions": versions()}


def table(rows: list[tuple], head: tuple) -> str:
    """Rows under a head, aligned, as Markdown."""
    cells = [tuple(map(str, row)) for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def say(result: dict) -> None:
    """The last line of a benchmark: its result as JSON."""
    print(json.dumps(result), flush=True)
