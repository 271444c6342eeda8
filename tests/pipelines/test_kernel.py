"""What is compiled is kept, and is compiled again where what was kept is of no use."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from pipelines import kernel
import numba
pair = numba.types.UniTuple(numba.types.float32, 2)
contrast = kernel.compiled(numba.njit, pair(numba.types.uint8[::1]), kernel._contrast)
assert contrast(np.array([1, 2, 3, 6], np.uint8)) == (3, np.float32(14 ** 0.5))
"""


@pytest.mark.parametrize("damage", ["none", "index", "code", "a file where the folder was"])
def test_a_damaged_cache_is_compiled_again(tmp_path, damage):
    cache = tmp_path / "cache"

    def run() -> None:
        subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, check=True)
    run()
    kept = {suffix: list(cache.rglob(f"*.{suffix}")) for suffix in ("nbi", "nbc")}
    assert len(kept["nbi"]) == len(kept["nbc"]) == 1
    if damage == "a file where the folder was":
        cache.rename(tmp_path / "old")
        cache.write_text("")
    elif damage != "none":
        for path in kept["nbi" if damage == "index" else "nbc"]:
            path.write_bytes(path.read_bytes()[:40])
    run()


def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    """In full: the two functions of the operator, what they call, and nothing that is compiled anew."""
    program = """
from numba.core import caching
from pipelines import kernel
found = []
real = caching.Cache.load_overload
caching.Cache.load_overload = lambda *given: found.append(real(*given)) or found[-1]
kernel.operator("uint8")
print(sum(one is not None for one in found), sum(one is None for one in found))
"""

    def run() -> str:
        return subprocess.run([sys.executable, "-c", program], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
                              check=True, capture_output=True, text=True).stdout.split()
    assert run() == ["0", "4"]
    assert run() == ["4", "0"]
