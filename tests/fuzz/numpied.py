"""Fuzzing of .npy and .npz files: the text of their headers, their members, and a zip file's own records."""

import functools
import io
import random
import re
import struct
import zipfile
from pathlib import Path

import numpy as np

from pipelines.common.errors import UsageError
from tests.fuzz.mutate import INTEGERS, bytewise, number, put
from tests.fuzz.target import READ, Target, check_splits, noting, pixels
from tools.sources import array_files, arrays


@functools.cache
def array_seeds() -> list[bytes]:
    """An .npy in each version of its format, and two of floats; an .npz stored, and others compressed, with labels of
    each kind, for training and test.
    """
    found = []
    for version in ((1, 0), (2, 0), (3, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, pixels(5, 4), version)
        found.append(stream.getvalue())
    for images in ((pixels(5, 4) / 255).astype("f4"), pixels(5, 4).astype("f2")):
        stream = io.BytesIO()
        np.save(stream, images)
        found.append(stream.getvalue())
    labels = np.array([0, 1, 2, 1, 0])
    floats = np.array([0, 1, 2, np.nan, 1])
    for save, names, stored in ((np.savez, ("images", "labels"), labels),
                                (np.savez_compressed, ("train_images", "train_labels"), labels - 1),
                                (np.savez_compressed, ("x_train", "y_train"), floats),
                                (np.savez_compressed, ("X_train", "y_train"), np.array(["cat", "dog", ""])[labels]),
                                (np.savez_compressed, ("x-train", "y-train"), np.array([b"cat", b"dog", b"1"])[labels]),
                                (np.savez_compressed, ("trainx", "trainy"), np.eye(3, dtype="f4")[labels])):
        stream = io.BytesIO()
        arrays_ = {names[0]: pixels(5, 4), names[1]: stored}
        arrays_ |= {name.replace("train", "test"): array for name, array in arrays_.items()}
        save(stream, **arrays_)
        found.append(stream.getvalue())
    return found


def mutate_npy(draw: random.Random, content: bytes) -> bytes:
    """The header's text, whose length is right or wrong."""
    wide = content[6:7] != b"\1"
    start = 12 if wide else 10
    length = int.from_bytes(content[8:start], "little")
    head, body = content[start:start + length].decode("latin1"), content[start + length:]
    for _ in range(draw.choice((1, 1, 2))):
        value = str(draw.choice(INTEGERS))
        dtype = draw.choice(("'|u1'", "'<u2'", "'>i8'", "'<f4'", "'|b1'", "'|O'", "'|V8'", "'|S1000000000'", "'<U9'",
                             "'<f2'", "'>f8'", "'<f16'", "'|i1'", "'|S8'", "'<U2'", "'>U3'", "'|V1000000000000'",
                             "'<M8'", "('<i4', (9, 9))", "[('a', '|u1')]", "'c16'", "''", "3"))
        shape = draw.choice((f"({value}, 4, 4, 3)", f"(5, {value}, {value}, 3)", f"(5, {value}, 4)", f"({value},)",
                             f"(5, 4, 4, {value})", "()", "[]", "(240,)", "(5, 48)", "(20, 12, 1)", "((5, 4), 4)",
                             "(True, 4, 4)", "5", "(5.0, 4)", f"({'1,' * 70})", "('5', 4)", "None", "(5, 4, 4, 3",
                             f"({'(' * 99}{')' * 99})", "(5, 3, 4, 4)", "(15, 4, 4)", "(1, 4, 4, 3)", "(240, 1, 1)"))
        order = draw.choice(("True", "True", "1", "None", "x"))
        match draw.randrange(5):
            case 0:
                head = re.sub(r"'descr': [^,]*", f"'descr': {dtype}", head)
            case 1 | 2:
                head = re.sub(r"\(5, 4, 4, 3\)|\(5,\)|\(5, 3\)", shape, head)
            case 3:
                head = head.replace("False", order)
            case 4:
                head = draw.choice((head[:-3], head.replace("'descr'", "'desc'")))
    text = head.encode("latin1", "replace")
    size = len(text) if draw.random() < 0.8 else draw.choice(INTEGERS) % 2**16
    return content[:8] + struct.pack("<I" if wide else "<H", size) + text + body


def mutate_array(draw: random.Random, content: bytes) -> bytes:
    """An array's header, in a zip file a member's; a zip file's own records; or bytes."""
    other = draw.choice(array_seeds())
    if draw.random() < 0.3:
        return bytewise(draw, content, other)
    if content[:2] != b"PK":
        return mutate_npy(draw, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw.randrange(len(members))
    name, inside = members[place]
    match draw.randrange(5):
        case 0 | 1:
            members[place] = name, mutate_npy(draw, inside)
        case 2:
            members[place] = name, bytewise(draw, inside, members[place - 1][1])
        case 3:
            members[place] = draw.choice(("images.npy", "labels.npy", "../x.npy", "x", "test_images.npy", "y.npy",
                                          "x_unlabeled.npy", "val_x.npy", "y_val.npy", "._x.npy", "a/X.npy")), inside
        case 4:
            members.insert(0, members[-1])
    stream = io.BytesIO()
    method = draw.choice((0, 8, 8, 8, 8, 8, 8, 12, 14))
    with zipfile.ZipFile(stream, "w") as archive:
        for name, inside in dict(members).items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), inside, method)
    content = stream.getvalue()
    if draw.random() < 0.4:  # the central directory, or a member's own header
        marks = [content.rfind(mark) for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6")]
        start = draw.choice([at for at in marks if at >= 0])
        content = put(content, start + draw.randrange(4, 46), number(draw, draw.choice(("<I", "<H"))))
    return content


def array_reader(path: Path) -> READ:
    """Past the header: the header of an array was parsed."""
    passed = []
    noting(array_files, "read_npy_header", passed)

    def read(content: bytes, past: list) -> None:
        file = path / ("x.npz" if content[:2] == b"PK" else "x.npy")
        file.write_bytes(content)
        passed.clear()
        try:
            check_splits(arrays.read(file, 4, test_fraction=0))
        except UsageError:  # a question of flags, which is one line too
            pass
        finally:
            past += passed[:1]
    return read


TARGETS = {"npy": Target(array_seeds, mutate_array, array_reader)}
