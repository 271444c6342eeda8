"""Fuzz the readers: python -m tests.fuzz [--inputs N] [--seed S] [--target NAME ...] [--number K]."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.common.errors import Parser, non_negative_int, positive_int
from pipelines.common.memory import peak_rss_bytes
from tests.fuzz.run import run
from tests.fuzz.targets import TARGETS

EXAMPLE = """examples:
  python -m tests.fuzz --inputs 2000
  python -m tests.fuzz --target tiff --seed 0 --number 1234     # one input again
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Prints a table, and one line of JSON; returns 1 where an input crashed or hung."""
    parser = Parser(prog="python -m tests.fuzz", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--inputs", type=positive_int, default=2000, help="for each target (default: %(default)s)")
    parser.add_argument("--seed", type=non_negative_int, default=0)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME",
                        help=", ".join(TARGETS))
    parser.add_argument("--number", type=non_negative_int, help="this input alone")
    options = parser.parse_args(argv)
    baseline = peak_rss_bytes() / 2**20
    first, count = (0, options.inputs) if options.number is None else (options.number, 1)
    results = [run(target, options.seed, first, count) for target in options.target]
    print(f"{'target':10}{'inputs':>9}{'past':>9}{'share':>7}{'refused':>9}{'accepted':>10}{'crashes':>9}{'hangs':>7}"
          f"{'peak MB':>9}")
    for result in results:
        print(f"{result.target:10}{result.inputs:>9,}{result.past:>9,}{result.share:>7.2f}{result.refused:>9,}"
              f"{result.accepted:>10,}{result.crashes:>9}{result.hangs:>7}{result.peak_mb:>9.0f}")
    total = {field: sum(getattr(result, field) for result in results) for field in ("inputs", "crashes", "hangs")}
    total |= {"peak_mb": round(max(result.peak_mb for result in results), 1), "baseline_mb": round(baseline, 1)}
    print(f"in all {total['inputs']:,} inputs, {total['crashes']} crashes, {total['hangs']} hangs, at most "
          f"{total['peak_mb']:.0f} MB, {total['baseline_mb']:.0f} MB before the first")
    targets = {result.target: asdict(result) | {"share": round(result.share, 4)} for result in results}
    print(json.dumps({"seed": options.seed, **total, "targets": targets}))
    return 1 if total["crashes"] or total["hangs"] else 0


if __name__ == "__main__":
    sys.exit(main())
