"""Which tars a source is: files, folders, and patterns as a shell spells them out, each with the split it is of."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.common.errors import DataError
from tools.sources.report import FILES, FOLDERS, Report
from tools.sources.splits import TEST_NAMES, UNLABELED_NAMES, VAL_NAMES, is_split
from tools.sources.walk import file_kind, is_junk_file, is_junk_folder

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TRAIN, TEST, VAL, UNLABELED = "train", "test", "val", "unlabeled"
NAMES = ((TEST_NAMES, TEST), (VAL_NAMES, VAL), (UNLABELED_NAMES, UNLABELED))
BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}|\{([^{}]*,[^{}]*)\}")
EXPECTED = "expected tars (*.tar, *.tar.gz, ...), directly or in train/, test/, val/ and unlabeled/"


class Tar(NamedTuple):
    """One tar: its file; its name in the source, for the report; and the folder that says its split, if one does."""

    path: Path
    name: str
    folder: str


def find_tars(paths: Sequence[Path], report: Report) -> dict[str, list[Tar]]:
    """The tars of each of ``train``, ``test``, ``val`` and ``unlabeled``, those alone that have some, in order.

    The folder that a tar is in says its split, where it is one of several; else a word in its name; else it is of the
    training set. A single tar is, whatever its name.

    Args:
        paths: tars; folders with tars, or with folders of them that are named as splits; or patterns:
            ``data-{000..012}.tar``, ``{a,b}.tar``, ``*``, ``?`` and ``[..]``. A file that is there is no pattern.
        report: gets what else lies in the folders.

    Raises:
        DataError: a path that is not there, a pattern that nothing matches, no tars.
    """
    found: dict[str, Tar] = {}
    for path in paths:
        for tar in _of_path(path, report):
            found.setdefault(os.path.abspath(tar.path), tar)
    if not found:
        raise DataError("; ".join([f"{paths[0]}: no tars found, {EXPECTED}", *report.lines()]))
    real: dict[str, Path] = {}
    for tar in found.values():
        if (first := real.setdefault(os.path.realpath(tar.path), tar.path)) != tar.path:
            raise DataError(f"{tar.path}: the same file as {first}, by a link; its images would be taken twice")
    several = len({tar.path.parent for tar in found.values() if not tar.folder}) > 1
    splits: dict[str, list[Tar]] = {}
    for tar in sorted(found.values(), key=lambda tar: str(tar.path)):
        around = tar.folder or (tar.path.parent.name if several else "")
        folder = around if is_split(around) else ""
        named = folder or ("" if len(found) == 1 else tar.path.name)
        words = re.split("[^a-z]+", named.lower())
        splits.setdefault(_split(words), []).append(tar._replace(folder=folder))
    return splits


def place(tars: Sequence[Tar]) -> str:
    """Tars of a split, for a line: the folder that they are in, or the first and the last."""
    folders = {tar.folder for tar in tars}
    if len(folders) == 1 and tars[0].folder:
        return f"{tars[0].folder}/"
    return tars[0].path.name if len(tars) == 1 else f"{tars[0].path.name} to {tars[-1].path.name}"


def _split(words: Sequence[str]) -> str:
    """The split that some words name."""
    lower = {word.lower() for word in words}
    return next((split for names, split in NAMES if lower & set(names)), TRAIN)


def _of_path(path: Path, report: Report) -> Iterator[Tar]:
    pattern = str(path)
    if os.path.lexists(path):
        yield from _given(path, report)
    elif "{" not in pattern and not glob.has_magic(pattern):
        raise DataError(f"{path}: no tars found, since there is no such file or folder")
    else:
        for one in expanded(pattern):
            if os.path.lexists(one):
                yield from _given(Path(one), report)
            elif not glob.has_magic(one):
                raise DataError(f"{path}: no tars found for all of it: there is no {one}")
            else:
                yield from _matching(path, one, report)


def _matching(path: Path, pattern: str, report: Report) -> Iterator[Tar]:
    any_found = False
    for name in sorted(glob.glob(pattern)):
        if os.path.isdir(name) or _is_tar(name):
            any_found = True
            yield from _given(Path(name), report)
        else:
            _leave_out(os.path.basename(name), name, report)
    if not any_found:
        raise DataError(f"{path}: no tars found that {'it' if str(path) == pattern else pattern} matches")


def _given(path: Path, report: Report) -> Iterator[Tar]:
    if path.is_dir():
        yield from _inside(path, path, "", report)
    else:
        yield Tar(path, path.name, "")


def _inside(folder: Path, source: Path, split: str, report: Report) -> Iterator[Tar]:
    """The tars directly in a folder, and in its folders that are named as splits."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        name = os.path.relpath(entry.path, source)
        if entry.is_dir():
            if not split and is_split(entry.name):
                yield from _inside(Path(entry.path), source, entry.name, report)
            else:
                report.leave_out(FOLDERS, entry.name if is_junk_folder(entry.name) else f"{name}/", name)
        elif _is_tar(entry.name):
            yield Tar(Path(entry.path), name, split)
        else:
            _leave_out(entry.name, name, report)


def _is_tar(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_junk_file(os.path.basename(name))


def _leave_out(name: str, shown: str, report: Report) -> None:
    report.leave_out(FILES, file_kind(name), shown)


def expanded(pattern: str) -> Iterator[str]:
    """Braces spelled out as a shell does, one by one: ``{000..012}`` with its zeros, ``{a,b}``, and several of them.

    Braces that are neither are left as they are.
    """
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    first, last, words = found.groups()
    if words is None:
        width = max(len(first), len(last)) if any(len(end) > 1 and end[0] == "0" for end in (first, last)) else 0
        low, high = sorted((int(first), int(last)))
        middle: Iterator[str] = (str(number).zfill(width) for number in range(low, high + 1))
    else:
        middle = iter(words.split(","))
    for word in middle:
        yield from expanded(pattern[:found.start()] + word + pattern[found.end():])
