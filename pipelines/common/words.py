"""Names and numbers in lines that people read."""

from collections.abc import Sequence

from pipelines.common.errors import shown

SHOWN_CLASSES, SHOWN_CHARACTERS = 10, 60


def counted(names: Sequence[str], counts: Sequence[int]) -> str:
    """``cat 120, dog 96``, or ``0: 120, 1: 96``, and so on for the first ten."""
    joint = ":" if all(map(str.isdecimal, names)) else ""
    parts = [f"{short(name)}{joint} {count:,}" for name, count in zip(names[:SHOWN_CLASSES], counts, strict=False)]
    return ", ".join(parts + ["…"] * (len(names) > SHOWN_CLASSES))


def some(count: int, what: str) -> str:
    """``1 image``, ``1,200 images``; of a noun whose plural ends in s."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def short(name: str) -> str:
    """A name, however long it is."""
    return name if len(name) <= SHOWN_CHARACTERS else shown(name)


def duration(seconds: float) -> str:
    """``40 s``, ``35 min``, ``6.2 h``, ``12 days``."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length and length > 60 else \
                f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"
