"""Our loader beside those a user would pick, all delivering the same batch: python -m benchmarks.loader."""

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import rivals, rivals_files
from benchmarks.check import check, gcn
from benchmarks.measure import alternate, machine, say, steps_per_second, table
from benchmarks.rivals import WORKERS, Task
from pipelines import whitening
from pipelines.batch import Batch
from pipelines.common import errors
from pipelines.common.errors import DataError, Parser, UsageError
from pipelines.common.progress import progress_bar
from pipelines.loader import SemiSupervisedLoader
from pipelines.shards import ShardSet
from pipelines.shards.writer import ShardWriter
from sesemi.device import cpu_cores, parse_device

EXAMPLE = """example:
  python -m tools.prepare cifar10 --source cifar-10-python.tar.gz
  python -m benchmarks.loader --gpu none
"""
RIVALS: dict[str, Callable[[Task], Iterator[Batch]]] = {
    "dataloader": rivals.dataloader, "dataloader_pil": rivals.dataloader_pil,
    "dataloader_batched": rivals.dataloader_batched, "webdataset": rivals_files.webdataset,
    "dali_webdataset": rivals_files.dali_webdataset, "streaming": rivals_files.streaming, "ffcv": rivals_files.ffcv,
    "reference": rivals.reference, "in_ram": rivals.in_ram}
WITH_WORKERS = ("dataloader", "dataloader_pil", "dataloader_batched", "webdataset", "streaming", "dali_webdataset",
                "ffcv")
