"""Recount and rehash shard sets: python -m tools.verify shards/NAME. Exit status 1 where a file is damaged."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines import errors
from pipelines.errors import DataError, Parser
from pipelines.manifest import MANIFEST
from pipelines.progress import progress_bar
from pipelines.shards import ShardSet

EXAMPLE = """example:
  python -m tools.verify shards/cifar10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m tools.verify", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("path", type=Path, help="a folder with train/ and test/, or one shard set")
    path = parser.parse_args(argv).path
    sets = sorted(manifest.parent for manifest in [path / MANIFEST, *path.glob(f"*/{MANIFEST}")] if manifest.exists())
    if not sets:
        raise DataError(f"{path}: no shard set here ({MANIFEST} not found); python -m tools.prepare makes one")
    damaged = 0
    for set_path in sets:
        shard_set = ShardSet(set_path)
        size = sum(file.bytes for shard in shard_set.manifest.shards for file in (shard.images, shard.labels) if file)
        with progress_bar(size, "B", str(set_path), unit_scale=True) as bar:
            damage = list(shard_set.damage(bar.update))
        for line in damage:
            print(f"error: {line}", file=sys.stderr)
        damaged += bool(damage)
        if not damage:
            print(f"{set_path}: {len(shard_set):,} images in {len(shard_set.manifest.shards)} shards, as written")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(errors.run(main))
