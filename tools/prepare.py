"""Turn a dataset, as downloaded, into shard sets: python -m tools.prepare NAME --source PATH."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pipelines.common import errors
from pipelines.common.errors import DataError, Parser, UsageError
from pipelines.common.files import created_dirs, locked
from pipelines.common.progress import progress_bar
from pipelines.common.words import some
from pipelines.shards import ShardSet, find_sets
from pipelines.shards.commit import clean, commit, is_ours, recover
from pipelines.shards.manifest import MANIFEST
from pipelines.shards.writer import ShardWriter
from tools.exclude import Excluded
from tools.sources import (
    Source,
    Split,
    arrays,
    cifar,
    digits,
    folder,
    imagenet32,
    images,
    labels_csv,
    stl10,
    svhn,
    tiny_imagenet,
    tiny_images,
    webdataset,
)

EXAMPLE = """examples:
  python -m tools.prepare cifar10 --source cifar-10-python.tar.gz
  python -m tools.prepare svhn --source svhn
  python -m tools.prepare tinyimages --source tiny-images --extra 500000
  python -m tools.prepare folder --source photos --size 64 --test-fraction 0.2 --out shards/photos
  python -m tools.prepare digits
"""
SPLITS = ("train", "unlabeled", "test", "extra")  # all that any source has


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = build_parser().parse_args(argv)
    out = options.out or Path("shards") / default_name(options)
    if options.in_place and options.exclude:
        raise UsageError("--exclude: found with --in-place, but leaving images out needs a copy; choose one")
    prepare(options.read(options), out, options.force, options.exclude, options.in_place)
    return 0


def build_parser() -> Parser:
    """All kinds of data, each with the flags it has."""
    parser = Parser(prog="python -m tools.prepare", description=__doc__, epilog=EXAMPLE)
    kinds = parser.add_subparsers(dest="name", required=True, metavar="NAME", parser_class=Parser)

    def kind(name: str, read: Callable[[argparse.Namespace], Source], about: str, source: str | None = None,
             several: bool = False, **more: object) -> Parser:
        lines = [line for line in EXAMPLE.splitlines() if f"prepare {name} " in f"{line} "]
        example = "\n".join(lines or [f"  python -m tools.prepare {name} --source PATH --out shards/mine"])
        added = kinds.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.",
                                 epilog=f"example:\n{example}\n")
        added.set_defaults(read=read, in_place=False)
        if source:
            added.add_argument("--source", type=Path, required=True, metavar="PATH", help=source,
                               nargs="+" if several else None)
        added.add_argument("--out", type=Path, metavar="PATH",
                           help="folder that gets train/, test/, ... "
                           f"(default: shards/{name}{'-N' * (name == 'tinyimages')})")
        added.add_argument("--exclude", type=Path, nargs="+", metavar="SET", default=[],
                           help="leave out exact duplicates of the images of these sets, shards/cifar100 for instance")
        added.add_argument("--force", action="store_true", help="replace sets that exist")
        if "size" in more:
            added.add_argument("--size", type=errors.positive_int, default=more["size"], metavar="PIXELS",
                               help="height and width to resize to (default: "
                               f"{'%(default)s' if more['size'] else 'as they are'})")
        if more.get("test_fraction"):
            added.add_argument("--test-fraction", type=fraction, metavar="F",
                               help="hold so much of each class out as the test set, 0.2 for instance, where the "
                               "source has none; 0: do without one")
        if more.get("skip_damaged"):
            added.add_argument("--skip-damaged", action="store_true",
                               help="leave out images that cannot be decoded; the manifest lists them")
        return added

    kind("cifar10", lambda options: cifar.read10(options.source), "CIFAR-10",
         "the extracted folder or the .tar.gz, pickles or binaries")
    kind("cifar100", lambda options: cifar.read100(options.source, options.coarse), "CIFAR-100",
         "the extracted folder or the .tar.gz, pickles or binaries").add_argument(
             "--coarse", action="store_true", help="the 20 coarse labels instead of the 100 fine ones")
    kind("svhn", lambda options: svhn.read(options.source), "SVHN, cropped digits",
         "folder with train_32x32.mat, test_32x32.mat and, if wanted, extra_32x32.mat, which becomes svhn/extra")
    tiny = kind("tinyimages", lambda options: tiny_images.read(options.source, options.extra, options.index),
                "Tiny Images, unlabeled", "tiny_images.bin, or the folder it lies in")
    tiny.add_argument("--extra", required=True, metavar="N",
                      help="237203 (CIFAR-100's words), 500000 (the reference's), any other number, or all")
    tiny.add_argument("--index", type=Path, metavar="PATH", help="tiny_index.pkl (default: beside tiny_images.bin)")
    tiny.add_argument("--in-place", action="store_true",
                      help="no copy: use all, or 237203, from tiny_images.bin where it lies")
    kind("tinyimagenet", lambda options: tiny_imagenet.read(options.source, options.size, options.skip_damaged),
         "Tiny ImageNet; its test images, which have no labels, become unlabeled ones",
         "the extracted tiny-imagenet-200, or the .zip", size=64, skip_damaged=True)
    kind("stl10", lambda options: stl10.read(options.source, options.size), "STL-10 with its unlabeled part",
         "the extracted stl10_binary, or the .tar.gz", size=None)
    kind("imagenet32", lambda options: imagenet32.read(options.source),
         "ImageNet of 32×32 pixels (Chrabaszcz et al. 2017)", "the folder with train_data_batch_1, ... and val_data")
    own = kind("folder", read_folder, "your own images", "folder with train/<class>/, test/<class>/ and unlabeled/; "
               "with <class>/ folders alone; or with unlabeled images", size=images.DEFAULT_SIZE, skip_damaged=True,
               test_fraction=True)
    own.add_argument("--unlabeled", action="store_true", help="take every image below the source as unlabeled")
    own.add_argument("--classes", nargs="+", metavar="DIR", default=[],
                     help="the folders that are classes, in train/ or in the source (default: all there)")
    own.add_argument("--labels-csv", type=Path, metavar="FILE", help="a CSV file with a row an image: its file and its "
                                                                     "label; images without are unlabeled")
    own.add_argument("--file-column", metavar="NAME", help="of --labels-csv (default: the usual names)")
    own.add_argument("--label-column", metavar="NAME", help="of --labels-csv (default: the usual names)")
    tars = kind("wds", lambda options: webdataset.read(
        options.source, options.size, unlabeled=options.unlabeled, label_key=options.label_key,
        image_key=options.image_key, test_fraction=options.test_fraction, skip_damaged=options.skip_damaged),
        "WebDataset tars: an image and its label as cls, json or txt", "tars, patterns such as 'train-{000..012}.tar', "
        "or a folder of tars, perhaps with train/*.tar and test/*.tar", several=True, size=images.DEFAULT_SIZE,
        skip_damaged=True, test_fraction=True)
    tars.add_argument("--unlabeled", action="store_true", help="take every image as unlabeled")
    tars.add_argument("--label-key", metavar="KEY", help="field of the json with the label (default: the usual names)")
    tars.add_argument("--image-key", metavar="EXTENSION", help="of a sample's images the one to take: jpg, left.png")
    kind("numpy", lambda options: arrays.read(options.source, options.size, test_fraction=options.test_fraction),
         "NumPy arrays", "an .npz or a folder of .npy files (train_images, train_labels, ...; x_train, ...; images), "
         "or an .npy", size=None, test_fraction=True)
    kind("digits", lambda options: digits.read(), "scikit-learn's handwritten digits, which need no download")
    return parser


def fraction(text: str) -> float:
    """argparse type: a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to below 1")
    return value