CHECKED_IMAGES = 200


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.loader", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--gpu", metavar="N", help="number of the GPU, or none for the CPU (default: GPU 0 if any)")
    parser.add_argument("--dataset", default="cifar10", metavar="NAME", help="prepared set (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("shards"), help="prepared sets (default: %(default)s)")
    parser.add_argument("--preprocess", choices=("gcn", "zca"), default="gcn",
                        help="zca: rivals get the set whitened beforehand, in RAM (default: %(default)s)")
    parser.add_argument("--batch-unlabeled", type=errors.positive_int, default=16, metavar="B",
                        help="B × 6 views and 6B labeled images a step (default: %(default)s)")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME",
                        help=f"default: all of {', '.join(RIVALS)}")
    parser.add_argument("--workers", nargs="+", type=errors.non_negative_int, default=list(WORKERS), metavar="N",
                        help="numbers of worker processes to try, those above the number of cores left out "
                             f"(default: {' '.join(map(str, WORKERS))})")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn (default: %(default)s)")
    parser.add_argument("--repeats", type=errors.positive_int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--chart", type=Path, default=Path("benchmarks/loader.png"), metavar="PATH",
                        help="bar chart (default: %(default)s)")
    options = parser.parse_args(argv)
    if min(options.workers) > cpu_cores():
        raise UsageError(f"--workers: found {min(options.workers)} and more, expected at most one a core, "
                         f"{cpu_cores()} here")
    device = torch.device(parse_device(options.gpu) or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    shard_set = ShardSet(options.data / options.dataset / "train")
    with tempfile.TemporaryDirectory() as folder:
        task = build_task(shard_set, options.preprocess, options.batch_unlabeled, device, Path(folder) / "rivals")
        missing, chosen = check_all(task, options.rivals, Path(folder))
        result = measure(task, chosen, options.workers, options.seconds, options.repeats)
    result = {**machine(device), "batch": [6 * options.batch_unlabeled, 6 * options.batch_unlabeled],
              "dataset": options.dataset, "preprocess": options.preprocess, **result, "missing": missing}
    rows = [(name, f"{rival['steps_per_second']:.0f}", f"{rival['ratio']:.2f}", rival.get("workers", ""))
            for name, rival in result["rivals"].items()]
    print(table([("ours", f"{result['ours']:.0f}", "1.00", ""), *rows],
                ("loader", "steps/s", "ours / theirs", "workers")))
    for name, reason in missing.items():
        print(f"{name}: not measured, {reason}")
    draw(result, options.chart)
    say(result)
    return 0


def build_task(shard_set: ShardSet, preprocess: str, batch_unlabeled: int, device: torch.device,
               folder: Path) -> Task:
    """Everything a rival needs, in RAM, which is more than ours gets."""
    images = shard_set.read(np.arange(len(shard_set)))
    normalized = None
    if preprocess == "zca":
        fitted = whitening.prepare("zca", [shard_set])
        normalized = np.concatenate([fitted(torch.from_numpy(part)).numpy() for part in np.array_split(images, 50)])
    return Task(images, shard_set.labels, normalized, batch_unlabeled, noise=0.15, flip=True, device=device, workers=0,
                folder=folder, shards=shard_set.path)


def ours(task: Task) -> Iterator[Batch]:
    """The product's loader, streaming from shards; labeled and unlabeled images are both the whole set."""
    shard_set = ShardSet(task.shards)
    preprocess = whitening.prepare("gcn" if task.normalized is None else "zca", [shard_set], progress=False)
    return SemiSupervisedLoader(shard_set, [shard_set], preprocess, batch_unlabeled=task.batch_unlabeled,
                                flip=task.flip, device=task.device, noise=task.noise, threads=cpu_cores())


def check_all(task: Task, names: Sequence[str], folder: Path) -> tuple[dict[str, str], list[str]]:
    """Hold every loader to the NumPy check, over a few images; returns those that are missing, and the others."""
    few = task.images[:CHECKED_IMAGES]
    labels = task.labels[:CHECKED_IMAGES]
    with ShardWriter(folder / "few", dataset="cifar10", split="train", image_shape=few.shape[1:],
                     classes=tuple(map(str, range(int(task.labels.max()) + 1))), source={}) as writer:
        writer.append(few, labels)
        writer.finish()
    normalized = gcn(few)
    small = replace(task, images=few, labels=labels, shards=folder / "few")
    if task.normalized is not None:  # fitted on the few, since that is what ours will do
        fitted = whitening.prepare("zca", [ShardSet(folder / "few")], progress=False)
        normalized = fitted(torch.from_numpy(few)).numpy()
        small = replace(small, normalized=normalized)
    missing, passed = {}, []
    with progress_bar(len(names) + 1, " loaders", "checking") as bar:
        for name in ["ours", *names]:
            loader = ours if name == "ours" else RIVALS[name]
            at = replace(small, folder=folder / "few-files" / name, batch_unlabeled=min(16, task.batch_unlabeled))
            try:
                check(lambda noise, at=at, loader=loader: loader(replace(at, noise=noise)), few, labels, normalized,
                      task.flip)
            except ImportError as error:
                missing[name] = str(error)
            except AssertionError as error:
                raise DataError(f"{name}: its batches are not what they should be: {error}") from None
            else:
                passed += [name] * (name != "ours")
            bar.update()
    return missing, passed


def stepping(name: str, task: Task, workers: int) -> Callable[[], Batch]:
    """A rival's next batch, with so many workers. DALI's pipelines that nobody has must be gone before it forks
    them: a worker that collects one hangs."""
    gc.collect()
    return partial(next, RIVALS[name](replace(task, workers=workers)))


def measure(task: Task, names: Sequence[str], numbers: Sequence[int], seconds: float, repeats: int) -> dict:
    """Steps a second of ours and of each rival at the best of those numbers of workers, and their ratios."""
    workers = {}
    with progress_bar(len(names), " rivals", "trying numbers of workers") as bar:
        for name in names:
            tried = {count: 0.0 for count in numbers if count <= cpu_cores()} if name in WITH_WORKERS else {0: 0.0}
            for count in tried if len(tried) > 1 else ():
                step = stepping(name, task, count)
                steps_per_second(step, task.device, 1.0)
                tried[count] = steps_per_second(step, task.device, 2.0)
            workers[name] = max(tried, key=tried.get)
            bar.update()
    found: dict[str, list[float]] = {"ours": []}
    with progress_bar(len(names), " rivals", "measuring") as bar:
        for name in names:  # one rival at a time beside ours: idle workers of the others would take memory and cores
            rival = stepping(name, task, workers[name])
            loader = ours(task)
            pair = alternate({"ours": partial(next, loader), name: rival}, task.device, seconds, repeats,
                             settle=loader.settle)
            loader.close()
            del rival
            found["ours"].append(pair["ours"])
            found[name] = [pair[name], pair["ours"] / pair[name]]
            bar.update()
    return {"ours": float(np.median(found.pop("ours"))),
            "rivals": {name: {"steps_per_second": round(speed, 1), "ratio": round(ratio, 3),
                              **({"workers": workers[name]} if name in WITH_WORKERS else {})}
                       for name, (speed, ratio) in found.items()}}


def draw(result: dict, path: Path) -> None:
    """A bar a loader, longest first."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    speeds = {"ours": result["ours"]} | {name: rival["steps_per_second"] for name, rival in result["rivals"].items()}
    names = sorted(speeds, key=speeds.get)
    figure, axes = pyplot.subplots(figsize=(7, 0.42 * len(names) + 1.2))
    bars = axes.barh(names, [speeds[name] for name in names],
                     color=["#2b5c94" if name == "ours" else "#b5c0cc" for name in names])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(f"steps a second, of {result['batch'][0]} labeled images and {result['batch'][1]} views")
    axes.set_title(f"{result['dataset']}, {result['preprocess']}, {result['device']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    print(path)


if __name__ == "__main__":
    sys.exit(errors.run(main))
