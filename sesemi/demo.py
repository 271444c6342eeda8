"""The demonstration: python -m sesemi.demo trains on real digits with 20 labels, with and without the proxy branch."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.common import errors
from pipelines.common.errors import Parser
from pipelines.shards.manifest import MANIFEST

EXAMPLE = """example:
  python -m sesemi.demo --gpu none --seeds 2
"""
LABELS = 20
METHODS = ("supervised", "sesemi")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m sesemi.demo", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--gpu", metavar="N", help="number of the GPU, or none for the CPU (default: GPU 0 if any)")
    parser.add_argument("--steps", type=errors.positive_int, default=600, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=errors.positive_int, default=2, help="runs a method (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("shards"), help="prepared sets (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"),
                        help="folder for the runs; those of an earlier demo are replaced (default: %(default)s)")
    options = parser.parse_args(argv)

    from sesemi import experiment  # after parsing: --help should not wait for DALI
    from sesemi.config import Config
    from sesemi.device import parse_device
    from tools import prepare
    from tools.sources import digits
    device = parse_device(options.gpu)
    if not (options.data / "digits" / "train" / MANIFEST).exists():
        prepare.prepare(digits.read(), options.data / "digits", replace=True)
    results = {method: [] for method in METHODS}
    for seed in range(options.seeds):
        for method in METHODS:
            run = options.runs / f"{method}-seed{seed}"
            shutil.rmtree(run, ignore_errors=True)
            print(f"{method}, seed {seed}: {options.steps} steps with {LABELS} labels", flush=True)
            results[method].append(experiment.train(Config(
                dataset="digits", network="wrn-10-1", method=method, labels=LABELS, steps=options.steps,
                batch_unlabeled=8, seed=seed, device=device, data=str(options.data), run=str(run), eval_every=0)))
    print(table(results))
    return 0


def table(results: dict[str, list[dict]]) -> str:
    """Test errors side by side: a row a seed, then the mean."""
    runs = list(zip(*(results[method] for method in METHODS), strict=True))
    example = runs[0][0]
    lines = [f"test error on {example['test_images']} digits, {example['labels']} labels, {example['network']}, "
             f"{example['steps']} steps, {example['device']}",
             "", "".join(["seed".ljust(6), *(method.rjust(12) for method in METHODS)])]
    for seed, run in enumerate(runs):
        lines.append(f"{seed!s:6}" + "".join(f"{result['test_error']:12.3f}" for result in run))
    means = (sum(r["test_error"] for r in results[method]) / len(runs) for method in METHODS)
    lines.append("mean".ljust(6) + "".join(f"{mean:12.3f}" for mean in means))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(errors.run(main))
