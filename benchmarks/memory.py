"""The loader's memory, start and speed from fifty thousand images to 79 million, and training under a limit:
python -m benchmarks.memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import machine, say, table
from pipelines.common import errors
from pipelines.common.errors import DataError, Parser, UsageError
from pipelines.common.memory import peak_rss_bytes
from pipelines.common.progress import progress_bar
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import class_balanced_subset
from pipelines.shards import ShardSet, Subset
from pipelines.shards.writer import ShardWriter
from pipelines.whitening import Preprocess
from sesemi.device import cpu_cores, parse_device

EXAMPLE = """examples:
  python -m benchmarks.memory --gpu none
  python -m benchmarks.memory --gpu none --train "--network wrn-10-1 --extra all --steps 200" --limit-gib 2
  python -m benchmarks.memory --gpu none --real-gib 3 --limit-gib 2
"""
ALL = 79_302_017
SIZES = (50_000, 1_000_000, 10_000_000, ALL)
IMAGE_SHAPE, IMAGE_BYTES = (32, 32, 3), 3072
LABELED = 4000
CGROUP = Path("/sys/fs/cgroup")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.memory", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--gpu", metavar="N", help="number of the GPU, or none for the CPU (default: GPU 0 if any)")
    parser.add_argument("--dataset", default="cifar10", metavar="NAME",
                        help=f"prepared set, of which {LABELED:,} images are the labeled ones (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("shards"), help="prepared sets (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="PATH",
                        help="where to put the raw file, sparse unless --real-gib (default: a temporary folder)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--limit-gib", type=float, metavar="GIB",
                        help="memory limit, page cache included, by a control group (needs the right to make one)")
    parser.add_argument("--real-gib", type=float, metavar="GIB",
                        help="a file of random pixels of this size instead of the sparse ones")
    parser.add_argument("--train", metavar="FLAGS",
                        help="instead of the loader, python -m sesemi train with these flags, under the limit")
    parser.add_argument("--one", type=Path, help="internal: measure the loader over this set, in this process")
    options = parser.parse_args(argv)
    device = torch.device(parse_device(options.gpu) or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if options.one:
        say(measure(options.one, options.data / options.dataset / "train", device, options.seconds))
        return 0
    result = {**machine(device), "limit_gib": options.limit_gib}
    limit = None if options.limit_gib is None else int(options.limit_gib * 2**30)
    if options.train:
        command = [sys.executable, "-m", "sesemi", "train", *options.train.split()]
        start = time.perf_counter()
        _, peak = run(command, limit)
        say({**result, "train": options.train, "seconds": round(time.perf_counter() - start, 1),
             "peak_with_page_cache": peak})
        return 0
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count, path in sets(Path(folder), options.real_gib):
            command = [sys.executable, "-m", "benchmarks.memory", "--one", str(path), "--data", str(options.data),
                       "--dataset", options.dataset, "--seconds", str(options.seconds), *gpu_flag(options.gpu)]
            output, peak = run(command, limit)
            found[count] = {**json.loads(output.splitlines()[-1]), "peak_with_page_cache": peak}
    rows = [(f"{count:,}", f"{one['peak_rss_bytes'] / 2**20:,.0f}", f"{one['first_batch_seconds']:.2f}",
             f"{one['unlabeled_images_per_second']:,.0f}") for count, one in found.items()]
    print(table(rows, ("images", "resident peak, MiB", "first batch, s", "unlabeled images/s")))
    first, last = (found[size]["peak_rss_bytes"] for size in (min(found), max(found)))
    say({**result, "sizes": found, "last_over_first": round(last / first, 4)})
    return 0


def gpu_flag(gpu: str | None) -> list[str]:
    """``--gpu`` again, for the processes that measure."""
    return [] if gpu is None else ["--gpu", gpu]


def sets(folder: Path, real_gib: float | None):
    """Yields (images, path of a shard set) over a raw file: sparse ones of all sizes, or one of random pixels."""
    raw = folder / "raw.bin"
    if real_gib is None:
        with open(raw, "wb") as file:
            file.truncate(ALL * IMAGE_BYTES)
        sizes = SIZES
    else:
        sizes = (int(real_gib * 2**30) // IMAGE_BYTES,)
        random, chunk = np.random.default_rng(0), 2**14
        with open(raw, "wb") as file, progress_bar(sizes[0], " images", "writing random pixels") as bar:
            for first in range(0, sizes[0], chunk):
                count = min(chunk, sizes[0] - first)
                file.write(random.bytes(count * IMAGE_BYTES))
                bar.update(count)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # to be read from the disk
    for count in sizes:
        with ShardWriter(folder / str(count), dataset="tinyimages", split="train", image_shape=IMAGE_SHAPE,
                         classes=None, source={}) as writer:
            writer.finish_in_place(raw, np.array([[0, count]]), "CWH")
        yield count, folder / str(count)


def measure(unlabeled: Path, labeled: Path, device: torch.device, seconds: float) -> dict:
    """In a fresh process: the time from opening the sets to the first batch, then speed and the resident peak."""
    torch.zeros(1, device=device)
    start = time.perf_counter()
    labeled_set = ShardSet(labeled)
    chosen = Subset(labeled_set, class_balanced_subset(labeled_set.labels, LABELED, len(labeled_set.classes)))
    loader = SemiSupervisedLoader(chosen, [ShardSet(unlabeled)], Preprocess("gcn", IMAGE_SHAPE), device=device,
                                  threads=cpu_cores())
    batch = next(loader)
    first = time.perf_counter() - start
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        batch = next(loader)
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    speed = steps * (len(batch.unlabeled.images) // 6) / (time.perf_counter() - start)
    loader.close()
    return {"first_batch_seconds": round(first, 3), "unlabeled_images_per_second": round(speed, 1),
            "peak_rss_bytes": peak_rss_bytes()}


def run(command: list[str], limit: int | None) -> tuple[str, int | None]:
    """Run a command, under a memory limit that counts the page cache too; its output, and the peak of what counts.

    Raises:
        UsageError: no control group can be made here.
        DataError: the command failed, or was killed for its memory.
    """
    if limit is None:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        peak = None
    else:
        group, peak_file = make_group(limit)
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                                  preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
            peak = int((group / peak_file).read_text())
        finally:
            group.rmdir()
    sys.stderr.write(done.stdout if done.returncode else "")
    if done.returncode:
        raise DataError(f"{' '.join(command[1:4])}: ended with status {done.returncode}"
                        + (" (killed; for its memory?)" if done.returncode == -9 else ""))
    return done.stdout, peak


def make_group(limit: int) -> tuple[Path, str]:
    """A control group with a memory limit, of version 1 or 2: its folder, and its file of the peak."""
    version1 = (CGROUP / "memory").is_dir()
    group = (CGROUP / "memory" if version1 else CGROUP) / f"sesemi-{os.getpid()}"
    limit_file, peak_file = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if version1 else \
        ("memory.max", "memory.peak")
    try:
        group.mkdir()
        (group / limit_file).write_text(str(limit))
    except OSError as error:
        raise UsageError(f"--limit-gib: no control group can be made here ({error}); leave it out") from None
    return group, peak_file


if __name__ == "__main__":
    sys.exit(errors.run(main))