def read_folder(options: argparse.Namespace) -> Source:
    """One's own images, with the flags that go together."""
    columns = {"--file-column": options.file_column, "--label-column": options.label_column}
    if options.labels_csv is None:
        if given := [flag for flag, value in columns.items() if value is not None]:
            raise UsageError(f"{given[0]}: found without --labels-csv, the file that has this column")
        if options.unlabeled and options.classes:
            raise UsageError("--classes: found with --unlabeled, which takes all images without classes; choose one")
        return folder.read(options.source, options.size, unlabeled=options.unlabeled, classes=options.classes,
                           test_fraction=options.test_fraction, skip_damaged=options.skip_damaged)
    if options.unlabeled or options.classes:
        raise UsageError(f"--labels-csv: found with {'--unlabeled' if options.unlabeled else '--classes'}; choose one")
    return labels_csv.read(options.source, options.size, options.labels_csv, file_column=options.file_column,
                           label_column=options.label_column, test_fraction=options.test_fraction,
                           skip_damaged=options.skip_damaged)


def default_name(options: argparse.Namespace) -> str:
    """The folder under shards/ for a kind of data."""
    return f"tinyimages-{options.extra}" if options.name == "tinyimages" else options.name


def prepare(source: Source, out: Path, replace: bool = False, exclude: Sequence[Path] = (),
            in_place: bool = False) -> None:
    """Write every split of ``source`` to ``out``/<split>: all of them appear, or none.

    Where an earlier conversion died while it put complete sets in place, that is finished first; other leftovers are
    removed.

    Args:
        source: what to write.
        out: the folder of the sets.
        replace: sets that exist; a ``train``, ``unlabeled``, ``test`` or ``extra`` set that the source does not have
            goes too, since it is of another.
        exclude: sets, or folders of sets, whose images are left out; the manifest says how many were.
        in_place: write manifests over the raw file instead of shards.

    Raises:
        UsageError: a set exists already and ``replace`` is False, the source cannot be used in place, or another
            process is writing to ``out``.
        DataError: the source is damaged, or the excluded images have another size.
    """
    for line in source.report.notes:
        say(line)
    with ExitStack() as stack:
        stack.enter_context(created_dirs(out))
        stack.enter_context(locked(out))
        if recovered := recover(out):
            say(f"{out}: an interrupted conversion was complete; its sets are now in place: {', '.join(recovered)}")
            if not replace and all(_is_of(out / split.name, source, in_place, exclude) for split in source.splits):
                return
        for left in clean(out / name for name in SPLITS):
            print(f"{left}: left by a conversion that did not finish; starting clean")
        writers = [stack.enter_context(ShardWriter(
            out / split.name, dataset=source.dataset, split=split.name, image_shape=source.image_shape,
            classes=split.classes, source=source.origin, replace=replace)) for split in source.splits]
        excluded = Excluded([ShardSet(path) for given in exclude for path in find_sets(given)]) if exclude else None
        if excluded and excluded.image_shape != source.image_shape:
            raise DataError(f"--exclude {exclude[0]}: images of {excluded.image_shape} found, {source.image_shape} "
                            f"expected as in the source")
        for split, writer in zip(source.splits, writers, strict=True):
            if in_place:
                continue
            counts = _copy(split, writer, excluded)
            writer.flush()
            if split.name == "train" and split.classes and np.count_nonzero(counts) < 2 and writer.num_images:
                source.report.check(source.name)
                raise DataError(f"{source.name}: a single class with images is left, "
                                f"{split.classes[int(counts.argmax())]}, expected two or more")
            if excluded:
                writer.source["excluded"] = {"sets": [str(path) for path in exclude], "images": excluded.dropped}
                excluded.dropped = 0
        source.report.check(source.name)
        left_out = source.report.as_dict()
        for split, writer in zip(source.splits, writers, strict=True):
            if left_out:
                writer.source["left_out"] = left_out
            if in_place:
                _use_in_place(split, writer)
            else:
                writer.finish()
        written = [split.name for split in source.splits]
        removed = [name for name in SPLITS if replace and name not in written and (out / name / MANIFEST).exists()
                   and is_ours(out / name)]
        commit(out, written, removed)
    for name in removed:
        say(f"{out / name}: removed, since the source has no such split")
    for split, writer in zip(source.splits, writers, strict=True):
        classes = f"{len(split.classes)} classes" if split.classes else "unlabeled"
        height, width, _ = source.image_shape
        duplicates = f"; {writer.source['excluded']['images']:,} duplicates left out" if exclude else ""
        say(f"{out / split.name}: {some(writer.num_images, 'image')} of {height}×{width}, {classes}{duplicates}")
    for line in source.report.lines():
        say(line)


