"""Committing the sets of one conversion together: whenever the process dies, all of them can be opened or none.

Sets are written next to their place, as NAME.partial. When all are complete, a journal in their folder lists them; then
they are renamed, and the journal is removed. While it exists no set of the folder opens, and the next conversion into
the folder finishes the commit.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.common.errors import DataError, UsageError
from pipelines.common.files import remove_leftovers, sync_folder, write_atomically
from pipelines.shards.manifest import JOURNAL, plain_name

PARTIAL, OLD = ".partial", ".old"  # endings of a set that is being written, and of one that is being replaced
OUR_FILES = re.compile(r"\.?(manifest\.json|(images|labels)-\d+\.npy|(zca|standardize)-\w+\.npz)(\.\d+\.partial)?")


def is_ours(path: Path) -> bool:
    """Whether a folder may be replaced: it is empty, or holds what a conversion and a fit write, and nothing else."""
    return path.is_dir() and not path.is_symlink() and all(
        entry.is_file() and OUR_FILES.fullmatch(entry.name) for entry in path.iterdir())


def beside(path: Path, ending: str) -> Path:
    """Path of a set while it is written (PARTIAL) or replaced (OLD)."""
    return path.with_name(path.name + ending)


def clean(paths: Iterable[Path]) -> list[Path]:
    """Remove leftovers of unfinished conversions into ``paths``; returns their paths.

    Raises UsageError where something other than a shard set has such a name.
    """
    found = [left for path in paths for left in (beside(path, PARTIAL), beside(path, OLD))
             if os.path.lexists(left)]
    for left in found:
        if not is_ours(left):
            raise UsageError(f"{left} exists and is no shard set, or holds other files too; choose another --out")
        shutil.rmtree(left)
    return found


def commit(out: Path, names: Sequence[str], removed: Sequence[str] = ()) -> None:
    """Put the complete sets ``names``.partial of a folder in place of those that are there; sets ``removed`` go."""
    text = json.dumps({"sets": list(names), "removed": list(removed)})
    write_atomically(out / JOURNAL, lambda file: file.write(text.encode()))
    recover(out)


def recover(out: Path) -> list[str]:
    """Finish the commit that the journal describes, if there is one; returns the names of the new sets.

    Idempotent: safe to run again after a crash at any step. Raises DataError where the journal is damaged.
    """
    journal = out / JOURNAL
    remove_leftovers(out, JOURNAL)
    if not journal.exists():
        return []
    try:
        content = json.loads(journal.read_text())
        names, removed = ([plain_name(name) for name in content[key]] for key in ("sets", "removed"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{journal}: damaged ({error}); delete it and the sets beside it, and prepare again") from None
    new, gone = [out / name for name in names], [out / name for name in removed]
    for path in new + gone:  # the old sets go first, so that none is beside a new one
        if path.exists() and (path in gone or beside(path, PARTIAL).exists()):
            shutil.rmtree(beside(path, OLD), ignore_errors=True)  # what an earlier conversion left
            os.replace(path, beside(path, OLD))
    for path in new:
        if beside(path, PARTIAL).exists():
            os.replace(beside(path, PARTIAL), path)
    sync_folder(out)
    journal.unlink()
    sync_folder(out)
    for path in new + gone:
        shutil.rmtree(beside(path, OLD), ignore_errors=True)
    return names
