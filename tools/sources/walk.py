"""The image files below a folder in the order of their names, and what else lies there."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import features

from pipelines.common.errors import DataError, UsageError
from pipelines.common.reading import open_regular
from tools.sources.report import FILES, FOLDERS, Report

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif",
                        ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"} - ({".avif"} if not features.check("avif") else set()))
NOT_READ = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC"}
HEIC_HINT = "HEIC is not read: convert it to JPEG first, by heif-convert for instance"
JUNK_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
                          "@recently-snapshot", "@synoresource", "__pycache__", "ipynb_checkpoints"})
JUNK_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
KNOWN = {"wnids.txt": "tinyimagenet", "train_X.bin": "stl10", "data_batch_1": "cifar10", "data_batch_1.bin": "cifar10",
         "fine_label_names.txt": "cifar100", "train_data_batch_1": "imagenet32", "train_32x32.mat": "svhn",
         "tiny_images.bin": "tinyimages"}  # files by which other sources are known
DEEPEST = 100  # folders in one another
SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
SIGNATURE_BYTES = 18
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes, in bytes


def is_junk_folder(name: str) -> bool:
    """Whether a folder of this name is what other programs leave: hidden, or of a known name."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def is_junk_file(name: str) -> bool:
    """Whether a file of this name is what other programs leave: hidden, as macOS's ._x.jpg beside x.jpg, or known."""
    return name.startswith(".") or name.lower() in JUNK_FILES


def junk_kind(name: str) -> str:
    """What a report calls a file that another program left."""
    return "._*" if name.startswith("._") else name


def file_kind(name: str) -> str:
    """What a report calls a file that is no image: junk by its name, else its extension."""
    return junk_kind(name) if is_junk_file(name) else extension(name) or "no extension"


def extension(name: str) -> str:
    """A file's extension in lower case; empty where none follows the last dot: ``x``, ``5.5cm``, ``2019.03``."""
    found = os.path.splitext(name)[1].lower()
    return found if re.fullmatch(r"\.[a-z][a-z0-9_-]{0,11}", found) else ""


def looks_like_an_image(start: bytes) -> bool:
    """Whether a file that begins so has the signature of a format that is read."""
    return (start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
            or (start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"))
            or (start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace())
            or (start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in BMP_HEADERS))


def images_below(folder: Path, report: Report | None = None, *, deep: bool = True, inside: Path | None = None,
                 enter: Callable[[Path, tuple[int, int]], object] = lambda folder, identity: None) -> Iterator[str]:
    """Paths of the images below a folder: entries of each folder by name, a folder's images in its place among them.

    By extension; where a file has none, by its first bytes. Links are followed, but not in circles. Holds the names of
    the folders from ``folder`` down to the one it is in.

    Args:
        folder: where to look.
        report: gets what is no image. None: it has it already.
        deep: look into its folders, too.
        inside: names in the report are relative to this folder; None for ``folder``.
        enter: called with each folder that is looked into, and what identifies it.
    """
    inside = inside or folder
    around = [_identity(one) for one in (*reversed(folder.absolute().parents), folder.absolute())]
    outside = len(around) - 1
    stack = [_entries(folder)]
    enter(folder, around[-1])
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            around.pop()
        elif _is_folder(entry):
            if deep and (identity := _enter(entry, around, outside, inside, report)):
                around.append(identity)
                stack.append(_entries(Path(entry.path)))
                enter(Path(entry.path), identity)
        elif _is_image(entry, inside, report):
            yield entry.path  # as text: a Path takes longer to make than all the rest


def folders_in(folder: Path, junk: bool = False) -> list[str]:
    """Names of the folders directly in a folder, sorted; with ``junk`` also what other programs leave."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry)
                      and (junk or not is_junk_folder(entry.name)))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _enter(entry: os.DirEntry, around: list[tuple[int, int]], outside: int, inside: Path,
           report: Report | None) -> tuple[int, int] | None:
    """What identifies a folder that is to be looked into; None for one that is not, which the report gets."""
    identity = _identity(Path(entry.path))
    if is_junk_folder(entry.name):
        kind = entry.name
    elif identity in around:
        kind = "links to folders around them"
    elif len(around) - outside >= DEEPEST:
        raise DataError(f"{entry.path}: more than {DEEPEST} folders in one another found")
    else:
        return identity
    if report:
        report.leave_out(FOLDERS, kind, os.path.relpath(entry.path, inside))
    return None


def _is_image(entry: os.DirEntry, inside: Path, report: Report | None) -> bool:
    name, suffix = entry.name, extension(entry.name)
    if is_junk_file(name):
        kind = junk_kind(name)
    elif not _is_file(entry):
        kind = "broken links" if entry.is_symlink() else "no regular files"
    elif suffix in EXTENSIONS:
        return True
    elif suffix:
        kind = suffix
    elif looks_like_an_image(_start(Path(entry.path))):
        return True
    else:
        kind = "no extension"
    if report:
        report.leave_out(FILES, kind, os.path.relpath(entry.path, inside))
        if suffix in NOT_READ and not is_junk_file(name):
            report.hint(HEIC_HINT)
    return False


def _start(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(SIGNATURE_BYTES)


def refuse_known(path: Path) -> None:
    """Raise UsageError for the folder of a data set that has a source of its own, which the message names."""
    for file, name in KNOWN.items():
        if (path / file).is_file():
            raise UsageError(f"{path}: {file} found, so this is {name}: python -m tools.prepare {name} reads it")


def report_others(folder: Path, used: Iterable[str], report: Report) -> None:
    """Report the files directly in a folder that are not ``used``."""
    used = set(used)
    with os.scandir(folder) as entries:
        for name in sorted(entry.name for entry in entries if _is_file(entry) and entry.name not in used):
            report.leave_out(FILES, file_kind(name), name)


def one_level_down(path: Path, names: Iterable[str]) -> list[Path]:
    """A folder, if it has one of these files, else those of the folders directly in it that do, sorted, without junk.

    Empty where none does, or ``path`` is no folder.
    """
    def has_one(folder: Path) -> bool:
        return any(os.path.isfile(folder / name) for name in names)

    names = tuple(names)
    if not path.is_dir():
        return []
    return [path] if has_one(path) else [path / name for name in folders_in(path) if has_one(path / name)]


def one_folder(path: Path, names: Iterable[str], what: str) -> Path | None:
    """The folder that ``one_level_down`` finds; None where it finds none.

    Raises DataError where it finds several, in which ``what`` is.
    """
    found = one_level_down(path, names)
    if len(found) > 1:
        raise DataError(f"{path}: {what} found in {', '.join(one.name for one in found)}, expected a single folder; "
                        f"--source names it")
    return found[0] if found else None
