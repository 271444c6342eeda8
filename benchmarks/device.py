"""For a new GPU: is it right, how fast is it, and what bounds it: python -m benchmarks.device."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.device_setup import RESULTS, Report, Setup, shown
from pipelines.common import errors
from pipelines.common.errors import Parser, UsageError
from sesemi.config import Config
from sesemi.device import parse_device

# By name: the module that has a function of that name, and what it does. A module is imported when its stage is run, so
# that env and random need no DALI.
STAGES = {
    "env": ("device_env", "versions, rates of copies and of matrix products, cost of a launch, whether DALI runs"),
    "parity": ("device_parity", "batches against the CPU's, noise, two runs, races, resuming, each precision"),
    "loader": ("device_speed", "the loader alone, by batch size and by what is left out"),
    "profile": ("device_profile", "fed steps: kernels, the gaps between them, waits of the host"),
    "variants": ("device_speed", "the step: eager, a CUDA graph, fed, on a fixed batch; a plain float32 loop"),
    "compiled": ("device_speed", "the same with torch.compile; minutes"),
    "random": ("device_data", "a data set of random pixels, random32, for whoever has no CIFAR-10"),
    "whiten": ("device_data", "whiten RUN: fit the whitening of a run's folder anew")}
TABLE = "table"
USUAL = ("env", "parity", "loader", "profile", "variants")
EXAMPLE = "\n".join([
    "example:", "  python -m benchmarks.device --gpu 0", "  python -m benchmarks.device env parity --gpu 0",
    "", "stages:", *(f"  {name:9} {line}" for name, (_, line) in STAGES.items()),
    f"  {TABLE:9} all results so far, a line each; printed last, too, where several stages are named", "",
    "Exit status 1 where a result of this call is WRONG."])


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.device", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"default: {' '.join(USUAL)}, and the table")
    parser.add_argument("--gpu", default=os.environ.get("GPU") or "0", metavar="N",
                        help="number of the GPU; none for a dry run of the stages on the CPU, whose figures mean "
                             "nothing (default: $GPU, else 0)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "runs/device"), metavar="FOLDER",
                        help=f"where results are appended to {RESULTS} (default: $OUT, else runs/device)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DATA") or "shards"), metavar="FOLDER",
                        help="prepared sets; random ones are added where there is no CIFAR-10 (default: $DATA, else "
                             "shards)")
    parser.add_argument("--network", metavar="NAME",
                        help="of profile, variants and compiled (default: $NETWORK for profile and $NETWORKS for the "
                             "others, else convnet; for variants wrn-28-2, too)")
    options = parser.parse_intermixed_args(argv)
    calls = parse_stages(options.stages or [*USUAL, TABLE])
    networks = [options.network] if options.network else os.environ.get("NETWORKS", "").split()
    network = options.network or os.environ.get("NETWORK") or None
    for name in (*networks, *([network] if network else [])):
        Config("any", network=name)  # refuses a name that is none
    wrong = 0
    if stages := [call for call in calls if call[0] != TABLE]:
        device = torch.device(parse_device(options.gpu))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        setup = Setup(device, options.data, network, tuple(networks))
        if setup.dry:
            print("a dry run on the CPU: its figures mean nothing, and what is called a CUDA graph is none")
        for stage, *arguments in stages:
            print(f"==== {stage}", flush=True)
            report = Report(options.out, stage)
            report.attempt(stage, run_stage, stage, setup, report, *arguments)
            wrong += report.wrong
    if len(calls) > 1 or not stages:
        print_table(options.out / RESULTS)
    return 1 if wrong else 0


def parse_stages(words: Sequence[str]) -> list[list[str]]:
    """Stages, each with its arguments, from the words of the command line."""
    calls, rest = [], list(words)
    while rest:
        stage = rest.pop(0)
        if stage not in STAGES and stage != TABLE:
            raise UsageError(f"no stage {stage!r}, expected some of {' '.join(STAGES)} {TABLE}")
        if stage == "whiten" and not rest:
            raise UsageError("whiten: no folder of a run found behind it")
        calls.append([stage, rest.pop(0)] if stage == "whiten" else [stage])
    return calls


def run_stage(stage: str, setup: Setup, report: Report, *arguments: str) -> None:
    """Run one stage by its name."""
    module, _ = STAGES[stage]
    getattr(importlib.import_module(f"benchmarks.{module}"), stage)(setup, report, *arguments)


def print_table(path: Path) -> None:
    """All results so far, a line each. (Not ``measure.table``, which would make all as wide as the widest.)"""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    print("\n==== results")
    for line in lines:
        print(f"{line['stage']:8} {shown(line)[:300]}")


if __name__ == "__main__":
    sys.exit(errors.run(main))
