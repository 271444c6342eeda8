"""Turn a dataset, as downloaded, into shard sets: python -m tools.prepare NAME --source PATH."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipelines import errors
from pipelines.errors import Parser, UsageError
from pipelines.progress import progress_bar
from pipelines.shards import ShardWriter
from tools.sources import Source, cifar, digits, folder

EXAMPLE = """examples:
  python -m tools.prepare cifar10 --source cifar-10-python.tar.gz
  python -m tools.prepare folder --source photos --size 64 --out shards/photos
  python -m tools.prepare digits
"""
READERS = {
    "cifar10": lambda options: cifar.read(_source_path(options)),
    "folder": lambda options: folder.read(_source_path(options), options.size),
    "digits": lambda options: digits.read(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m tools.prepare", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("name", choices=READERS, help="kind of dataset: %(choices)s")
    parser.add_argument("--source", type=Path, metavar="PATH",
                        help="cifar10: the extracted folder or the .tar.gz, pickles or binaries; folder: a folder with "
                             "train/<class>/ and test/<class>/, or a flat one of unlabeled images; digits: none")
    parser.add_argument("--out", type=Path, metavar="PATH",
                        help="folder that gets train/ and test/ (default: shards/NAME)")
    parser.add_argument("--size", type=errors.positive_int, default=32, metavar="PIXELS",
                        help="folder: height and width to resize to (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace sets that exist")
    options = parser.parse_args(argv)
    out = options.out or Path("shards") / options.name
    prepare(READERS[options.name](options), out, replace=options.force)
    return 0


def prepare(source: Source, out: Path, replace: bool = False) -> None:
    """Write every split of ``source`` to ``out``/<split>; all of them appear, or none.

    Raises:
        UsageError: a set exists already and ``replace`` is False.
        DataError: the source is damaged.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(
            out / split.name, dataset=source.dataset, split=split.name, image_shape=source.image_shape,
            classes=split.classes, source=source.origin, replace=replace)) for split in source.splits]
        for split, writer in zip(source.splits, writers, strict=True):
            with progress_bar(split.num_images, " images", str(out / split.name)) as bar:
                for images, labels in split.batches():
                    writer.append(images, labels)
                    bar.update(len(images))
            writer.finish()
    for split, writer in zip(source.splits, writers, strict=True):
        classes = f"{len(split.classes)} classes" if split.classes else "unlabeled"
        height, width, _ = source.image_shape
        print(f"{out / split.name}: {writer.num_images:,} images of {height}×{width}, {classes}")


def _source_path(options) -> Path:
    if options.source is None:
        raise UsageError(f"--source: missing; where does {options.name} lie?")
    return options.source


if __name__ == "__main__":
    sys.exit(errors.run(main))
