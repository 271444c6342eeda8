"""Recount and rehash shard sets: python -m tools.verify shards/NAME. Exit status 1 where a file is damaged."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.common import errors
from pipelines.common.errors import Parser
from pipelines.common.progress import progress_bar
from pipelines.shards import SAMPLE_IMAGES, ShardSet, find_sets

EXAMPLE = """example:
  python -m tools.verify shards/cifar10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m tools.verify", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("path", type=Path, help="a folder with train/ and test/, or one shard set")
    path = parser.parse_args(argv).path
    damaged = 0
    for set_path in find_sets(path):
        shard_set = ShardSet(set_path)
        with progress_bar(shard_set.bytes_to_verify, "B", str(set_path), unit_scale=True) as bar:
            damage = list(shard_set.verify(bar.update))
        for line in damage:
            print(f"error: {line}", file=sys.stderr)
        damaged += bool(damage)
        if not damage:
            raw = shard_set.manifest.raw
            where = f"{len(shard_set.manifest.shards)} shards, as written" if raw is None else \
                f"{raw.path}, its size and a sample of {min(SAMPLE_IMAGES, len(shard_set))} images as they were"
            print(f"{set_path}: {len(shard_set):,} images in {where}")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(errors.run(main))
