"""The command line: python -m sesemi train, python -m sesemi evaluate."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.common import errors
from pipelines.common.errors import DataError, Parser, UsageError
from sesemi.config import CHANGEABLE, METHODS, PRECISIONS, PREPROCESS, Config
from sesemi.networks import NAMES
from sesemi.runlog import RunFolder

TRAIN_EXAMPLE = """examples:
  python -m sesemi train --network convnet --dataset cifar10 --labels 4000 --gpu 0
  python -m sesemi train --network convnet --extra 500000 --gpu 0
  python -m sesemi train --network wrn-10-1 --dataset digits --labels 20 --steps 600 --gpu none --run runs/try
  python -m sesemi train --resume --run runs/try
"""
EVALUATE_EXAMPLE = """example:
  python -m sesemi evaluate runs/try
"""
EXTRA_DATASET = "cifar100"  # what goes with --extra N, as in the reference


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = vars(build_parser().parse_args(argv))
    return options.pop("command")(options)


def build_parser() -> Parser:
    """All flags. What is left out is absent from the result, so that a resumed run keeps its own."""
    parser = Parser(prog="python -m sesemi", description="Train and evaluate SESEMI on prepared shard sets.")
    commands = parser.add_subparsers(required=True, metavar="train|evaluate", parser_class=Parser)

    train = commands.add_parser("train", help="train and evaluate one run", epilog=TRAIN_EXAMPLE,
                                description="Train and evaluate one run.", argument_default=argparse.SUPPRESS)
    train.set_defaults(command=train_command)
    count, lines = errors.positive_int, train.add_argument
    lines("--dataset", metavar="NAME",
          help=f"prepared set under --data (required; with --extra N default: {EXTRA_DATASET})")
    lines("--network", metavar="NAME", help=f"{NAMES} (default: {Config.network})")
    lines("--init", metavar="PATH",
          help="begin with the trunk of another run, by its folder, or of a .safetensors file")
    lines("--labels", type=count, metavar="N",
          help="labeled training images in all, as even over the classes as they allow (default: all)")
    lines("--method", choices=METHODS, help="sesemi; asl: the proxy branch sees the labeled images only; "
                                            f"supervised: no proxy branch (default: {Config.method})")
    lines("--extra", metavar="N|NAME|PATH", help="half of the unlabeled images from another prepared dataset: "
                                                 "tinyimages-N, or any by its name under --data or its path")
    lines("--gpu", dest="device", metavar="N", help="number of the GPU, or none for the CPU (default: GPU 0 if any)")
    lines("--preprocess", choices=PREPROCESS, help="default: as the reference does for the dataset")
    lines("--flips", action=argparse.BooleanOptionalAction,
          help="mirror labeled images left to right, in training and evaluation (default: the dataset's)")
    lines("--dropout", type=float, metavar="RATE", help="before the class head (default: the dataset's)")
    lines("--trunk-dropout", type=float, metavar="RATE", help="inside the network (default: the dataset's)")
    lines("--epochs", type=count, metavar="N", help="of images // B steps, labeled or not; of labeled ones for asl "
                                                           "(default: the dataset's)")
    lines("--steps", type=count, metavar="N", help="length of the run and of the schedule, whatever the epochs")
    lines("--batch-unlabeled", type=count, metavar="B",
          help=f"B × 6 views and 6B labeled images a step (default: {Config.batch_unlabeled})")
    lines("--lr", type=float, metavar="RATE", help=f"of the first step (default: {Config.lr})")
    lines("--ema", type=float, metavar="DECAY",
          help="average weights and statistics over the steps, 0.999 for instance, and test the average (default: no)")
    lines("--precision", choices=PRECISIONS,
          help="default: bf16 where the GPU has it, else fp16; fp32 on a CPU, where fp16 is slow")
    lines("--cuda-graph", action=argparse.BooleanOptionalAction,
          help="on a GPU, replay the step as one CUDA graph instead of launching its kernels one by one (default: yes)")
    lines("--compile", action=argparse.BooleanOptionalAction,
          help="fuse the network's operations by torch.compile, for long runs on a GPU: needs a C++ compiler, and the "
               "first step takes half a minute longer (default: no)")
    lines("--seed", type=errors.non_negative_int, metavar="N",
          help="of everything random but the choice of labels (default: 0)")
    lines("--data", metavar="PATH", help=f"folder of the prepared sets (default: {Config.data})")
    lines("--run", metavar="PATH", help="the run's folder (default: runs/, by dataset, network, labels, method, seed)")
    lines("--resume", action="store_true", help="go on with the run in --run, with the settings it has")
    lines("--log-every", type=count, metavar="STEPS", help=f"default: {Config.log_every}")
    lines("--checkpoint-every", type=count, metavar="STEPS", help=f"default: {Config.checkpoint_every}")
    lines("--keep", type=count, metavar="N",
          help=f"checkpoints to keep: the newest and those before it (default: {Config.keep})")
    lines("--eval-every", type=errors.non_negative_int, metavar="STEPS",
          help="0: at the end only (default: every epoch)")
    lines("--eval-images", type=count, metavar="N",
          help="evaluate a fixed sample of the test images, as even over the classes as N allows (default: all)")

    evaluate = commands.add_parser("evaluate", help="the test error of a run", epilog=EVALUATE_EXAMPLE,
                                   description="Print the test error of a run, from its checkpoint.")
    evaluate.set_defaults(command=evaluate_command)
    evaluate.add_argument("run", type=Path, help="the run's folder")
    evaluate.add_argument("--gpu", metavar="N", help="number of the GPU, or none for the CPU (default: as trained)")
    evaluate.add_argument("--network", metavar="MODULE:FUNCTION",
                          help="of a run with a network of your own: import it, which a run's folder alone never does")
    return parser


def train_command(given: dict) -> int:
    """Train; ``given`` holds the flags that were."""
    from sesemi import experiment  # after parsing: --help should not wait for PyTorch and DALI
    from sesemi.device import parse_device
    resume = given.pop("resume", False)
    if "device" in given:
        given["device"] = parse_device(given["device"])
    if resume:
        if "run" not in given:
            raise UsageError("--resume: which run? give its folder by --run")
        folder = RunFolder(given["run"])
        finished = folder.read(folder.result) if folder.result.exists() else None
        if finished is None or len(given) > 1:  # other flags than --run may contradict what the run was
            config = resumed_config(folder, given, finished)
        if finished is not None:
            print(f"{folder.path} is finished: {describe(finished)}")
            return 0
    elif "dataset" not in given and not given.get("extra", "").isdecimal() and given.get("extra") != "all":
        raise UsageError("--dataset: missing; name a set prepared with python -m tools.prepare, such as cifar10")
    else:
        config = Config(**{"dataset": EXTRA_DATASET, **given})
    print(describe(experiment.train(config, resume)))
    return 0


def resumed_config(folder: RunFolder, given: dict, finished: dict | None) -> Config:
    """The configuration of the run to resume; raises UsageError for flags that differ from its own."""
    from sesemi.saved import load_config
    config = load_config(folder, given.get("device"), given.get("network"))
    started = str(folder.read(folder.config)["device"])
    if config.device.partition(":")[0] != started.partition(":")[0]:
        raise UsageError(f"--gpu: {folder.path} was started on {started}; on another kind of device its batches would "
                         f"differ")
    given = {name: value for name, value in given.items() if name != "device"}
    for name, value in given.items():
        if name not in CHANGEABLE and getattr(config, name) != value:
            if finished is not None and name in {"steps", "epochs"}:
                raise UsageError(f"--{name}: found {value}, but {folder.path} is finished, its learning rate at zero "
                                 f"after {config.steps} steps; start a new --run, which may begin with its trunk by "
                                 f"--init {shlex.quote(str(folder.path))}")
            raise UsageError(f"--{name.replace('_', '-')}: found {value}, but {folder.path} was started with "
                             f"{getattr(config, name)}; leave it out, or start a new --run")
    return replace(config, **given)


def evaluate_command(given: dict) -> int:
    """Print a run's test error."""
    from sesemi import experiment
    from sesemi.device import parse_device
    errors, images = experiment.evaluate(given["run"], parse_device(given["gpu"]), given["network"])
    line = f"test error {errors['test_error']:.4f} on {images:,} images"
    if "test_error_raw" in errors:
        line += f"; {errors['test_error_raw']:.4f} by the weights of the last step, which are not averaged"
    print(line)
    return 0


def describe(result: dict) -> str:
    """A result in one line; raises DataError for what is none."""
    try:
        error = "no test error, since there is no test set" if result["test_error"] is None else \
            f"test error {result['test_error']:.4f} on {result['test_images']:,} images"
        return (f"{error}: {result['method']}, {result['network']}, {result['labels']:,} labels, "
                f"{result['steps']:,} steps in {result['seconds']:,.0f} s "
                f"({result['images_per_second']:,.0f} images/s)")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"result.json: not the result of a run ({type(error).__name__}: {error})") from None
