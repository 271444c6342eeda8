"""Which moments of a run lie between a file's opening and its rename, and which of them to kill at: pure functions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

CHANGES = ("rename", "remove", "rmdir", "mkdir", "truncate", "link", "symlink")
BETWEEN_SHARE = 0.6  # of the kills, where a run has so many such moments
EDGE_SHARE = 0.5  # of those, and of the others: at a change of the folder or directly after one


@dataclass(frozen=True)
class Event:
    """A change of the folder, about to happen at moment ``number``; ``to`` is a rename's new path."""

    number: int
    what: str
    path: str
    to: str = ""


@dataclass(frozen=True)
class Moment:
    """A point of a run at which it can be killed.

    Args:
        number: from 1, the same in every run of the same command on the same folder.
        what: ``line``, or the change about to happen.
        function: the product's, innermost.
        line: where, for people.
        between: the final path of the file that was opened for writing last of those not yet renamed into their
            places, or None where there is none.
        edge: a change is about to happen here or has just happened.
    """

    number: int
    what: str
    function: str
    line: str
    between: str | None = None
    edge: bool = False


@dataclass
class _Life:
    path: str
    opened: int
    renamed: int = 0


def lives(events: Sequence[Event]) -> list[tuple[int, int, str]]:
    """For each file that was opened for writing and renamed later: after which moment it was open, at which it was
    about to get its place, and the path there.

    A file is renamed by itself or with a folder above it; the last rename is the one that counts. A file that is
    removed before any rename, or is never renamed, is none.
    """
    found: list[_Life] = []
    now: dict[str, _Life] = {}
    for event in events:
        if event.what == "open":
            now[event.path] = _Life(event.path, event.number)
            found.append(now[event.path])
        elif event.what == "remove":
            now.pop(event.path, None)
        elif event.what == "rename":
            moved = [path for path in now if f"{path}/".startswith(f"{event.path}/")]
            for path in moved:
                life = now.pop(path)
                life.path, life.renamed = event.to + path[len(event.path):], event.number
                now[life.path] = life
    return [(life.opened, life.renamed, life.path) for life in found if life.renamed]


def tagged(report: dict) -> list[Moment]:
    """The moments of a counting run, from its report."""
    events = events_of(report)
    changes = {event.number for event in events if event.what in CHANGES}
    between: dict[int, str] = {}
    for opened, renamed, path in sorted(lives(events)):  # a file opened later is written over one opened earlier
        between.update(dict.fromkeys(range(opened + 1, renamed + 1), path))
    return [Moment(number, what, function, line, between.get(number),
                   number in changes or number - 1 in changes)
            for number, (function, line, what) in enumerate((report["places"][place] for place in report["moments"]),
                                                            start=1)]


def events_of(report: dict) -> list[Event]:
    """The events of a report."""
    return [Event(*event) for event in report["events"]]


def choose(moments: Sequence[Moment], count: int, seed: int) -> list[Moment]:
    """``count`` different moments (all, where there are fewer): random, but from every part of the program.

    BETWEEN_SHARE of them lie between a file's opening and its rename; EDGE_SHARE of those and of the others at a change
    of the folder. Within such a group each function has the same share at each file, however many lines it runs,
    so that the few lines around a rename get as many kills as the loop that copies pixels.
    """
    draw = random.Random(seed)
    between = [moment for moment in moments if moment.between]
    others = [moment for moment in moments if not moment.between]
    wanted = min(len(between), max(round(count * BETWEEN_SHARE), count - len(others)))
    chosen = _spread(between, wanted, draw) + _spread(others, count - wanted, draw)
    return sorted(chosen, key=lambda moment: moment.number)


def _spread(moments: Sequence[Moment], count: int, draw: random.Random) -> list[Moment]:
    edges = [moment for moment in moments if moment.edge]
    rest = [moment for moment in moments if not moment.edge]
    wanted = min(len(edges), max(round(count * EDGE_SHARE), count - len(rest)))
    return _evenly(edges, wanted, draw) + _evenly(rest, count - wanted, draw)


def _evenly(moments: Sequence[Moment], count: int, draw: random.Random) -> list[Moment]:
    """Round after round one of each function, kind of moment and file, in random order, until there are ``count``."""
    groups: dict[tuple, list[Moment]] = {}
    for moment in moments:
        groups.setdefault((moment.function, moment.what, moment.between or ""), []).append(moment)
    for group in groups.values():
        draw.shuffle(group)
    chosen: list[Moment] = []
    while groups and len(chosen) < count:
        for key in draw.sample(sorted(groups), len(groups)):
            if len(chosen) == count:
                break
            chosen.append(groups[key].pop())
            if not groups[key]:
                del groups[key]
    return chosen
