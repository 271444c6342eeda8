"""Fuzzing of pickles (CIFAR, ImageNet 32×32, Tiny Images' index): opcodes left out, doubled, put in and changed."""

import functools
import pickle
import pickletools
import random
import struct
from pathlib import Path

import numpy as np

from tests.fuzz.binaries import PLANES, read_cifar
from tests.fuzz.mutate import MAX_BYTES, bytewise, number, put
from tests.fuzz.target import READ, Target, check_splits, pixels
from tools.sources import imagenet32, pickles, tiny_images

MIN_OPCODES = 10  # that a pickle runs past its header, if it does not end before

def python2(rows: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it: protocol 2, byte strings, numpy.core."""
    return (b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
            b"U\x01b\x87Rq\x05(K\x01" + b"K" + bytes([len(rows)]) + b"M" + struct.pack("<H", rows.shape[1]) +
            b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" +
            struct.pack("<i", rows.nbytes) + rows.tobytes() + b"tbU\x06labelsq\x06](" +
            b"".join(b"M" + struct.pack("<H", label) for label in labels) + b"eU\x0bbatch_labelq\x07U\x05batchu.")


@functools.cache
def batch_seeds() -> list[bytes]:
    """A CIFAR batch of two images in every protocol, and as Python 2 wrote it."""
    rows = pixels(2, 32).reshape(PLANES)
    content = {"batch_label": "batch", "labels": [3, 9], "data": rows, "filenames": ["a.png", "b.png"]}
    return [pickle.dumps(content, protocol) for protocol in range(6)] + [python2(rows, [3, 9])]


@functools.cache
def imagenet_seeds() -> list[bytes]:
    """A batch of 25 images, enough that their pixels stay in the file, in every protocol; and as Python 2 wrote it."""
    rows = pixels(25, 32).reshape(25, -1)
    labels = list(range(1, 1001, 40))
    content = {"data": rows, "labels": labels, "mean": rows[:, :40].mean(axis=0)}
    return [pickle.dumps(content, protocol) for protocol in range(1, 6)] + [
        python2(rows, labels[:6] + [1] * 19), pickle.dumps(content | {"labels": np.array(labels, ">i2")}, 4),
        pickle.dumps(content | {"mean": np.float64(3)}, 5)]


@functools.cache
def index_seeds() -> list[bytes]:
    """An index of eight words in every protocol."""
    words = {f"word{n}": (n * n, (n + 1) ** 2) for n in range(7)} | {"maple": (49, 300)}
    return [pickle.dumps(words, protocol) for protocol in range(6)]


@functools.cache
def opcodes(content: bytes) -> list[bytes]:
    """A pickle cut into its opcodes, each with its argument."""
    starts = [place for _, _, place in pickletools.genops(content)]
    return [content[first:last] for first, last in zip(starts, [*starts[1:], len(content)], strict=True)]


def opcode(draw: random.Random) -> bytes:
    """An opcode of any kind, its argument a boundary value or a hostile name."""
    chosen = draw.choice(pickletools.opcodes)
    code = chosen.code.encode("latin1")
    if chosen.arg is None:
        return code
    size = chosen.arg.n
    if size > 0:
        return code + draw.choice((draw.randbytes(size), number(draw, "<Q")[:size].ljust(size, b"\0")))
    if size == pickletools.UP_TO_NEWLINE:
        names = (b"os\nsystem", b"numpy\nload", b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct",
                 b"_codecs\nencode", b"numpy.core.multiarray\nscalar")
        return code + draw.choice((*names, b"0", b"-1", b"9" * 30, b"'x'", b"01", b"1e999", b"\xff")) + b"\n"
    width = {"1": "<B", "4": "<I", "8": "<Q"}[chosen.arg.name[-1]]
    content = draw.randbytes(draw.choice((0, 1, 2, 40)))
    return code + draw.choice((number(draw, width), struct.pack(width, len(content)))) + content


def mutate_pickle(draw: random.Random, seed: bytes) -> bytes:
    """Opcodes left out, doubled, swapped, put in and given other arguments; or bytes."""
    other = draw.choice(batch_seeds() + index_seeds())
    if draw.random() < 0.3:
        return bytewise(draw, seed, other)
    parts = list(opcodes(seed))
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(parts))
        match draw.randrange(7):
            case 0:
                parts[place:place + draw.choice((1, 1, 3))] = []
            case 1:
                most = max(1, MAX_BYTES // len(parts[place]))
                parts[place:place] = [parts[place]] * min(most, draw.choice((1, 2, 1000)))
            case 2:
                parts[place], parts[place - 1] = parts[place - 1], parts[place]
            case 3:
                parts.insert(place, opcode(draw))
            case 4:
                parts[place] = opcode(draw)
            case 5:
                parts[place] = put(parts[place], 1, number(draw, draw.choice(("<I", "<H", "B"))))
            case 6:
                taken = opcodes(other)
                first = draw.randrange(len(taken))
                parts[place:place] = taken[first:first + draw.choice((1, 4, 40))]
        parts = parts[:5000] or [b"."]
    return b"".join(parts)


def counting_opcodes(read: READ) -> READ:
    """Past the header: ten opcodes run of the pickle that is the input, or a whole shorter one."""
    current = [b"", []]

    class Counted(pickles.PlainUnpickler):
        def __init__(self, stream, size, held):
            stream.seek(0)
            content = stream.read(size)
            super().__init__(stream, size, held)
            self._past = current[1] if content == current[0] else []

        def load(self):
            try:
                result = super().load()
                self._past.append("end")
                return result
            finally:
                if self._steps >= MIN_OPCODES:
                    self._past.append(self._steps)
    pickles.PlainUnpickler = Counted

    def counted(content: bytes, past: list) -> None:
        current[:] = content, past
        read(content, past)
    return counted


def batch_reader(path: Path) -> READ:
    """See ``counting_opcodes``; the file of class names and the test set are sound."""
    meta = pickle.dumps({"label_names": list("abcdefghij")}, 2)
    return counting_opcodes(read_cifar(path, "", {"test_batch": batch_seeds()[2], "batches.meta": meta}))


def index_reader(path: Path) -> READ:
    """See ``counting_opcodes``."""
    def read(content: bytes, past: list) -> None:
        (path / "tiny_index.pkl").write_bytes(content)
        words = tiny_images.read_index(path / "tiny_index.pkl", 300, path / "tiny_images.bin")
        for word, (first, last) in words.items():
            assert isinstance(word, str)
            assert 0 <= first <= last <= 300
    return counting_opcodes(read)


def imagenet_reader(path: Path) -> READ:
    """See ``counting_opcodes``; the input is one of the ten files, and the others are not there."""
    imagenet32.TRAIN = imagenet32.TRAIN[:1]

    def read(content: bytes, past: list) -> None:
        (path / imagenet32.TRAIN[0]).write_bytes(content)
        check_splits(imagenet32.read(path))
    return counting_opcodes(read)


TARGETS = {"batch": Target(batch_seeds, mutate_pickle, batch_reader),
           "index": Target(index_seeds, mutate_pickle, index_reader),
           "imagenet32": Target(imagenet_seeds, mutate_pickle, imagenet_reader)}
