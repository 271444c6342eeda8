"""Conversion beside a plain copy of the same bytes: python -m benchmarks.prepare."""

import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import machine, say, table
from pipelines.common import errors
from pipelines.common.errors import Parser
from tools import prepare
from tools.sources import Source, cifar, tiny_images

EXAMPLE = """example:
  python -m benchmarks.prepare --cifar10 cifar-10-batches-py --tiny-images 400000
"""
IMAGE_BYTES = 3072
CHUNK = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.prepare", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--cifar10", type=Path, metavar="PATH", help="CIFAR-10's extracted pickles or binaries")
    parser.add_argument("--tiny-images", type=errors.positive_int, default=400_000, metavar="N",
                        help="images of random pixels in a file like tiny_images.bin (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="PATH", help="where to write (default: a temporary folder)")
    parser.add_argument("--repeats", type=errors.positive_int, default=5, help="of each (default: %(default)s)")
    options = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder)
        if options.cifar10:
            files = [path for path in sorted(options.cifar10.iterdir()) if path.is_file()]
            found["cifar10"] = measure(lambda: cifar.read10(options.cifar10), files, 60_000, folder, options.repeats)
        raw = folder / "tiny_images.bin"
        random = np.random.default_rng(0)
        with open(raw, "wb") as file:
            for first in range(0, options.tiny_images, 4096):
                file.write(random.bytes(min(4096, options.tiny_images - first) * IMAGE_BYTES))
        found["tinyimages"] = measure(lambda: tiny_images.read(raw, "all"), [raw], options.tiny_images, folder,
                                      options.repeats)
    rows = [(name, f"{one['images_per_second']:,.0f}", f"{one['bytes_per_second'] / 1e6:,.0f}",
             f"{one['copy_bytes_per_second'] / 1e6:,.0f}", f"{one['ratio']:.2f}") for name, one in found.items()]
    print(table(rows, ("source", "images/s", "MB/s", "plain copy, MB/s", "conversion / copy")))
    say({**machine(torch.device("cpu")), "sources": found})
    return 0


def measure(source, files: list[Path], images: int, folder: Path, repeats: int) -> dict:
    """Medians of converting and of copying the same files, in turns, each synced to the disk."""
    size = sum(path.stat().st_size for path in files)
    convert, copy = [], []
    for _ in range(repeats):
        for seconds, work, out in ((copy, lambda out: plain_copy(files, out), folder / "copy"),
                                   (convert, lambda out: quietly(source(), out), folder / "sets")):
            seconds.append(timed(lambda work=work, out=out: work(out)))
            shutil.rmtree(out)
    seconds, copy_seconds = statistics.median(convert), statistics.median(copy)
    return {"images_per_second": round(images / seconds, 1), "bytes_per_second": round(size / seconds),
            "copy_bytes_per_second": round(size / copy_seconds), "ratio": round(copy_seconds / seconds, 3)}


def timed(work) -> float:
    """Seconds that ``work()`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_copy(files: list[Path], folder: Path) -> None:
    """Read and write every byte, as a conversion must (``cp`` may have the disk share them), and sync."""
    folder.mkdir(exist_ok=True)
    for path in files:
        with open(path, "rb") as source, open(folder / path.name, "wb") as target:
            while piece := source.read(CHUNK):
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())


def quietly(source: Source, out: Path) -> None:
    """The conversion as the command does it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare.prepare(source, out)


if __name__ == "__main__":
    sys.exit(errors.run(main))
