"""Conversion beside a plain copy of the same bytes; of photos, beside decoding in one thread: benchmarks.prepare."""

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
from PIL import Image

from benchmarks.measure import machine, say, table
from pipelines.common import errors
from pipelines.common.errors import Parser
from pipelines.common.progress import progress_bar
from tools import prepare
from tools.sources import Source, cifar, tiny_images
from tools.sources import folder as folder_source
from tools.sources.images import load_image

EXAMPLE = """example:
  python -m benchmarks.prepare --cifar10 cifar-10-batches-py --tiny-images 400000
  python -m benchmarks.prepare --photos 20000 --repeats 3
"""
IMAGE_BYTES = 3072
PHOTO_SIZE = 64
CHUNK = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.prepare", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--cifar10", type=Path, metavar="PATH", help="CIFAR-10's extracted pickles or binaries")
    parser.add_argument("--tiny-images", type=errors.positive_int, default=400_000, metavar="N",
                        help="images of random pixels in a file like tiny_images.bin (default: %(default)s)")
    parser.add_argument("--photos", type=errors.positive_int, metavar="N",
                        help="instead, a folder of so many JPEG files of 64×64 to 500×375 pixels")
    parser.add_argument("--folder", type=Path, metavar="PATH", help="where to write (default: a temporary folder)")
    parser.add_argument("--repeats", type=errors.positive_int, default=5, help="of each (default: %(default)s)")
    options = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder)
        if options.photos:
            say({**machine(torch.device("cpu")), "photos": measure_photos(folder, options.photos, options.repeats)})
            return 0
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


def measure_photos(folder: Path, count: int, repeats: int) -> dict:
    """Medians of converting a folder of photos, and of decoding them in a loop in this thread, in turns."""
    files = make_photos(folder / "photos", count)
    convert, decode = [], []
    for _ in range(repeats):
        decode.append(timed(lambda: [load_image(file, PHOTO_SIZE) for file in files]))
        convert.append(timed(lambda: quietly(folder_source.read(folder / "photos", PHOTO_SIZE, test_fraction=0),
                                             folder / "sets")))
        shutil.rmtree(folder / "sets")
    ratios = [one / two for one, two in zip(decode, convert, strict=True)]
    found = {"images": count, "converted_per_second": round(count / statistics.median(convert), 1),
             "decoded_in_one_thread_per_second": round(count / statistics.median(decode), 1),
             "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    print(table([(f"{count:,}", f"{found['converted_per_second']:,.0f}",
                  f"{found['decoded_in_one_thread_per_second']:,.0f}", f"{found['ratio']:.2f}")],
                ("photos", "converted/s", "decoded in one thread/s", "ratio")))
    return found


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of 64×64 to 500×375 pixels in ten class folders: clouds of colour with some noise, as photos pack."""
    random, files = np.random.default_rng(0), []
    with progress_bar(count, " files", "making photos") as bar:
        for number in range(count):
            share = random.random()
            width, height = round(64 + 436 * share), round(64 + 311 * share)
            clouds = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
            noise = random.integers(-12, 13, (height, width, 1), np.int16)
            pixels = np.clip(np.asarray(clouds, np.int16) + noise, 0, 255).astype(np.uint8)
            file = folder / f"class{number % 10}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, quality=90)
            files.append(file)
            bar.update()
    return sorted(files)


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
