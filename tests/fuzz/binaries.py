"""Fuzzing of CIFAR's and STL-10's binaries and SVHN's MATLAB files: labels, sizes, and the fields of headers."""

import functools
import io
import random
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import INTEGERS, bytewise, number, put
from tests.fuzz.target import READ, Target, check_splits, noting, pixels
from tools.sources import cifar, matlab, stl10, svhn

PLANES = (2, 3072)
CIFAR = replace(cifar.CIFAR10, images={"train": ("data_batch_1",), "test": ("test_batch",)},
                images_per_file={"train": 2, "test": 2})


def read_cifar(path: Path, layout: str, others: dict[str, bytes]) -> READ:
    """CIFAR-10 of one batch, which is the input, and other files that are sound."""
    where = path / "cifar"
    where.mkdir(exist_ok=True)
    for name, content in others.items():
        (where / name).write_bytes(content)

    def read(content: bytes, past: list) -> None:
        (where / f"data_batch_1{layout}").write_bytes(content)
        check_splits(cifar._read(where, CIFAR, cifar.CIFAR100, 0))
    return read


@functools.cache
def binary_seeds() -> list[bytes]:
    """Two images and their labels."""
    rows = pixels(2, 32).reshape(PLANES)
    return [np.concatenate([np.array([[3], [label]], np.uint8), rows], 1).tobytes() for label in (0, 9)]


def mutate_binary(draw: random.Random, seed: bytes) -> bytes:
    """Labels and pixels of any value, in a file of the right size; or bytes."""
    if draw.random() < 0.4:
        return bytewise(draw, seed, draw.choice(binary_seeds()))
    for _ in range(draw.choice((1, 2, 9))):
        seed = put(seed, draw.choice((0, 3073, draw.randrange(len(seed)))), bytes([draw.randrange(256)]))
    return seed


def binary_reader(path: Path) -> READ:
    """Past the header, which these files lack: the file has the one size that is read at all."""
    read = read_cifar(path, ".bin", {"test_batch.bin": binary_seeds()[0],
                                     "batches.meta.txt": "\n".join("abcdefghij").encode()})
    passed = []
    noting(cifar, "_binary", passed)

    def noted(content: bytes, past: list) -> None:
        passed.clear()
        try:
            read(content, past)
        finally:
            past += passed[:1]
    return noted


@functools.cache
def matlab_seeds() -> list[bytes]:
    """Three images and their digits: compressed, not, and with other variables, as SciPy writes them."""
    from scipy.io import savemat
    found = []
    content = {"X": pixels(3, 32).transpose(1, 2, 3, 0), "y": np.array([[1], [10], [3]], np.uint8)}
    for compressed, more in ((True, {}), (False, {}), (True, {"other": {"a": [1, "x"]}, "z": np.ones((2, 2)) * 1j})):
        stream = io.BytesIO()
        savemat(stream, more | content, do_compression=compressed)
        found.append(put(stream.getvalue(), 0, b"MATLAB 5.0 MAT-file".ljust(116)))  # the date was in there
    return found


def elements(content: bytes) -> list[bytes]:
    """The elements behind a MATLAB file's header, unpacked."""
    found, place = [], 128
    while place < len(content):
        kind, size = struct.unpack("<2I", content[place:place + 8])
        whole = content[place:place + 8 + size]
        found.append(zlib.decompress(whole[8:]) if kind == 15 else whole)
        place += 8 + size
    return found


