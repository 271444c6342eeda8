"""Kill conversion or training by SIGKILL at chosen moments and check what is left: python -m tests.kill prepare|train.

Every moment has a number; one that went wrong is run again by --moment. The last line of the output is JSON.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence

from pipelines.common import errors
from pipelines.common.errors import Parser
from pipelines.common.progress import progress_bar
from tests.kill.harness import Case, Result, opened
from tests.kill.prepare import Prepare
from tests.kill.train import Train

SUBJECTS = {"prepare": Prepare, "train": Train}
EXAMPLE = """examples:
  python -m tests.kill prepare --kills 50
  python -m tests.kill prepare --moment force:7466
  python -m tests.kill train --moment train:48652 train:3280+5034
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m tests.kill", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("command", choices=SUBJECTS)
    parser.add_argument("--kills", type=errors.positive_int, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=errors.non_negative_int, default=0, metavar="N",
                        help="of the choice of moments (default: 0)")
    parser.add_argument("--moment", type=_case, nargs="+", metavar="SCENARIO:N[+N]",
                        help="these moments instead: the scenario, the moment, and that of a kill of the next start")
    options = parser.parse_args(argv)
    start = time.monotonic()
    with opened(SUBJECTS[options.command]) as harness:
        moments = {scenario: counted.moments for scenario, counted in harness.counted.items()}
        for case in options.moment or ():
            if case.moment > len(moments.get(case.scenario, ())):
                known = " or ".join(f"{scenario}:1 to {len(all_of)}" for scenario, all_of in moments.items())
                parser.error(f"--moment: found {case}, expected {known}")
        cases = options.moment or harness.choose(options.kills, options.seed)
        results = []
        with progress_bar(len(cases), " kills", options.command) as bar:
            for case in cases:
                results.append(harness.kill(case, options.seed))
                bar.set_postfix_str(f"{_failed(results)} went wrong", refresh=False)
                bar.update()
    print_tables(results)
    for result in results:
        if result.problems:
            print(f"\n{result.moment.function}, {result.moment.line}"
                  + (f", at {result.moment.what}" if result.moment.what != "line" else "")
                  + f"\n  python -m tests.kill {options.command} --moment {result.case}")
            print("".join(f"  {problem}\n" for problem in dict.fromkeys(result.problems)), end="")
    print(json.dumps({
        "command": options.command, "kills": len(results),
        "between_open_and_rename": sum(result.moment.between is not None for result in results),
        "survived": len(results) - _failed(results), "moments": sum(map(len, moments.values())),
        "seconds": round(time.monotonic() - start, 1)}))
    return 1 if _failed(results) else 0


def print_tables(results: Sequence[Result]) -> None:
    """What was hit: files between their opening and their rename, and where in the program, by scenario."""
    between = Counter(result.moment.between for result in results if result.moment.between)
    print(f"{between.total()} of {len(results)} kills between a file's opening and its rename")
    for path, count in sorted(between.items()):
        print(f"  {count:5}  {path}")
    places, failed = Counter(), Counter()
    for result in results:
        module = result.moment.function.partition(" ")[0]
        row = result.case.scenario + (", then its next start" if result.case.second else ""), module
        places[row] += 1
        failed[row] += bool(result.problems)
    print(f"{'kills':>7}  {'wrong':>5}  where")
    for (scenario, module), count in sorted(places.items()):
        print(f"{count:7}  {failed[scenario, module]:5}  {scenario}: {module}")
    kinds = Counter(kind for result in results for kind in {problem.partition(" ")[0] for problem in result.problems})
    for kind, count in sorted(kinds.items()):
        print(f"violated {kind} {count} times")


def _failed(results: Sequence[Result]) -> int:
    return sum(bool(result.problems) for result in results)


def _case(text: str) -> Case:
    try:
        return Case.parse(text)
    except (AttributeError, ValueError):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected SCENARIO:N or SCENARIO:N+N") from None


if __name__ == "__main__":
    sys.exit(errors.run(main))
