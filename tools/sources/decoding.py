"""Many images decoded on all cores, in order: a few by threads, many by processes, which share no interpreter lock.

On two cores two threads decoded 1.5 times as many photos as one, two processes 1.9 times (benchmarks/README.md). But a
process takes 0.3 s to start, and some 45 MB, so the first images are left to threads.
"""

import fcntl
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.sources import Batches
from tools.sources.images import MANY_PIXELS, MAX_MEMBER_BYTES, Damaged, Decoded, decode
from tools.sources.report import FRAMES, Report

CHUNK = 128  # images that are decoded as one piece of work, or fewer where they or their files take
CHUNK_BYTES = 2**24
PIPE_BYTES = 2**20  # so that an answer is no wait
BY_THREADS = 512  # images, before processes are started
ROOT = Path(__file__).parents[2]
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tools.sources.decoding import serve; serve()"


class Item(NamedTuple):
    """One image to decode: its name, for messages; its file, or its content; its label, if any."""

    name: str
    file: Path | str | bytes
    label: int | None


class Later(NamedTuple):
    """What a process answers for an image of many pixels, of which only one is decoded at a time."""


Answer = Decoded | str | Later  # a text says why an image is damaged
Engine = Callable[[list[Item], int], list[Answer]]


def decoded(items: Iterable[Item], size: int, report: Report) -> Batches:
    """Decode images: uint8 (n, size, size, 3), and labels (n,) or None, in the order of ``items``.

    Images that cannot be decoded are left out, and in ``report``. In memory are a few chunks of images.

    Raises:
        OSError: the disk fails, or a process that decodes ends.
    """
    cores = len(os.sched_getaffinity(0))
    engines: queue.SimpleQueue[Engine] = queue.SimpleQueue()
    for _ in range(cores):
        engines.put(by_thread)
    with ExitStack() as processes, ExitStack() as threads:  # what the threads wait for ends after them
        pool = threads.enter_context(ThreadPoolExecutor(cores))
        threads.callback(pool.shutdown, cancel_futures=True)
        waiting: deque[tuple[list[Item], int, Future]] = deque()
        given = 0
        for chunk in _chunks(iter(items), size):
            held = _held(chunk)
            while waiting and (len(waiting) > cores or held + sum(one[1] for one in waiting) > MAX_MEMBER_BYTES):
                yield from _collected(waiting.popleft(), size, report)
            if given < BY_THREADS <= given + len(chunk):
                for _ in range(cores - 1):  # one thread stays: the last core has files to find and shards to write, too
                    engines.get()
                for _ in range(cores - 1):
                    engines.put(processes.enter_context(Process()))
            given += len(chunk)
            waiting.append((chunk, held, pool.submit(_with_engine, engines, chunk, size)))
        while waiting:
            yield from _collected(waiting.popleft(), size, report)


def _chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    most, chunk, held = max(1, min(CHUNK, CHUNK_BYTES // (3 * size * size))), [], 0
    for item in items:
        chunk.append(item)
        held += _held([item])
        if len(chunk) == most or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _held(chunk: list[Item]) -> int:
    """Bytes of files in memory."""
    return sum(len(item.file) for item in chunk if isinstance(item.file, bytes))


def _with_engine(engines: queue.SimpleQueue, chunk: list[Item], size: int) -> list[Answer]:
    engine = engines.get()
    try:
        return engine(chunk, size)
    finally:
        engines.put(engine)


def _collected(done: tuple[list[Item], int, Future], size: int, report: Report) -> Batches:
    chunk, _, future = done
    images, labels = [], []
    for item, answer in zip(chunk, future.result(), strict=True):
        if isinstance(answer, Later):
            answer = _answer(item, size)
        if isinstance(answer, str):
            report.damaged(item.name, answer)
            continue
        images.append(answer.pixels)
        labels.append(item.label)
        if answer.brightest is not None:
            report.deep(answer.brightest)
        if answer.frames:
            report.leave_out(FRAMES, "frames, pages or previews behind the first", item.name)
    if images:
        yield np.stack(images), None if labels[0] is None else np.array(labels)


def _answer(item: Item, size: int, most: int | None = None) -> Answer:
    try:
        found = decode(item.file, size, item.name, most)
    except Damaged as error:
        return error.why
    return Later() if found is None else found


def by_thread(chunk: list[Item], size: int) -> list[Answer]:
    """Decode a chunk in this thread."""
    return [_answer(item, size) for item in chunk]


class Process:
    """Decodes chunks in a process of its own, which ends with this one, however this one ends."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         process_group=0)  # a terminal's Ctrl-C is for the process that started it
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a user may have so much of them in all
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __call__(self, chunk: list[Item], size: int) -> list[Answer]:
        """Decode a chunk; OSError where the process has ended."""
        try:
            pickle.dump((chunk, size), self._process.stdin, protocol=5)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)  # of a process of ours
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise OSError(f"a process that decodes images ended with status {self._process.wait()}, perhaps for want "
                          f"of memory") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def serve() -> None:
    """In a process of its own: decode chunks from stdin to stdout, until there are no more."""
    while True:
        try:
            chunk, size = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: object = [_answer(item, size, MANY_PIXELS) for item in chunk]
        except (MemoryError, OSError) as error:
            answer = error
        try:
            pickle.dump(answer, sys.stdout.buffer, protocol=5)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os._exit(1)
