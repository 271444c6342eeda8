"""The training step fed by the loader beside the same step on one fixed batch: python -m benchmarks.step."""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import rivals
from benchmarks.loader import build_task
from benchmarks.measure import alternate, machine, say, table
from benchmarks.rivals import Task
from pipelines import whitening
from pipelines.batch import Batch
from pipelines.common import errors
from pipelines.common.errors import Parser
from pipelines.loader import SemiSupervisedLoader
from pipelines.shards import ShardSet
from sesemi.config import PRECISIONS
from sesemi.device import DTYPES, check_compiler, cpu_cores, default_precision, parse_device
from sesemi.networks import build_trunk
from sesemi.task import SesemiTask
from sesemi.trainer import Trainer

EXAMPLE = """example:
  python -m benchmarks.step --gpu none --networks one-convolution wrn-10-1 --in-ram --ready
  python -m benchmarks.step --gpu 0 --networks convnet wrn wrn-28-10
"""
ONE_CONVOLUTION = "one-convolution"
OTHERS = ("in_ram", "ready")  # what else may feed the step
STEPS = 10**9  # of the learning-rate schedule: as good as constant


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.step", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--gpu", metavar="N", help="number of the GPU, or none for the CPU (default: GPU 0 if any)")
    parser.add_argument("--networks", nargs="+", default=[ONE_CONVOLUTION, "wrn-10-1"], metavar="NAME",
                        help=f"{ONE_CONVOLUTION} (3×3, 64 channels, size-keeping) or any network "
                             f"(default: %(default)s)")
    parser.add_argument("--dataset", default="cifar10", metavar="NAME", help="prepared set (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("shards"), help="prepared sets (default: %(default)s)")
    parser.add_argument("--preprocess", choices=whitening.KINDS, default="gcn", help="default: %(default)s")
    parser.add_argument("--batch-unlabeled", type=errors.positive_int, default=16, metavar="B",
                        help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: bf16 or fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--cuda-graph", action=argparse.BooleanOptionalAction, default=True,
                        help="on a GPU, replay the step as one CUDA graph, as training does (default: yes)")
    parser.add_argument("--compile", action="store_true", help="by torch.compile, as train --compile")
    parser.add_argument("--peak-tflops", type=float, metavar="T",
                        help="the device's peak at this precision, for the utilisation (default: not reported)")
    parser.add_argument("--in-ram", action="store_true",
                        help="feed the step by benchmarks.loader's in_ram, too: no loader is expected to do better")
    parser.add_argument("--ready", action="store_true",
                        help="feed the step by one run's batches, made beforehand, too: what another batch costs "
                             "before anybody has made it")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn (default: %(default)s)")
    parser.add_argument("--repeats", type=errors.positive_int, default=5, help="turns of each (default: %(default)s)")
    options = parser.parse_args(argv)
    device = torch.device(parse_device(options.gpu) or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    shard_set = ShardSet(options.data / options.dataset / "train")
    preprocess = whitening.prepare(options.preprocess, [shard_set], device)
    precision = options.precision or default_precision(device)
    if options.compile:
        check_compiler(device)
    task = None
    if options.in_ram:
        task = build_task(shard_set, options.preprocess, options.batch_unlabeled, device, options.data)
    found = {}
    for network in options.networks:
        loader = SemiSupervisedLoader(shard_set, [shard_set], preprocess, batch_unlabeled=options.batch_unlabeled,
                                      device=device, threads=cpu_cores())
        found[network] = measure(network, loader, task, len(shard_set.classes), precision, device, options)
        loader.close()
    others = [other for other in OTHERS if getattr(options, other)]
    rows = [(name, f"{one['fed']:.2f}", f"{one['fixed']:.2f}", f"{one['fed_over_fixed']:.3f}",
             f"{one['images_per_second']:,.0f}", f"{one['wait_fraction']:.3f}", f"{one['tflops']:.3f}",
             *(f"{one[f'{other}_over_fixed']:.3f}" for other in others))
            for name, one in found.items()]
    print(table(rows, ("network", "fed, steps/s", "fixed batch", "fed / fixed", "images/s", "waiting", "TFLOP/s",
                       *(f"{other} / fixed" for other in others))))
    say({**machine(device), "precision": precision, "cuda_graph": options.cuda_graph and device.type == "cuda",
         "compile": options.compile, "preprocess": options.preprocess, "batch": [6 * options.batch_unlabeled] * 2,
         "networks": found})
    return 0


def measure(network: str, loader: SemiSupervisedLoader, task: Task | None, num_classes: int, precision: str,
            device: torch.device, options) -> dict:
    """One network: steps a second fed and fixed, their ratio, and what the step computes; fed by ``in_ram``, too, if
    there is a task for it, and by a run's batches that are ready.

    The steps take turns on one trainer; time waiting is the share of the fed turns that ``next(loader)`` took.
    """
    trainer = build_trainer(network, num_classes, precision, device, options.cuda_graph, loader.settle,
                            fused=options.compile and device.type == "cuda")
    unit = loader.steps_per_superbatch  # whole ones a turn, or one would end before what it has asked for is made
    batches = [next(loader) for _ in range(unit)]  # one run's, whose memory the first would keep anyway
    fixed = batches[0]
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(fixed)
    flops = counter.get_total_flops()
    if options.compile:  # not before: beside the counter nothing is compiled
        trainer.compile()
    steps = {"fed": partial(_fed_step, trainer, loader), "fixed": partial(trainer.train_step, fixed)}
    feeds = {"in_ram": rivals.in_ram(task)} if task is not None else {}
    if options.ready:
        feeds["ready"] = itertools.cycle(batches)
    for name, feed in feeds.items():
        steps[name] = lambda feed=feed: trainer.train_step(next(feed))
    speeds = alternate(steps, device, options.seconds, options.repeats, unit, loader.settle)
    images = len(fixed.labeled.images) + len(fixed.unlabeled.images)
    result = {"fed": round(speeds["fed"], 3), "fixed": round(speeds["fixed"], 3),
              "fed_over_fixed": round(speeds["fed"] / speeds["fixed"], 4),
              "images_per_second": round(speeds["fed"] * images, 1),
              "wait_fraction": round(trainer.waited / trainer.seconds, 4),
              "tflops": round(flops * speeds["fed"] / 1e12, 4)}
    for name in feeds:
        result[f"{name}_over_fixed"] = round(speeds[name] / speeds["fixed"], 4)
    if options.peak_tflops:
        result["model_flop_utilisation"] = round(result["tflops"] / options.peak_tflops, 4)
    return result


def _fed_step(trainer: Trainer, loader: Iterator[Batch]) -> None:
    start = time.perf_counter()
    batch = next(loader)
    trainer.waited += time.perf_counter() - start
    trainer.train_step(batch)
    trainer.seconds += time.perf_counter() - start


def build_trainer(network: str, num_classes: int, precision: str, device: torch.device, cuda_graph: bool,
                  settle: Callable[[], object], base_lr: float = 0.01, fused: bool = False,
                  ema: float | None = None) -> Trainer:
    """The product's trainer, around a network or around the least one there can be."""
    trunk = nn.Conv2d(3, 64, 3, padding=1) if network == ONE_CONVOLUTION else build_trunk(network)
    task = SesemiTask(trunk, num_classes, fused=fused).to(device, memory_format=torch.channels_last)
    return Trainer(task, steps=STEPS, base_lr=base_lr, dtype=DTYPES[precision], ema=ema, cuda_graph=cuda_graph,
                   settle=settle)


if __name__ == "__main__":
    sys.exit(errors.run(main))