def say(line: str) -> None:
    """Print a line, whatever characters names of files and classes have in it."""
    print(errors.one_line(line), flush=True)


def _is_of(path: Path, source: Source, in_place: bool, exclude: Sequence[Path]) -> bool:
    """Whether a set is what this conversion would make."""
    if not (path / MANIFEST).exists():
        return False
    manifest = ShardSet(path).manifest
    origin = dict(manifest.source)
    excluded = origin.pop("excluded", {}).get("sets", [])
    origin.pop("left_out", None)
    return ((manifest.dataset, manifest.image_shape, origin, excluded, manifest.raw is not None)
            == (source.dataset, source.image_shape, source.origin, [str(one) for one in exclude], in_place))


def _copy(split: Split, writer: ShardWriter, excluded: Excluded | None) -> np.ndarray:
    """Write a split; returns how many images each class has, int64 (k,)."""
    counts = np.zeros(len(split.classes or ()), np.int64)
    with progress_bar(split.num_images, " images", str(writer.path)) as bar:
        for batch, labels in split.batches():
            bar.update(len(batch))
            batch, labels = excluded.drop(batch, labels) if excluded else (batch, labels)
            writer.append(batch, labels)
            if split.classes:
                counts += np.bincount(labels, minlength=len(counts))
    return counts


def _use_in_place(split: Split, writer: ShardWriter) -> None:
    if split.in_place is None:
        raise UsageError("--in-place: takes all or 237203; a random choice of images needs a copy")
    writer.finish_in_place(split.in_place.path, split.in_place.ranges, split.in_place.layout)


if __name__ == "__main__":
    sys.exit(errors.run(main))
