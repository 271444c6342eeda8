"""What a conversion saw: how it understood its source, what it left out by kind and number, and damaged images."""

from pipelines.common.errors import DataError
from pipelines.common.words import some

NAMES, ALL_NAMES, DAMAGED_NAMES = 1000, 20_000, 20_000  # that are kept for the manifest: of a kind, in all, of damaged
KINDS = 1000  # that are told apart
SHOWN_KINDS, SHOWN_NAMES, SHOWN_DAMAGED = 8, 6, 20  # in a line
OTHERS = "others"
TO_8_BITS = "32-bit pixels x become 8 bits by (255 * (x - x.min()) / (x.max() - x.min())).astype('uint8')"
DARK = 0.25  # of the range: 16-bit images whose brightest pixel is below are named

# Groups of what is left out, and how a line says them.
FILES, IMAGES, FRAMES, FOLDERS, ARRAYS, ROWS = "files", "images", "frames", "folders", "arrays", "rows"
PHRASES = {FILES: "file", IMAGES: "image", FRAMES: "image", ARRAYS: "array", ROWS: "row"}


class Tally:
    """How many there are of something, and the first names."""

    def __init__(self, limit: int = NAMES):
        self.count = 0
        self.names: list[str] = []
        self._limit = limit

    def add(self, name: str | None = None, count: int = 1) -> None:
        """Count ``count`` more, of which one may be named."""
        self.count += count
        if name is not None and len(self.names) < self._limit:
            self.names.append(name)

    def as_dict(self) -> dict:
        """For JSON."""
        return {"count": self.count} | ({"names": self.names} if self.names else {})


class Report:
    """Filled by a source's reader. Its size does not grow with the number of images.

    Args:
        skip_damaged: leave images out that cannot be decoded, instead of an error that names them.
    """

    def __init__(self, skip_damaged: bool = False):
        self.notes: list[str] = []  # how the source was understood, a line each
        self.used: set[str] = set()  # names of files that are no images, but not left out
        self.skip_damaged = skip_damaged
        self._left_out: dict[str, dict[str, Tally]] = {}
        self._damaged = Tally(DAMAGED_NAMES)
        self._names = 0  # kept
        self._hints: list[str] = []
        self._deep = 0  # images of 16 bits
        self._brightest = 0

    def note(self, line: str) -> None:
        """Say a line before the conversion: how the source was understood."""
        self.notes.append(line)

    def leave_out(self, group: str, kind: str, name: str | None = None, count: int = 1) -> None:
        """Count what is left out.

        Args:
            group: ``FILES`` that are no images, ``IMAGES`` in places that are not used, ``FRAMES`` of images behind
                the first, ``FOLDERS`` of which no image is taken, ``ARRAYS``, or ``ROWS`` of a file of labels.
            kind: what they have in common: an extension, a place and the reason.
            name: of one of them.
            count: how many.
        """
        if name in self.used:
            return
        kinds = self._left_out.setdefault(group, {})
        if kind not in kinds and len(kinds) >= KINDS:
            kind = OTHERS
        tally = kinds.setdefault(kind, Tally())
        before = len(tally.names)
        tally.add(name if self._names < ALL_NAMES else None, count)
        self._names += len(tally.names) - before

    def hint(self, line: str) -> None:
        """Add to the line of what was left out, once, how to have it taken."""
        if line not in self._hints:
            self._hints.append(line)

    def damaged(self, name: str, reason: str) -> None:
        """An image that cannot be decoded."""
        self._damaged.add(f"{name} ({reason})")

    def deep(self, brightest: int) -> None:
        """An image of 16 bits became one of 8; its brightest pixel was ``brightest``."""
        self._deep += 1
        self._brightest = max(self._brightest, brightest)

    def names(self, *kinds: str) -> list[str]:
        """The files of these kinds that were left out, as far as they are kept."""
        return [name for kind in kinds if kind in self._left_out.get(FILES, {})
                for name in self._left_out[FILES][kind].names]

    def check(self, where: str) -> None:
        """Raise DataError, naming the damaged images, unless they are to be left out."""
        if self._damaged.count and not self.skip_damaged:
            count = self._damaged.count
            mend = f"; {TO_8_BITS}" if any("(32-bit " in name for name in self._damaged.names) else ""
            raise DataError(f"{where}: {count:,} damaged image{'s' * (count > 1)}: {self._damaged_names()}{mend}; "
                            f"--skip-damaged leaves {'them' if count > 1 else 'it'} out")

    def lines(self) -> list[str]:
        """What to say after the conversion: what was left out, and images that came out dark."""
        parts = [self._phrase(group) for group in PHRASES if group in self._left_out]
        if FOLDERS in self._left_out:
            parts.append(f"no images taken from: {_listed(self._left_out[FOLDERS])}")
        if self._damaged.count:
            parts.append(f"{some(self._damaged.count, 'damaged image')}: {self._damaged_names()}")
        found = [f"left out: {'; '.join(parts + self._hints)}"] if parts else []
        if self._deep and self._brightest < DARK * 65535:
            found.append(f"dark: the brightest pixel of {some(self._deep, 'image')} of 16 bits is {self._brightest:,} "
                         f"of 65,535, and 16 bits become 8 by a division by 257; if they use fewer bits, multiply "
                         f"their pixels first (by 16 for 12 bits)")
        return found

    def as_dict(self) -> dict:
        """For the manifest: all kinds, with the first names of each; empty where nothing was left out."""
        found = {group: {kind: tally.as_dict() for kind, tally in kinds.items()}
                 for group, kinds in self._left_out.items()}
        return found | ({"damaged": self._damaged.as_dict()} if self._damaged.count else {})

    def _phrase(self, group: str) -> str:
        """``25 files (.avif 5, no extension 3), labels.csv``; ``12 images (val/, since test/ is the test set)``."""
        kinds = self._left_out[group]
        if group == ARRAYS:
            listed = "; ".join([*kinds][:SHOWN_KINDS])
            return f"arrays: {listed}{'; …' * (len(kinds) > SHOWN_KINDS)}"
        if group != FILES:
            parts = [f"{some(tally.count, PHRASES[group])} ({kind})" for kind, tally in kinds.items()]
            return ", ".join(parts[:SHOWN_KINDS] + ["…"] * (len(parts) > SHOWN_KINDS))
        once = [tally.names[0] if kind.startswith(".") or kind == tally.names[0].rpartition("/")[2] else
                f"{tally.names[0]} ({kind})" for kind, tally in kinds.items() if tally.count == 1 and tally.names]
        several = {kind: tally for kind, tally in kinds.items() if not (tally.count == 1 and tally.names)}
        total = sum(tally.count for tally in several.values())
        parts = [f"{total:,} files ({_listed(several)})"] if several else []
        more = [f"and {len(once) - SHOWN_NAMES} more files"] if len(once) > SHOWN_NAMES else []
        return ", ".join(parts + once[:SHOWN_NAMES] + more)

    def _damaged_names(self) -> str:
        more = self._damaged.count - SHOWN_DAMAGED
        return ", ".join(self._damaged.names[:SHOWN_DAMAGED]) + (f" and {more:,} more" if more > 0 else "")


def _listed(kinds: dict[str, Tally]) -> str:
    """Kinds and their numbers, the most frequent first."""
    ordered = sorted(kinds.items(), key=lambda item: -item[1].count)
    parts = [kind if tally.count == 1 else f"{kind} {tally.count:,}" for kind, tally in ordered[:SHOWN_KINDS]]
    return ", ".join(parts + ["…"] * (len(ordered) > SHOWN_KINDS))
