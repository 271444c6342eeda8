"""What is compiled is kept, and is compiled again where what was kept is of no use."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from pipelines import kernels
sums = np.empty((2, 1, 1), np.float32)
kernels.gcn_sums(np.array([[1, 2, 3, 6]], np.uint8), *sums)
assert sums.ravel().tolist() == [3, np.float32(14 ** 0.5)], sums
"""


@pytest.mark.parametrize("damage", ["none", "index", "code", "a file where the folder was"])
def test_a_damaged_cache_is_compiled_again(tmp_path, damage):
    cache = tmp_path / "cache"

    def run() -> None:
        subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, check=True)
    run()
    kept = {suffix: list(cache.rglob(f"*.{suffix}")) for suffix in ("nbi", "nbc")}
    assert len(kept["nbi"]) == len(kept["nbc"]) == 2  # the random numbers, and the sums
    if damage == "a file where the folder was":
        cache.rename(tmp_path / "old")
        cache.write_text("")
    elif damage != "none":
        for path in kept["nbi" if damage == "index" else "nbc"]:
            path.write_bytes(path.read_bytes()[:40])
    run()
