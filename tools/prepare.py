"""Turn a dataset, as downloaded, into shard sets: python -m tools.prepare NAME --source PATH."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipelines.common import errors
from pipelines.common.errors import DataError, Parser, UsageError
from pipelines.common.files import created_dirs, locked
from pipelines.common.progress import progress_bar
from pipelines.shards import ShardSet, find_sets
from pipelines.shards.commit import clean, commit, is_ours, recover
from pipelines.shards.manifest import MANIFEST
from pipelines.shards.writer import ShardWriter
from tools.exclude import Excluded
from tools.sources import Source, Split, arrays, cifar, digits, folder, images, svhn, tiny_images, webdataset

EXAMPLE = """examples:
  python -m tools.prepare cifar10 --source cifar-10-python.tar.gz
  python -m tools.prepare svhn --source svhn
  python -m tools.prepare tinyimages --source tiny-images --extra 500000
  python -m tools.prepare folder --source photos --size 64 --out shards/photos
  python -m tools.prepare digits
"""
SPLITS = ("train", "test", "extra")  # all that any source has


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

    def kind(name: str, read: Callable[[argparse.Namespace], Source], about: str, source: str | None = None) -> Parser:
        lines = [line for line in EXAMPLE.splitlines() if f"prepare {name} " in f"{line} "]
        example = "\n".join(lines or [f"  python -m tools.prepare {name} --source PATH --out shards/mine"])
        added = kinds.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.",
                                 epilog=f"example:\n{example}\n")
        added.set_defaults(read=read, in_place=False)
        if source:
            added.add_argument("--source", type=Path, required=True, metavar="PATH", help=source)
        added.add_argument("--out", type=Path, metavar="PATH",
                           help="folder that gets train/, test/, ... "
                           f"(default: shards/{name}{'-N' * (name == 'tinyimages')})")
        added.add_argument("--exclude", type=Path, nargs="+", metavar="SET", default=[],
                           help="leave out exact duplicates of the images of these sets, shards/cifar100 for instance")
        added.add_argument("--force", action="store_true", help="replace sets that exist")
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
    for name, read, about, source in (
            ("folder", folder.read, "your own images",
             "folder with train/<class>/ and test/<class>/, or a flat one of unlabeled images"),
            ("wds", webdataset.read, "WebDataset tars: image and optional cls",
             "a tar; a folder of tars; or one with train/*.tar and test/*.tar")):
        kind(name, lambda options, read=read: read(options.source, options.size), about, source).add_argument(
            "--size", type=errors.positive_int, default=images.DEFAULT_SIZE, metavar="PIXELS",
            help="height and width to resize to (default: %(default)s)")
    kind("numpy", lambda options: arrays.read(options.source, options.size), "NumPy arrays",
         "an .npz or a folder of .npy files (train_images, train_labels, ...; x_train, ...; images), or an .npy"
         ).add_argument("--size", type=errors.positive_int, metavar="PIXELS",
                        help="height and width to resize to (default: as they are)")
    kind("digits", lambda options: digits.read(), "scikit-learn's handwritten digits, which need no download")
    return parser


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
        replace: sets that exist; a ``train``, ``test`` or ``extra`` set that the source does not have goes too, since
            it is of another.
        exclude: sets, or folders of sets, whose images are left out; the manifest says how many were.
        in_place: write manifests over the raw file instead of shards.

    Raises:
        UsageError: a set exists already and ``replace`` is False, the source cannot be used in place, or another
            process is writing to ``out``.
        DataError: the source is damaged, or the excluded images have another size.
    """
    with ExitStack() as stack:
        stack.enter_context(created_dirs(out))
        stack.enter_context(locked(out))
        if recovered := recover(out):
            print(f"{out}: an interrupted conversion was complete; its sets are now in place: {', '.join(recovered)}")
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
                _use_in_place(split, writer)
            else:
                _copy(split, writer, excluded)
                if excluded:
                    writer.source["excluded"] = {"sets": [str(path) for path in exclude], "images": excluded.dropped}
                    excluded.dropped = 0
                writer.finish()
        written = [split.name for split in source.splits]
        removed = [name for name in SPLITS if replace and name not in written and (out / name / MANIFEST).exists()
                   and is_ours(out / name)]
        commit(out, written, removed)
    for name in removed:
        print(f"{out / name}: removed, since the source has no such split")
    for split, writer in zip(source.splits, writers, strict=True):
        classes = f"{len(split.classes)} classes" if split.classes else "unlabeled"
        height, width, _ = source.image_shape
        left_out = f"; {writer.source['excluded']['images']:,} duplicates left out" if exclude else ""
        print(f"{out / split.name}: {writer.num_images:,} images of {height}×{width}, {classes}{left_out}")


def _is_of(path: Path, source: Source, in_place: bool, exclude: Sequence[Path]) -> bool:
    """Whether a set is what this conversion would make."""
    if not (path / MANIFEST).exists():
        return False
    manifest = ShardSet(path).manifest
    origin = dict(manifest.source)
    excluded = origin.pop("excluded", {}).get("sets", [])
    return ((manifest.dataset, manifest.image_shape, origin, excluded, manifest.raw is not None)
            == (source.dataset, source.image_shape, source.origin, [str(one) for one in exclude], in_place))


def _copy(split: Split, writer: ShardWriter, excluded: Excluded | None) -> None:
    with progress_bar(split.num_images, " images", str(writer.path)) as bar:
        for batch, labels in split.batches():
            bar.update(len(batch))
            writer.append(*(excluded.drop(batch, labels) if excluded else (batch, labels)))


def _use_in_place(split: Split, writer: ShardWriter) -> None:
    if split.in_place is None:
        raise UsageError("--in-place: takes all or 237203; a random choice of images needs a copy")
    writer.finish_in_place(split.in_place.path, split.in_place.ranges, split.in_place.layout)


if __name__ == "__main__":
    sys.exit(errors.run(main))
