"""What needs no DALI imports none; the format and the plumbing need no PyTorch either."""

import pkgutil
import subprocess
import sys

import pytest

import pipelines.common
import pipelines.shards
import sesemi

LOADERS_USERS = {"sesemi.experiment", "sesemi.run", "sesemi.figure", "sesemi.__main__"}


def modules(package) -> list[str]:
    return [package.__name__, *(one.name for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]


def imported(names: list[str]) -> set[str]:
    """Top-level packages, and DALI, that are there after importing these modules in a fresh process."""
    program = f"import sys\nfor name in {names}: __import__(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_batches_the_format_and_sesemi_import_no_dali():
    names = ["pipelines.batch", "pipelines.sampling", "pipelines.whitening", "pipelines.windows", "pipelines.kernel",
             *modules(pipelines.shards), *modules(pipelines.common),
             *(name for name in modules(sesemi) if name not in LOADERS_USERS)]
    assert "sesemi.trainer" in names
    assert "sesemi.cli" in names
    assert not [name for name in imported(names) if name.startswith("nvidia.dali")]


@pytest.mark.parametrize("package", [pipelines.shards, pipelines.common])
def test_the_format_and_the_plumbing_import_no_torch(package):
    assert not imported(modules(package)) & {"torch", "nvidia.dali", "numba"}


@pytest.mark.parametrize("command", ["sesemi train", "sesemi evaluate", "sesemi.demo", "sesemi.figure", "tools.prepare",
                                     "tools.verify"])
def test_help_imports_neither_torch_nor_dali(command):
    """So that it takes a moment, not seconds."""
    program = f"""
import runpy, sys
module, *sys.argv[1:] = {[*command.split(), "--help"]}
sys.argv[0] = module
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "usage: " in done.stdout
    assert not {"torch", "nvidia.dali", "numba"} & set(done.stdout.splitlines()[-1].split())
