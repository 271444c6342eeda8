"""The fuzzer itself, and what it says of the readers: quickly by default, at length with -m slow."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.mutate import MAX_BYTES
from tests.fuzz.run import mutated
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


def fuzz(*flags: str) -> tuple[subprocess.CompletedProcess, dict]:
    """Run the command in a process of its own, which has no torch in it; its last line, read."""
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *flags], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    return done, json.loads(done.stdout.splitlines()[-1])


def check(done: subprocess.CompletedProcess, found: dict, inputs: int) -> None:
    assert (found["crashes"], found["hangs"], done.returncode) == (0, 0, 0), done.stderr[-2000:]
    assert found["inputs"] >= inputs
    assert found["peak_mb"] < 500
    assert set(found["targets"]) == set(TARGETS)


def test_some_inputs_of_every_target():
    done, found = fuzz("--inputs", "120", "--seed", "7")
    check(done, found, 1500)
    assert found["baseline_mb"] < 100
    assert len(done.stdout.splitlines()) == len(TARGETS) + 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_many_inputs_of_every_target(seed):
    done, found = fuzz("--inputs", "4000", "--seed", str(seed))
    check(done, found, 50_000)
    for result in found["targets"].values():
        assert result["inputs"] >= 4000
        assert result["share"] >= 0.3, result
        assert result["accepted"] >= 20, result  # what is refused to the last input was not nearly valid


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_that_are_mutated_are_read(tmp_path, name):
    """In a process of its own, since readers wrap functions of the product."""
    code = "import sys; from pathlib import Path; from tests.fuzz.targets import TARGETS as all\n" \
        "target = all[sys.argv[1]]; read = target.reader(Path(sys.argv[2]))\n" \
        "for seed in target.seeds():\n past = []; read(seed, past); assert past"
    subprocess.run([sys.executable, "-c", code, name, tmp_path], cwd=ROOT, check=True)


def digest() -> str:
    """Of the first inputs of every target."""
    inputs = [mutated(name, 3, number) for name in TARGETS for number in range(40)]
    assert max(map(len, inputs)) <= 4 * MAX_BYTES
    return hashlib.sha256(repr(inputs).encode()).hexdigest()


def test_target_seed_and_number_make_an_input():
    code = "from tests.fuzz.test_fuzz import digest; print(digest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()
    assert mutated("tar", 3, 5) != mutated("tar", 4, 5)


BROKEN = """
import os, re, signal, sys
from tests.fuzz import run, targets
from tests.fuzz.__main__ import main
from tests.fuzz.target import Target
from pipelines.common.errors import DataError
def read(content, past):
    past.append(1)
    number = int(content)
    if number == 3: raise ValueError("of the reader")
    if number == 5: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 7: re.match("(a+)+b", "a" * 50)   # in C, where no handler of Python's is called
    if number % 2: raise DataError("refused")
targets.TARGETS.clear()
targets.TARGETS["x"] = Target(lambda: [b""], lambda draw, seed: b"", lambda path: read)
run.mutated = lambda target, seed, number: str(number).encode()
run.HANG_SECONDS = 0.2
sys.exit(main(["--inputs", "10", "--target", "x"]))
"""


def test_crashes_and_hangs_are_named_and_survived():
    done = subprocess.run([sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout.splitlines()[-1])["targets"]["x"]
    assert {key: found[key] for key in ("inputs", "crashes", "hangs", "refused", "accepted")} == {
        "inputs": 10, "crashes": 2, "hangs": 1, "refused": 2, "accepted": 5}
    lines = [line for line in done.stderr.splitlines() if line.startswith("x --seed")]
    assert lines[0].startswith("x --seed 0 --number 3: ValueError: of the reader")
    assert lines[1:] == ["x --seed 0 --number 5: killed by SIGSEGV", "x --seed 0 --number 7: hang"]
