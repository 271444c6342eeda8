"""A shard that one thread writes and another hashes, while the next is filled, is the file that ``np.save`` writes."""

import hashlib
import io
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from pipelines.shards import writer
from pipelines.shards.writer import ShardWriter
from tests.conftest import random_images

IMAGES = random_images(200)  # of 192 bytes


class Late:
    """Stands in for a ThreadPoolExecutor whose threads are as slow as can be: they work only when waited for."""

    def __init__(self, *arguments, **options):
        self._waiting: list[LateFuture] = []

    def __enter__(self) -> "Late":
        return self

    def __exit__(self, *exception) -> None:
        while self._waiting:
            self.run()

    def submit(self, work, *arguments) -> Future:
        future = LateFuture()
        future.todo, future.thread = (work, arguments), self
        self._waiting.append(future)
        return future

    def run(self) -> None:
        future = self._waiting.pop(0)
        work, arguments = future.todo
        try:
            future.set_result(work(*arguments))
        except OSError as error:
            future.set_exception(error)


class LateFuture(Future):
    """Has everything before it done when it is asked."""

    def result(self, timeout=None):
        while not self.done():
            self.thread.run()
        return super().result(timeout)


def write(path, images, at_a_time=7, shard_bytes=60 * 192) -> dict[str, bytes]:
    """A set of shards of 60 images; returns the shards' bytes."""
    with ShardWriter(path, dataset="d", split="train", image_shape=images.shape[1:], classes=tuple("abc"), source={},
                     shard_bytes=shard_bytes) as out:
        for first in range(0, len(images), at_a_time):
            out.append(images[first:first + at_a_time], np.arange(first, min(len(images), first + at_a_time)) % 3)
        manifest = out.finish()
    files = {path.name: path.read_bytes() for path in path.glob("*.npy")}
    for shard in manifest.shards:
        for file in (shard.images, shard.labels):
            assert file.bytes == len(files[file.name])
            assert file.sha256 == hashlib.sha256(files[file.name]).hexdigest()
    return files


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("threads", ["real", "late"])
@pytest.mark.parametrize("at_a_time", [1, 7, 60, 130, 200])
@pytest.mark.parametrize("count", [1, 59, 60, 61, 120, 200])
def test_files_are_numpys_however_the_images_come(tmp_path, monkeypatch, count, at_a_time, threads):
    if threads == "late":
        monkeypatch.setattr(writer, "ThreadPoolExecutor", Late)
    files = write(tmp_path / "s", IMAGES[:count], at_a_time)
    labels = (np.arange(count) % 3).astype(writer.LABEL_DTYPE)
    wanted = {f"{name}-{number:05d}.npy": saved(array[60 * number:60 * number + 60])
              for name, array in (("images", IMAGES[:count]), ("labels", labels)) for number in range(-(-count // 60))}
    assert files == wanted


def test_a_large_image_is_a_shard_of_its_own(tmp_path):
    assert len(write(tmp_path / "s", IMAGES[:4], shard_bytes=100)) == 2 * 4


def test_memory_is_that_of_two_shards(tmp_path, frugal):
    """Forty shards of 8 MiB come faster than they are written; with what a batch of 4 MiB takes."""
    batch = np.zeros((4, 1024, 1024, 1), np.uint8)
    with frugal(2 * 8 + 8), ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(1024, 1024, 1),
                                        classes=None, source={}, shard_bytes=2**23) as out:
        for _ in range(80):
            out.append(batch)
        assert len(out.finish().shards) == 40


def test_a_shard_is_written_while_the_next_is_filled(tmp_path, monkeypatch):
    """The second is taken whole before the first is on the disk, and handed over only then."""
    real, go_on = writer.os.fsync, threading.Event()

    def fsync(descriptor):
        assert go_on.wait(10)
        real(descriptor)
    with monkeypatch.context() as patch, ShardWriter(
            tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None, source={},
            shard_bytes=60 * 192) as out:
        patch.setattr(writer.os, "fsync", fsync)
        out.append(IMAGES[:119])
        handing = threading.Thread(target=out.append, args=(IMAGES[119:121],))
        handing.start()
        handing.join(0.1)
        assert handing.is_alive()
        assert sorted(path.name for path in out.partial.iterdir()) == ["images-00000.npy"]
        go_on.set()
        handing.join()
        assert [shard.count for shard in out.finish().shards] == [60, 60, 1]


@pytest.mark.parametrize("threads", ["real", "late"])
@pytest.mark.parametrize("failing", ["header", "pixels", "fsync"])
@pytest.mark.parametrize("name", ["images-00000.npy", "labels-00001.npy", "images-00003.npy"])
def test_what_fails_once_is_raised_whatever_follows(tmp_path, monkeypatch, name, failing, threads):
    """At the first shard, one in the middle, or the last; those around it succeed: the disk was full for a moment."""
    failed = []

    def fail():
        failed.append(1)
        raise OSError(28, "No space left on device")

    class Failing(io.BufferedWriter):
        def __init__(self, path):
            super().__init__(io.FileIO(path, "x"))

        def write(self, part):
            if failing == ("pixels" if isinstance(part, np.ndarray) else "header"):
                fail()
            return super().write(part)

        def fileno(self):
            return fail() if failing == "fsync" else super().fileno()
    real = open
    monkeypatch.setattr(writer, "open", lambda path, mode: Failing(path) if path.name == name else real(path, mode),
                        raising=False)
    if threads == "late":
        monkeypatch.setattr(writer, "ThreadPoolExecutor", Late)
    with pytest.raises(OSError, match=rf"No space left on device.*{name}"):
        write(tmp_path / "s", IMAGES)
    assert failed == [1]
    assert list(tmp_path.iterdir()) == []
