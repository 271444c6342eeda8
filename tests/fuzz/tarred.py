"""Fuzzing of WebDataset tars: fields of headers whose checksums are right, extended records, and compression."""

import functools
import gzip
import io
import lzma
import random
import tarfile
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.mutate import INTEGERS, bytewise, number, put
from tests.fuzz.pictures import image_seeds
from tests.fuzz.target import READ, Target, check_splits
from tools.sources import samples, webdataset


@functools.cache
def tar_seeds() -> list[bytes]:
    """Three samples, with labels in cls, json or txt, or without, in each format of tar; some with long names."""
    png = image_seeds("PNG")[0]
    found = []
    for form, prefix, label in ((tarfile.USTAR_FORMAT, "", ("cls", b"%d")), (tarfile.GNU_FORMAT, "long/" * 30,
                                                                             ("cls", b"%d")),
                                (tarfile.PAX_FORMAT, "é" * 80, None), (tarfile.USTAR_FORMAT, "", (
                                    "json", b'{"x": [{"y": null}], "label": %d, "z": "\\u00e9"}')),
                                (tarfile.GNU_FORMAT, "a/", ("txt", b"class %d\n"))):
        stream = io.BytesIO()
        records = None if label else {"comment": "x"}
        with tarfile.open(fileobj=stream, mode="w", format=form, pax_headers=records) as out:
            for key in range(3):
                labels = [(label[0], label[1] % key)] if label else []
                for name, content in [*labels, ("png", png), ("mask.png", png), ("npy", b"x")]:
                    info = tarfile.TarInfo(f"{prefix}{key}.{name}")
                    info.size = len(content)
                    out.addfile(info, io.BytesIO(content))
        found.append(stream.getvalue()[:out.offset])
    return found


def sealed(block: bytes) -> bytes:
    """A tar's header with its checksum right."""
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def mutate_tar(draw: random.Random, content: bytes) -> bytes:
    """Fields of headers, their checksums right; headers doubled; extended records; or bytes. Some are packed."""
    if draw.random() < 0.3:
        content = bytewise(draw, content, draw.choice(tar_seeds()))
    else:
        for _ in range(draw.choice((1, 1, 2, 4))):
            headers = [at for at in range(0, len(content) - 511, 512) if content[at + 257:at + 262] == b"ustar"]
            at = draw.choice(headers or [0])
            block = content[at:at + 512].ljust(512, b"\0")
            match draw.randrange(6):
                case 0:
                    size = draw.choice(INTEGERS)
                    block = put(block, 124, draw.choice((
                        b"%011o\0" % (abs(size) % 8**11), b"\x80" + size.to_bytes(11, "big", signed=True),
                        b"\xff" * 12, b"7" * 12, b"x" * 12)))
                case 1:
                    block = put(block, 156, draw.choice((b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"K", b"L",
                                                         b"S", b"g", b"x", b"X", b"V", b"\xff")))
                case 2:
                    name = draw.choice((b"../a.png", b"/a.png", b"0.png", b"1.cls", b"a.b.png", b"\xff\xfe", b"",
                                        b"\x1b[2J.png", b"0.jpg", b"1.txt", b"2.json", b"._0.png", b"a/.b/0.png",
                                        b"."))
                    block = put(block, 0, name.ljust(draw.choice((1, 100)), b"\0"))
                case 3:
                    place = draw.choice((100, 108, 116, 136, 157, 257, 263, 329, 345, 386))
                    block = put(block, place, number(draw, "<Q"))
                case 4:
                    key = draw.choice(("size", "path", "linkpath", "mtime", "GNU.sparse.map", "GNU.sparse.size", "x",
                                       "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.realsize", "hdrcharset",
                                       "GNU.sparse.name"))
                    value = draw.choice((*INTEGERS, "", "x", "../x", "1,2", "BINARY", "1" * 300, "0,1,2"))
                    text = f"{key}={value}\n"
                    record = f"{draw.choice((len(text) + 3, len(text) + 3, 0, 1, 9**9))} {text}".encode()
                    extended = tarfile.TarInfo("pax")
                    extended.type, extended.size = draw.choice((tarfile.XHDTYPE, tarfile.XGLTYPE)), len(record)
                    content = content[:at] + extended.tobuf() + record.ljust(512, b"\0") + content[at:]
                    continue
                case 5:
                    first = draw.choice(headers or [0])
                    content = content[:at] + content[first:first + draw.choice((512, 1024))] + content[at:]
                    continue
            content = content[:at] + sealed(block) + content[at + 512:]
    packed = draw.random()
    if packed < 0.2:
        content = gzip.compress(content, 1, mtime=0) if packed < 0.1 else lzma.compress(content, preset=0)
        if draw.random() < 0.5:
            content = bytewise(draw, content, content)
    return content


def tar_reader(path: Path) -> READ:
    """Past the header: the first member's header was parsed, its checksum being right."""
    passed, original = [], samples.opened

    @contextmanager
    def opened(file):
        with original(file) as archive:
            passed.append(file)
            yield archive
    samples.opened = opened

    def read(content: bytes, past: list) -> None:
        (path / "x.tar").write_bytes(content)
        passed.clear()
        try:
            source = webdataset.read([path / "x.tar"], 8, test_fraction=0)
            for split in source.splits:
                for _ in split.batches():
                    pass
            source.report.check(source.name)
            check_splits(source)
        finally:
            past += passed[:1]
    return read


TARGETS = {"tar": Target(tar_seeds, mutate_tar, tar_reader)}