def mutate_matlab(draw: random.Random, seed: bytes) -> bytes:
    """Fields of the elements' own headers, which are packed again; or bytes."""
    if draw.random() < 0.3:
        return bytewise(draw, seed, draw.choice(matlab_seeds()))
    parts, head, pack = elements(seed), seed[:128], draw.random() < 0.6
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(parts))
        match draw.randrange(8):
            case 0:
                parts[place] = bytewise(draw, parts[place], parts[place - 1])
            case 1:
                parts.insert(place, parts[draw.randrange(len(parts))])
            case 2 if len(parts) > 1:
                del parts[place]
            case 3:
                parts[place] += bytes(draw.choice((1, 8, 5000, 100_000)))
            case 4 if draw.random() < 0.2:
                head = bytewise(draw, head, head).ljust(128, b"\0")[:128]
            case _:
                parts[place] = put(parts[place], 4 * draw.randrange(24), number(draw, draw.choice(("<I", "<I", "<H"))))
    if pack:
        packed = [zlib.compress(part, 1) for part in parts]
        sizes = [len(part) if draw.random() < 0.9 else draw.choice(INTEGERS) % 2**32 for part in packed]
        parts = [struct.pack("<2I", 15, size) + part for size, part in zip(sizes, packed, strict=True)]
    return head + b"".join(parts)


def matlab_reader(path: Path) -> READ:
    """Past the header: the file's 128 bytes, and the header of its first element with flags, shape, name and type."""
    (path / "svhn").mkdir(exist_ok=True)
    (path / "svhn" / "test_32x32.mat").write_bytes(matlab_seeds()[0])
    passed = []
    noting(matlab, "_matrix", passed)
    read_test = svhn._open(path / "svhn" / "test_32x32.mat", 5)
    original = svhn._open

    def opened(file, most):
        return read_test if file.name.startswith("test") else original(file, most)
    svhn._open = opened

    def read(content: bytes, past: list) -> None:
        (path / "svhn" / "train_32x32.mat").write_bytes(content)
        passed.clear()
        try:
            source = svhn.read(path / "svhn")
            check_splits(replace(source, splits=source.splits[:1]))
        finally:
            past += passed[:1]
    return read


@functools.cache
def stl10_seeds() -> list[bytes]:
    """Archives with a training and a test image, without and with a third: plain and compressed."""
    contents = {"train_X.bin": pixels(2, 96).tobytes(), "train_y.bin": b"\1\x0a", "test_X.bin": pixels(1, 96).tobytes(),
                "test_y.bin": b"\3"}
    found = []
    for mode, more in (("w", {}), ("w", {"class_names.txt": b"a b c d e f g h i j"}),
                       ("w:gz", {"unlabeled_X.bin": bytes(3 * 96 * 96)})):
        stream = io.BytesIO()
        options = {"compresslevel": 1} if mode == "w:gz" else {}
        with tarfile.open(fileobj=stream, mode=mode, **options) as archive:
            for name, content in (contents | more).items():
                member = tarfile.TarInfo(f"stl10_binary/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        found.append(put(stream.getvalue(), 4, bytes(4)) if mode == "w:gz" else stream.getvalue())  # gzip's date
    return found


def mutate_stl10(draw: random.Random, seed: bytes) -> bytes:
    """Of a plain archive the members' sizes and contents, made into an archive again; or bytes."""
    if seed[:2] == b"\x1f\x8b" or draw.random() < 0.3:
        return bytewise(draw, seed, draw.choice(stl10_seeds()))
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(seed)) as archive, tarfile.open(fileobj=stream, mode="w") as made:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
        changed = draw.randrange(len(members))
        for place, (name, content) in enumerate(members):
            if place == changed:
                match draw.randrange(5):
                    case 0:
                        continue
                    case 1:
                        content = content[:draw.randrange(len(content))]
                    case 2:
                        content += draw.randbytes(draw.choice((1, 2, 27_648)))
                    case _:
                        content = put(content, draw.randrange(len(content)), bytes([draw.randrange(256)]))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def stl10_reader(path: Path) -> READ:
    """Past the header: an archive was looked through to its end."""
    passed = []
    noting(stl10, "_archive", passed)

    def read(content: bytes, past: list) -> None:
        (path / "stl10_binary.tar.gz").write_bytes(content)
        passed.clear()
        try:
            check_splits(stl10.read(path / "stl10_binary.tar.gz"))
        finally:
            past += passed[:1]
    return read


TARGETS = {"bin": Target(binary_seeds, mutate_binary, binary_reader),
           "mat": Target(matlab_seeds, mutate_matlab, matlab_reader),
           "stl10": Target(stl10_seeds, mutate_stl10, stl10_reader)}
