"""Shared fixtures: small shard sets of random images, and real CIFAR-10 in its users' layouts."""

import importlib.util
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.common import errors
from pipelines.shards import ShardSet
from pipelines.shards.writer import ShardWriter

LAYOUTS = Path(__file__).parents[2] / "shared" / "data" / "make_layouts.py"


def pytest_configure():
    # The background jobs of a script ignore Ctrl-C, and so would all that the tests start and then interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def random_images(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """uint8 (count, size, size, 3), every image its own."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def write_set(path: Path, images: np.ndarray, labels=None, classes=None, split="train", dataset="folder",
              shard_bytes=2**16) -> ShardSet:
    """A shard set of these images, in several small shards."""
    with ShardWriter(path, dataset=dataset, split=split, image_shape=images.shape[1:], classes=classes,
                     source={}, shard_bytes=shard_bytes) as writer:
        writer.append(images, labels)
        writer.finish()
    return ShardSet(path)


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> ShardSet:
    """300 labeled 8×8 images of three classes, in five shards or so."""
    images = random_images(300)
    return write_set(tmp_path_factory.mktemp("sets") / "train", images, np.arange(300) % 3, ("a", "b", "c"),
                     shard_bytes=64 * 8 * 8 * 3)


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A folder of prepared sets with one dataset, ``toy``: 60 training and 20 test images of 12×12, two classes."""
    for split, count, seed in (("train", 60, 1), ("test", 20, 2)):
        write_set(tmp_path / "shards" / "toy" / split, random_images(count, 12, seed), np.arange(count) % 2,
                  ("even", "odd"), split)
    return tmp_path / "shards"


@pytest.fixture(scope="session")
def cifar_layouts(tmp_path_factory) -> Path:
    """Real CIFAR-10 as pickles and binaries."""
    if not LAYOUTS.exists():
        pytest.skip(f"needs real CIFAR-10: {LAYOUTS} is absent")
    out = tmp_path_factory.mktemp("c10")
    subprocess.run([sys.executable, LAYOUTS, out, "python", "binary"], check=True)
    return out


@pytest.fixture(scope="session")
def layouts_module():
    """make_layouts.py itself, for pickles as Python 2 wrote them."""
    if not LAYOUTS.exists():
        pytest.skip(f"needs the layouts of real data sets: {LAYOUTS} is absent")
    spec = importlib.util.spec_from_file_location("make_layouts", LAYOUTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(capsys):
    """Run a command's main in this process; returns (exit status, stdout, stderr)."""
    def call(main, *argv) -> tuple[int, str, str]:
        try:
            status = errors.run(main, [str(word) for word in argv])
        except SystemExit as stop:  # argparse leaves this way
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err
    return call


class TooLong(BaseException):
    """Not an Exception, lest the product take it for damage in a file."""


@pytest.fixture
def frugal():
    """A context in which memory may grow by ``mb``, at its peak, and at most ten seconds pass.

    The address space is limited meanwhile, so that what is not refused fails, and not the machine.
    """
    def status(field: str) -> int:
        return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    @contextmanager
    def context(mb: int = 64):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        except OSError as error:
            pytest.skip(f"needs to reset the peak of its memory: {error}")

        def stop(*_):
            raise TooLong
        before, limits, handler = status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS), \
            signal.signal(signal.SIGALRM, stop)
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + 4 * 2**30, limits[1]))
        signal.setitimer(signal.ITIMER_REAL, 10)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert (status("VmHWM") - before) / 2**20 < mb
    return context
