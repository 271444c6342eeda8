"""The samples of WebDataset tars: which members are one sample, which is its image, and what is left out."""

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipelines.common.errors import DataError, UsageError
from tools.sources.images import MAX_MEMBER_BYTES
from tools.sources.report import FILES, Report
from tools.sources.sample_labels import CLS, KINDS, TAKE_NONE, Labels
from tools.sources.tar_paths import Tar
from tools.sources.tars import content, members, opened
from tools.sources.walk import EXTENSIONS, HEIC_HINT, NOT_READ, extension, is_junk_file, is_junk_folder, junk_kind

KEPT = 1000  # names of samples of a tar, of each kind; and extensions of images
MAX_IMAGES = 100  # of a sample
SHOWN = 200  # characters of a member's name
SHOWN_FILES = 6
LONGEST = 40  # characters of an extension with dots that samples may have in common
FIRST_DOT = "a sample's name ends at its first dot"
LABELED, UNLABELED, BARE = range(3)  # samples: with image and label, with an image alone, with a json or txt alone


@dataclass
class Group:
    """Members that lie side by side and share their name up to its first dot.

    ``images`` and ``labels`` have the names of members by what follows that dot, ``labels`` with what is in them;
    ``image`` is the content of the chosen image, if it is wanted.
    """

    key: str
    images: dict[str, str] = field(default_factory=dict)
    labels: dict[str, tuple[str, bytes | None]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    image: bytes | None = None

    def files(self) -> str:
        """What the sample has, for a message."""
        return ", ".join([*self.images, *self.labels, *self.others][:SHOWN_FILES])


class Samples:
    """Reads the samples of tars by one rule: first their labels, then the images of some of them.

    An image is chosen by ``image_key``; else it is the one whose name has no further dot (``x.jpg`` beside
    ``x.mask.png``), or the only one.

    Args:
        report: gets in the first pass what is left out.
        labels: reads them; None: they are ignored.
        image_key: what follows the first dot of the image's name; None for the rule above.
    """

    def __init__(self, report: Report, labels: Labels | None, image_key: str | None):
        self._report, self._labels = report, labels
        self._image_key = None if image_key is None else image_key.lower().removeprefix(".")
        self._any_chosen = False
        self._alone: dict[str, str] = {}  # extensions with a further dot that are images, and the first such sample
        self._beside: dict[str, str] = {}  # and those that lie beside the image

    def scan(self, tar: Tar) -> Iterator[tuple[str, int]]:
        """The samples of a tar that have an image: name, and number of the label for now, −1 for none.

        Holds one sample's labels.

        Raises:
            DataError: a damaged tar, a sample with a label and no image, samples whose files lie apart.
            UsageError: several images, of which none is named; and see ``Labels``.
        """
        apart = _Apart(tar)
        for group in self._groups(tar, None):
            if not group.images:
                self._without_image(tar, group, apart)
                continue
            chosen = self._choose(tar, group)
            number, used = (-1, None) if self._labels is None else self._labels.number(
                {kind: (_where(tar, name), found) for kind, (name, found) in group.labels.items()})
            self._leave_out(tar, [name for ext, name in group.images.items() if ext != chosen], further_dots=True)
            self._leave_out(tar, [name for kind, (name, _) in group.labels.items() if kind not in (CLS, used)])
            apart.add(LABELED if number >= 0 or not self._labels else UNLABELED, group.key, chosen)
            yield group.key, number

    def images(self, tar: Tar, wanted: Callable[[int], bool]) -> Iterator[tuple[str, bytes | None]]:
        """The samples of a tar that have an image once more: name, and the image's content if it is ``wanted``.

        Args:
            tar: which.
            wanted: given the number of a sample in the tar, whether its image is to be read.
        """
        for group in self._groups(tar, wanted):
            if group.images:
                yield group.key, group.image

    def _groups(self, tar: Tar, wanted: Callable[[int], bool] | None) -> Iterator[Group]:
        """Members, sample by sample; ``wanted`` is None in the first pass."""
        with opened(tar.path) as archive:
            group, number = None, 0
            for member in members(archive, tar.path):
                *folders, name = [part for part in member.name.split("/") if part not in ("", ".")] or [""]
                if junk := _junk(folders, name):
                    if wanted is None:
                        self._report.leave_out(FILES, junk, _name(tar, member.name))
                    continue
                stem, _, ext = name.partition(".")
                key = posixpath.join(*folders, stem)
                if group is None or group.key != key:
                    if group is not None:
                        yield group
                        number += bool(group.images)
                    group = Group(key)
                if wanted is None:
                    self._add(archive, tar, member, group, ext.lower())
                elif extension(name) in EXTENSIONS:
                    self._add_image(tar, member, group, ext.lower())
                    if wanted(number) and self._chosen(group) == ext.lower():
                        group.image = None  # of two that may be chosen, one is held
                        group.image = self._content(archive, tar, member)
            if group is not None:
                yield group

    def _content(self, archive: tarfile.TarFile, tar: Tar, member: tarfile.TarInfo) -> bytes | None:
        """An image; None, and one more in the report, where it is too large."""
        if member.size > MAX_MEMBER_BYTES:
            self._report.damaged(f"{tar.name}:{_short(member.name)}", f"{member.size:,} bytes found, expected at most "
                                                                      f"{MAX_MEMBER_BYTES:,}")
            return None
        return content(archive, member, _where(tar, member.name), MAX_MEMBER_BYTES)

    def _add_image(self, tar: Tar, member: tarfile.TarInfo, group: Group, ext: str) -> None:
        if ext in group.images or len(group.images) == MAX_IMAGES:
            found = f"two {_short(ext)}" if ext in group.images else f"more than {MAX_IMAGES} images"
            raise DataError(f"{_where(tar, member.name)}: {found} in one sample found, expected one; {FIRST_DOT}")
        group.images[ext] = member.name

    def _add(self, archive: tarfile.TarFile, tar: Tar, member: tarfile.TarInfo, group: Group, ext: str) -> None:
        """In the first pass; of images the name alone."""
        if extension(member.name) in EXTENSIONS:
            self._add_image(tar, member, group, ext)
        elif ext in KINDS:
            if ext in group.labels:
                raise DataError(f"{_where(tar, member.name)}: two {ext} in one sample found, expected one; {FIRST_DOT}")
            limit = self._labels.limit(ext) if self._labels and ext in self._labels.kinds else -1
            found = content(archive, member, "", limit) if member.size <= limit else None
            group.labels[ext] = member.name, found
        else:
            if len(group.others) < SHOWN_FILES:
                group.others.append(_short(ext))
            self._leave_out(tar, [member.name])

    def _chosen(self, group: Group) -> str | None:
        """Which image of a sample is the one; None where none or several may be."""
        if self._image_key is not None:
            return self._image_key if self._image_key in group.images else None
        plain = [ext for ext in group.images if "." not in ext]
        candidates = plain or list(group.images)
        return candidates[0] if len(candidates) == 1 else None

    def _choose(self, tar: Tar, group: Group) -> str:
        """Which image is the one; raises where that cannot be said."""
        chosen, where = self._chosen(group), _where(tar, group.key)
        if chosen is None and self._image_key is not None:
            error = DataError if self._any_chosen else UsageError
            raise error(f"{where}: no {self._image_key} found, which --image-key names, but {group.files()}; "
                        f"{FIRST_DOT}")
        if chosen is None:
            one, other = sorted(group.images, key=lambda ext: "." in ext)[:2]
            raise UsageError(f"{where}: several images found, {_short(one)} and {_short(other)}; --image-key "
                             f"{_short(one)} takes one of them ({FIRST_DOT})")
        self._any_chosen = True
        for ext in group.images if self._image_key is None else ():
            if "." in ext and len(ext) <= LONGEST:
                mine, others = (self._alone, self._beside) if ext == chosen else (self._beside, self._alone)
                if len(mine) < KEPT:
                    mine.setdefault(ext, where)
                if ext in others:
                    alone, beside = (where, others[ext]) if ext == chosen else (others[ext], where)
                    raise DataError(f"{alone}: {ext} is its only image, but lies beside another one in {beside}; "
                                    f"expected the same files in all samples")
        return chosen

    def _without_image(self, tar: Tar, group: Group, apart: "_Apart") -> None:
        if self._labels and CLS in group.labels:
            heic = f"; {HEIC_HINT}" if any(f".{ext}" in NOT_READ for ext in group.others) else ""
            raise DataError(f"{_where(tar, group.key)}: a sample without an image, expected one beside "
                            f"{group.files()}{heic}; {TAKE_NONE}")
        self._leave_out(tar, [name for name, _ in group.labels.values()])
        if self._labels and group.labels:
            apart.add(BARE, group.key, "")

    def _leave_out(self, tar: Tar, names: list[str], further_dots: bool = False) -> None:
        for name in names:
            kind = extension(name)
            dots = f".{name.rpartition('/')[2].partition('.')[2].lower()}"
            if kind in NOT_READ:
                self._report.hint(HEIC_HINT)
            self._report.leave_out(FILES, dots if further_dots and len(dots) <= LONGEST else kind or "no extension",
                                   _name(tar, name))


class _Apart:
    """Notices that files of one sample lie apart in a tar, by the names of its first samples of each kind."""

    def __init__(self, tar: Tar):
        self._tar = tar
        self._images: tuple[dict[int, str], dict[int, str]] = {}, {}  # by hashed names, so that none takes much
        self._bare: set[int] = set()
        self._bare_count = self._unlabeled_count = 0

    def add(self, kind: int, key: str, image: str) -> None:
        """A sample: its kind, its name, and which of its images is taken."""
        name, hint = hash(key), ""
        if kind == BARE:
            self._bare_count += 1
            bad = name in self._images[UNLABELED]
            if len(self._bare) < KEPT:
                self._bare.add(name)
        else:
            self._unlabeled_count += kind == UNLABELED
            bad = any(found.get(name, image) != image for found in self._images)
            if len(self._images[kind]) < KEPT:
                self._images[kind][name] = image
        if not bad:
            bad = (kind == UNLABELED and name in self._bare) or (self._bare_count > KEPT and self._unlabeled_count > 0)
            hint = f", or {TAKE_NONE}"
        if bad:
            raise DataError(f"{_where(self._tar, key)}: the files of one sample lie apart, expected them side by side; "
                            f"tar --sort=name makes such a tar{hint}")


def _junk(folders: list[str], name: str) -> str:
    """The kind of what another program left; empty for others."""
    inside = next((f"{folder}/*" for folder in folders if is_junk_folder(folder)), "")
    return inside or (junk_kind(name) if is_junk_file(name) else "")


def _where(tar: Tar, name: str) -> str:
    return f"{tar.path}:{_short(name)}"


def _short(name: str) -> str:
    return name if len(name) <= SHOWN else f"{name[:SHOWN]}…"


def _name(tar: Tar, member: str) -> str:
    return f"{tar.name}:{_short(member)}"
