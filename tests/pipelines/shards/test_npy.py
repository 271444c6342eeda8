"""A shard that is hashed and written while it is filled is the file that ``np.save`` writes."""

import hashlib
import io
from concurrent.futures import Future

import numpy as np
import pytest

from pipelines.shards import npy, writer
from pipelines.shards.writer import ShardWriter
from tests.conftest import random_images

IMAGES = random_images(200)  # of 192 bytes


class Late:
    """Stands in for a ThreadPoolExecutor whose thread is as slow as can be: works only when it is waited for."""

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


def write(path, images, expected, at_a_time=7) -> dict[str, bytes]:
    """A set of three shards of 60 images and one of 20, in pieces of 8; returns the shards' bytes."""
    with ShardWriter(path, dataset="d", split="train", image_shape=images.shape[1:], classes=tuple("abc"), source={},
                     expected=expected, shard_bytes=60 * 192) as out:
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
@pytest.mark.parametrize("expected", [None, 200, 190, 100, 0, 210, 10_000])
def test_files_are_numpys_whatever_number_was_expected(tmp_path, monkeypatch, expected, threads):
    monkeypatch.setattr(writer, "PIECE_BYTES", 8 * 192)
    if threads == "late":
        monkeypatch.setattr(writer, "ThreadPoolExecutor", Late)
    files = write(tmp_path / "s", IMAGES, expected)
    labels = (np.arange(200) % 3).astype(writer.LABEL_DTYPE)
    wanted = {f"{name}-0000{number}.npy": saved(array[60 * number:60 * number + 60])
              for name, array in (("images", IMAGES), ("labels", labels)) for number in range(4)}
    assert files == wanted


def test_a_right_expectation_spares_hashing_again(tmp_path, monkeypatch):
    again = []
    monkeypatch.setattr(writer.NpyFile, "_hash_again", lambda self, written: again.append(self) or "0" * 64)
    with ShardWriter(tmp_path / "s", dataset="d", split="train", image_shape=(8, 8, 3), classes=None, source={},
                     expected=200, shard_bytes=60 * 192) as out:
        out.append(IMAGES)
        out.finish()
    assert again == []


def test_a_large_image_is_a_piece_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PIECE_BYTES", 100)
    assert len(write(tmp_path / "s", IMAGES[:70], 70)) == 4


@pytest.mark.parametrize("expected", [None, 200, 150])
@pytest.mark.parametrize("failing", ["header", "first", "last"])
def test_one_write_that_fails_is_raised_whatever_follows(tmp_path, monkeypatch, expected, failing):
    """Of the last shard's, while those before and after it succeed; the disk was full for a moment, say."""
    monkeypatch.setattr(writer, "PIECE_BYTES", 8 * 192)
    which = {"header": 0, "first": 1, "last": 3}[failing]  # of 20 images in pieces of 8
    real, count = open, iter(range(10))

    class Failing(io.FileIO):
        def write(self, part):
            if str(self.name).endswith("images-00003.npy") and next(count) == which:
                raise OSError(28, "No space left on device")
            return super().write(part)

    def opened(path, mode, **options):
        return Failing(path, "x") if mode == "xb" else real(path, mode)
    monkeypatch.setattr(npy, "open", opened, raising=False)
    with pytest.raises(OSError, match=r"No space left on device.*images-00003\.npy"):
        write(tmp_path / "s", IMAGES, expected)
    assert next(count) == which + 1  # nothing was written after it
    assert list(tmp_path.iterdir()) == []
