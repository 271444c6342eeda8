"""One's own images: folders of classes, folders of unlabeled images, or both, by one rule that is said."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipelines.common.errors import DataError, UsageError
from tools.sources import Source, Split
from tools.sources.files import ImageFiles, Seen
from tools.sources.images import RESIZED
from tools.sources.report import FOLDERS, IMAGES, Report
from tools.sources.splits import (
    TEST_NAMES,
    TRAIN_NAMES,
    VAL_NAMES,
    Part,
    assemble,
    find_split,
    find_unlabeled,
    is_split,
    looks_like_a_split,
)
from tools.sources.walk import folders_in, is_junk_folder, refuse_known

NO_CLASSES = "; if these are no classes: --unlabeled"
EXPECTED = "expected train/<class>/ folders, <class>/ folders, or images"


def read(path: Path, size: int, *, unlabeled: bool = False, classes: Sequence[str] = (),
         test_fraction: float | None = None, skip_damaged: bool = False) -> Source:
    """Recognise the layout of a folder; images are decoded when the splits are iterated.

    With ``train/``, its folders are the classes, else the source's own folders are. Never classes: folders named as
    splits, and junk. Images below a class, however deep, are its images; those directly in the root of the classes, and
    below ``unlabeled/`` there or beside ``train/``, are unlabeled. ``test/`` is the test set, else ``val/``; a
    ``test/`` without class folders beside a ``val/`` with them is unlabeled.

    Memory: the file names of the folders down to one, a label an image, and a few chunks of images.

    Args:
        path: the folder.
        size: height and width of the prepared images, in pixels.
        unlabeled: take every image below the folder as unlabeled.
        classes: folders that are the classes, below ``train/`` or the source; empty for the rule above.
        test_fraction: of each class, to hold out where there is no test set; None: not given.
        skip_damaged: see ``Report``.

    Raises:
        DataError: not such a folder, a class in the test set that the training images lack, a single class, no images.
        UsageError: no test set, and no ``test_fraction``; ``classes`` that are not there.
    """
    check_folder(path)
    files = ImageFiles(path, size, Report(skip_damaged))
    origin = {"path": str(path.resolve()), "resized": RESIZED.format(size)}
    if unlabeled:
        origin["unlabeled"] = True
        splits = assemble(str(path), (), files.unlabeled(path), None, [], test_fraction, files.report)
    else:
        origin |= {"classes": list(classes)} if classes else {}
        origin |= {} if test_fraction is None else {"test_fraction": test_fraction}
        splits = _Layout(files, tuple(classes)).splits(test_fraction)
    return Source("folder", (size, size, 3), splits, origin, files.report)


def check_folder(path: Path) -> None:
    """Raise DataError for what is no folder, and UsageError for a data set that another source reads."""
    if not path.is_dir():
        raise DataError(f"{path}: not a folder" + (", but a file; if it is an archive, unpack it first"
                                                   if path.is_file() else ""))
    refuse_known(path)


class _Layout:
    """Which folders of a source are what.

    Args:
        files: of the source.
        named: what ``--classes`` names.
    """

    def __init__(self, files: ImageFiles, named: tuple[str, ...]):
        self._files, self._path, self._report, self._named = files, files.path, files.report, named
        inside = folders_in(self._path)
        train = find_split(inside, TRAIN_NAMES)
        self._root = self._path / train[0] if train else self._path
        if named and not all((self._root / name).is_dir() for name in named):
            self._root = self._path
        self._classes = _named(self._root, named) if named else _class_folders(self._root)
        self._seen = {name: files.look(folder) for name, folder in self._classes.items()}
        for name in [name for name, seen in self._seen.items() if not seen.count]:
            if named:
                raise DataError(f"{self._classes[name]}: no images found, but --classes names it")
            self._report.leave_out(FOLDERS, name, files.name(self._classes.pop(name)))
        self._hint = NO_CLASSES if self._root == self._path and not named else ""
        self._unlabeled = [where / name for where in dict.fromkeys((self._root, self._path))
                           for name in find_unlabeled(folders_in(where)) if not self._has_class(where / name)]
        self._tests = [self._path / name for name in find_split(inside, (*TEST_NAMES, *VAL_NAMES))
                       if not self._has_class(self._path / name)]

    def _has_class(self, folder: Path) -> bool:
        """Whether ``--classes`` names a folder, or one in it."""
        return any(one.is_relative_to(folder) for one in self._classes.values())

    def splits(self, fraction: float | None) -> tuple[Split, ...]:
        """See ``assemble``."""
        names = tuple(self._classes)
        train = self._files.labeled(list(self._classes.values()), [self._seen[name] for name in names],
                                    "" if self._root == self._path else f"{self._files.name(self._root)}/")
        unlabeled = [self._files.unlabeled(self._root, f"directly in {self._root.name}/", deep=False)]
        for folder in self._unlabeled:
            unlabeled.append(self._files.unlabeled(folder, f"{self._files.name(folder)}/"))
            self._report_empty(folder, unlabeled[-1].count)
        test, more = self._test()
        self._rest(self._path, {*self._classes.values(), *self._unlabeled, *self._tests, self._root})
        tables = [name for name in self._report.names(".csv", ".tsv") if "submission" not in name.lower()]
        for table in tables[:3 if not names else 0]:  # Kaggle's example of a submission has labels that are none
            self._report.note(f"{table}: not read; if it has the labels: --labels-csv {self._path / table}")
        if not names and self._root != self._path and (beside := self._classes_beside()):
            self._report.hint(f"if {self._root.name} is a class, too: --classes {' '.join(beside)}")
        if not train.count and not any(part.count for part in unlabeled):
            inner = "" if self._root == self._path or not any(map(is_split, folders_in(self._root))) else \
                f"; perhaps --source {self._root}"
            raise DataError("; ".join([f"{self._path}: no images found, {EXPECTED}{inner}", *self._report.lines()]))
        hint = self._single(next(iter(self._classes.values()))) if len(names) == 1 else self._hint
        self._doubt(names)
        return assemble(str(self._path), names, train, test, unlabeled + more, fraction, self._report, hint)

    def _doubt(self, names: Sequence[str]) -> None:
        """Refuse classes that look like splits; say where their folders look like classes, or like splits."""
        if self._named or len(names) < 2:
            return
        splits = [name for name in names if looks_like_a_split(name)]
        if len(splits) > len(names) / 2:
            raise UsageError(f"{self._root}: the folders {', '.join(splits[:5])} look like splits, not like classes; "
                             f"rename them to train, test or unlabeled, or name the classes by --classes")
        inside = [set(folders_in(folder)) for folder in self._classes.values()]
        if len(common := sorted(set.intersection(*inside))) > 1:
            self._report.note(f"each of {', '.join(names[:3])}{', …' * (len(names) > 3)} has the folders "
                              f"{', '.join(common[:5])}; if those are the classes, move them up")
        elif mixed := [f"{name}/{one}" for name, found in zip(names, inside, strict=True)
                       for one in sorted(found) if is_split(one)]:
            self._report.note(f"{', '.join(mixed[:3])}{', …' * (len(mixed) > 3)}: named as splits, but inside classes, "
                              f"whose images they are here")

    def _test(self) -> tuple[Part | None, list[Part]]:
        """The test set; and images of test sets that are taken as unlabeled."""
        test, flat = None, []
        for folder in self._tests:
            name, found = f"{folder.name}/", self._test_classes(folder)
            if not found:
                flat.append(folder)
            elif test is not None or not self._classes:
                why = f"since {test.place} is the test set" if test else \
                    "which has classes, unlike the training images"
                self._report.leave_out(IMAGES, f"{name}, {why}", count=self._files.count(folder))
            else:
                self._rest(folder, {folder / one for one in found})
                test = self._files.labeled(
                    [folder / one for one in self._classes],
                    [self._files.look(folder / one) if one in found else Seen() for one in self._classes], name)
        unlabeled = []
        for folder in flat:
            if test is not None and folder.name.lower() in TEST_NAMES:
                unlabeled.append(self._files.unlabeled(folder, f"{folder.name}/"))
            elif count := self._files.count(folder):
                self._report.leave_out(IMAGES, f"{folder.name}/, which has no class folders", count=count)
            else:
                self._report_empty(folder, count)
        return test, unlabeled

    def _test_classes(self, folder: Path) -> list[str]:
        """The classes of a test set, those that have images; empty for one without class folders.

        Raises DataError for classes that the training images lack, unless ``--classes`` names ours, or none is one of
        ours in any spelling.
        """
        names = list(self._classes) if self._named else list(_class_folders(folder))
        found = [one for one in names if (folder / one).is_dir() and self._files.count(folder / one, say=False)]
        unknown = [one for one in found if one not in self._classes]
        known = {one.casefold() for one in self._classes}
        if unknown and self._classes:
            if not any(one.casefold() in known for one in found):
                return []
            raise DataError(f"{folder / unknown[0]}: class not found among the training images, which have "
                            f"{', '.join(list(self._classes)[:10])}{', …' * (len(self._classes) > 10)}")
        return found

    def _report_empty(self, folder: Path, count: int) -> None:
        if not count:
            self._report.leave_out(FOLDERS, folder.name, self._files.name(folder))

    def _rest(self, where: Path, used: set[Path]) -> None:
        """Report what lies in a folder beside what is used: folders, and images directly in it."""
        if where != self._root and (direct := self._files.count(where, deep=False)):
            self._report.leave_out(IMAGES, f"directly in {where.name}/", count=direct)
        for folder in (where / name for name in folders_in(where, junk=True)):
            if is_junk_folder(folder.name):
                self._report.leave_out(FOLDERS, folder.name, self._files.name(folder))
            elif folder == self._root or (folder not in used and any(one.is_relative_to(folder) for one in used)):
                self._rest(folder, used)
            elif folder not in used and folder not in self._empty(where):
                if count := self._files.count(folder):
                    self._report.leave_out(IMAGES, f"{self._files.name(folder)}/", count=count)
                else:
                    self._report.leave_out(FOLDERS, folder.name, self._files.name(folder))

    def _empty(self, where: Path) -> set[Path]:
        """Class folders without images, which were reported."""
        return {where / name for name in self._seen if name not in self._classes} if where == self._root else set()

    def _classes_beside(self) -> list[str]:
        """Names of folders beside ``train/`` that have images, and its own."""
        beside = [name for name, folder in _class_folders(self._path).items()
                  if not looks_like_a_split(name) and self._files.count(folder, deep=False, say=False)]
        return [*beside, self._root.name] if beside else []

    def _single(self, folder: Path) -> str:
        """What to do where there is a single class folder."""
        below = folders_in(folder)
        what = "what to read" if any(map(is_split, below)) else "the classes"
        inside = f"; if its folders ({', '.join(below[:5])}{', …' * (len(below) > 5)}) are {what}: --source {folder}" \
            if len(below) > 1 else ""
        return f"{inside}; if its images are unlabeled: --unlabeled"


def _class_folders(root: Path) -> dict[str, Path]:
    """The folders that may be classes, by name."""
    return {name: root / name for name in folders_in(root) if not is_split(name)}


def _named(root: Path, classes: tuple[str, ...]) -> dict[str, Path]:
    """The folders that ``--classes`` names, in the order of their names."""
    found: dict[str, Path] = {}
    for name in sorted(os.path.normpath(name) for name in classes):
        if os.path.isabs(name) or name.split(os.sep)[0] in ("..", ".") or not (root / name).is_dir():
            raise UsageError(f"--classes: found {name}, which is no folder in {root}")
        if any(name == other or name.startswith(f"{other}/") for other in found):
            raise UsageError(f"--classes: found {name} twice, or inside another class")
        found[name] = root / name
    return found
