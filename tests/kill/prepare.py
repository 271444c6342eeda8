"""tools.prepare under fire: three splits in several shards, into a new folder or by --force over older sets."""

import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from pipelines.common import errors
from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images, write_set
from tests.kill.harness import Folder, Outcome, copy_folder
from tests.kill.moments import Event
from tools import verify

COUNTS = {"train": 300, "unlabeled": 150, "test": 100}
SPLITS = (*COUNTS, "extra")
CLASSES = 3
SAYS = {"starts clean": re.compile(r"start\w* clean"), "goes on": re.compile(r"interrupted conversion was complete")}


class Prepare:
    """Scenarios: ``fresh``, nothing there before; ``force``, over all four sets, of other images."""

    kind = "prepare"
    shares = {"fresh": 0.4, "force": 0.6}  # noqa: RUF012 - a constant

    def __init__(self, folder: Path):
        self.images: dict[str, dict[str, tuple]] = {"old": {}, "new": {}}  # and labels, by version and split
        self._folder, self.work = folder, folder / "work"
        self.out = self.work / "shards" / "toy"
        self._template = folder / "template"
        self._whole: dict[str, Folder] = {}
        for number, (version, splits) in enumerate(self.images.items()):
            for place, (split, count) in enumerate(COUNTS.items()):
                labels = None if split == "unlabeled" else np.arange(count) % CLASSES
                splits[split] = random_images(count, 12, 10 * number + place), labels
            np.savez(folder / f"{version}.npz", **{
                f"{split}_{name}": array for split, both in splits.items()
                for name, array in zip(("images", "labels"), both, strict=True) if array is not None})
        self.images["old"]["extra"] = random_images(50, 12, 99), None

    def set_up(self, run: Callable[[Sequence[str]], Outcome]) -> None:
        """Make the older sets: by the command itself, and an extra set that the new source has not."""
        self.lay("fresh")
        outcome = run(self._command("old"))
        if outcome.status:
            raise RuntimeError(f"no older sets to replace: {outcome.text}")
        write_set(self.out / "extra", self.images["old"]["extra"][0], split="extra")
        copy_folder(self.work, self._template)

    def lay(self, scenario: str) -> None:
        """See Subject."""
        shutil.rmtree(self.work, ignore_errors=True)
        if scenario == "force":
            copy_folder(self._template, self.work)
        else:
            self.work.mkdir()

    def command(self, scenario: str) -> list[str]:
        """See Subject: the same again, whatever is there."""
        return self._command("new") + ["--force"] * (scenario == "force")

    def _command(self, version: str) -> list[str]:
        return ["numpy", "--source", str(self._folder / f"{version}.npz"), "--out", str(self.out)]

    def finished(self, scenario: str, outcome: Outcome) -> None:
        """See Subject."""
        self._whole[scenario] = Folder(self.work)
        if self._versions() != dict.fromkeys(COUNTS, "new") | {"extra": "absent"}:
            raise RuntimeError(f"{scenario}: {self._versions()} after an unkilled run")

    def before_kill(self) -> None:
        """See Subject."""
        self._before = self._versions()

    def after_kill(self, scenario: str, events: Sequence[Event]) -> Iterator[str]:
        """(a) Every set whole and right, or not to be opened; (b) no mixture; (c) as before until replaced."""
        found = self._versions()
        for split, version in found.items():
            if version not in ("old", "new", "absent"):
                yield f"(a) {split}: {version}"
        by_version = {version: [split for split in found if found[split] == version] for version in ("old", "new")}
        if all(by_version.values()):
            yield f"(b) {' and '.join(by_version['old'])} old, {' and '.join(by_version['new'])} new, and all open"
        if found != self._before and not any(map(self._replaces, events)):
            yield f"(c) {found} before any set was touched, {self._before} at the start"

    def _replaces(self, event: Event) -> bool:
        """Whether an event moves sets into place or away, or writes down that this begins or is done: a rename or a
        removal beside the sets, or within one.
        """
        out, path = self.out.relative_to(self.work), Path(event.path)
        if event.what == "rename":
            return out in (path.parent, Path(event.to).parent)
        return (event.what == "remove" and path.parent == out) or (
            event.what in ("remove", "rmdir") and any(path.is_relative_to(out / split) for split in SPLITS))

    def after_rerun(self, scenario: str, outcome: Outcome, killed: Folder) -> Iterator[str]:
        """(d) the next start leaves byte for byte what an unkilled run does, manifest.json included, and says how."""
        whole = self._whole[scenario]
        if scenario == "fresh" and killed == whole and outcome.status == 2 and "exists already" in outcome.text:
            pass  # the kill came after the last change: a finished conversion, started a second time
        elif outcome.status:
            yield f"(d) the same command ends with {outcome.status}: {outcome.text.strip().splitlines()[-1]}"
        elif killed.leftovers:
            says = [kind for kind, words in SAYS.items() if words.search(outcome.text)]
            if len(says) != 1:
                yield f"(d) found {killed.leftovers[0]} and says: {' and '.join(says) or 'nothing of it'}"
        now = Folder(self.work)
        if now != whole:
            yield f"(d) not what an unkilled run leaves: {now.differences(whole)}"
        if now.leftovers:
            yield f"(d) left behind: {', '.join(now.leftovers)}"

    def _versions(self) -> dict[str, str]:
        """By split: old, new, absent (it does not open), or what is wrong with it."""
        return {split: self._version(split) for split in SPLITS}

    def _version(self, split: str) -> str:
        path = self.out / split
        try:
            shard_set = ShardSet(path)
        except DataError:
            return "absent"
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            if errors.run(verify.main, [str(path)]):
                return f"opens, but tools.verify finds it damaged: {said.getvalue().splitlines()[-1]}"
        images = shard_set.read(np.arange(len(shard_set)))
        for version, splits in self.images.items():
            if split in splits and np.array_equal(images, splits[split][0]):
                labels = splits[split][1]
                if labels is None or np.array_equal(shard_set.labels, labels):
                    return version
        return f"opens with {len(shard_set)} images that are neither the old nor the new ones"
