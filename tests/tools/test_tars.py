"""Hostile tars: what they claim takes no memory and no time, and nothing in them is left out in silence."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile

import pytest

from pipelines.common.errors import DataError
from tests.conftest import random_images
from tests.tools.test_webdataset import png, write_tar
from tools.sources import cifar, tars, webdataset

IMAGE = png(random_images(1, 8)[0])
END = bytes(1024)


def header(name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    """A member's header alone; sizes below 0 and above 8 GB as GNU tar writes them."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str = "a.png", content: bytes = IMAGE, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(content), kind) + content + bytes(-len(content) % 512)


def pax(kind: bytes = tarfile.XHDTYPE, **records: str) -> bytes:
    """An extended header with these records."""
    content = b""
    for key, value in records.items():
        text = f" {key.replace('__', '.')}={value}\n"
        length = len(text) + len(str(len(text) + 2))
        content += f"{length}{text}".encode()
    return member("pax", content, kind)


def read_whole(path) -> None:
    for split in webdataset.read([path], 8, test_fraction=0).splits:
        for _ in split.batches():
            pass


SPARSE = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__realsize": str(10**12)}


@pytest.mark.parametrize(("content", "message"), [
    (header(size=10**12) + IMAGE, "not a readable tar"), (header(size=2**70) + IMAGE, "not a readable tar"),
    (header(size=10**12) + IMAGE + END, "not a readable tar"),
    (header("a.cls", 1025) + bytes(1536) + member() + END, "more than 1,024 bytes found, expected a class's number"),
    (header(size=-512) + END, "a header of -512 bytes"), (header(size=-10**6) + END, "a header of -1,000,000 bytes"),
    (pax(size="-512") + member() + END, "x.tar"), (pax(size="-10240") + member() + END, "x.tar"),
    (pax(size="9" * 5000) + member() + END, "not a readable tar"),
    *[(header("long", 10**12, kind) + bytes(512), "a header of 1,000,000,000,000 bytes found, expected at most 16,384")
      for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                   tarfile.SOLARIS_XHDTYPE)],
    (pax(hdrcharset="x") * 3000 + member() + END, "not a readable tar"),
    (member("long", b"x" * 300 + b"\0", tarfile.GNUTYPE_LONGNAME) * 3000 + member() + END, "not a readable tar"),
    (header(kind=tarfile.GNUTYPE_SPARSE) + END, "sparse"),
    (pax(**SPARSE) + member("a.png", b"1\n0\n1000000000000\n".ljust(512, b"\0")) + END, "sparse"),
    (pax(GNU__sparse__map="0,1000000000000", GNU__sparse__size=str(10**12)) + member() + END, "sparse"),
    (pax(path="../../a.png") + member() + END, "'../../a.png' leads out of the archive"),
    (member("../a.png") + END, "'../a.png' leads out"), (member("/etc/a.png") + END, "'/etc/a.png' leads out"),
    (member("x/../../a.png") + END, "leads out"),
    *[(header("a.png", kind=kind, linkname="/etc/passwd") + END, "'a.png' is a link, a device")
      for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)]],
    ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(("form", "pack"), [("tar", bytes), ("tar.gz", lambda content: gzip.compress(content, 1)),
                                            ("tar.xz", lambda content: lzma.compress(content, preset=0))])
def test_headers_that_lie(tmp_path, frugal, content, message, form, pack):
    path = tmp_path / f"x.{form}"
    path.write_bytes(pack(content))
    for read in (read_whole, cifar.read10):
        with frugal(), pytest.raises(DataError, match=r"x\.tar") as refused:
            read(path)
        assert len(str(refused.value)) < 500
        if read is read_whole:
            assert re.search(re.escape(message), str(refused.value))


def bomb(path, head: bytes, size: int) -> None:
    """A .tar.gz that is ``head`` and then zeros."""
    with gzip.open(path, "wb", 1) as file:
        file.write(head)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_an_extension_that_inflates(tmp_path, frugal, kind):
    bomb(tmp_path / "x.tar.gz", header("pax", 2**29, kind), 2**29)
    with frugal(), pytest.raises(DataError, match="a header of 536,870,912 bytes"):
        webdataset.read([tmp_path / "x.tar.gz"], 8)


def test_images_that_inflate(tmp_path, frugal):
    """Each as large as one may be, none an image: no more than three are held."""
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        for number in range(6):
            file.write(header(f"{number}.png", 2**26))
            for _ in range(2**6):
                file.write(bytes(2**20))
        file.write(END)
    source = webdataset.read([tmp_path / "x.tar.gz"], 8)
    with frugal(290):  # two decoded, one being read
        assert list(source.splits[0].batches()) == []
    with pytest.raises(DataError, match=r"6 damaged images: x\.tar\.gz:0 \(no image that is read here"):
        source.report.check("x")
    bomb(tmp_path / "y.tar.gz", header("a.png", 2**26 + 1), 2**26 + 2**20)
    source = webdataset.read([tmp_path / "y.tar.gz"], 8)
    with frugal():
        assert list(source.splits[0].batches()) == []
    with pytest.raises(DataError, match=r"y\.tar\.gz:a\.png \(67,108,865 bytes found, expected at most 67,108,864\)"):
        source.report.check("y")


def test_global_headers_and_members_are_not_collected(tmp_path, frugal):
    content = b"".join(pax(tarfile.XGLTYPE, **{f"key{number}": "x" * 15_000}) + member(f"a.{number}.json", b"")
                       for number in range(6000)) + member() + END
    (tmp_path / "x.tar").write_bytes(content)
    with frugal(32):
        read_whole(tmp_path / "x.tar")


def test_records_that_are_slow_to_parse(tmp_path, frugal):
    """Python's expression for one of them takes the square of their length, up to 3.11.9 and 3.12.5."""
    (tmp_path / "x.tar").write_bytes(member("pax", b"1" * 16384, tarfile.XHDTYPE) * 3 + member() + END)
    with frugal():
        read_whole(tmp_path / "x.tar")


def test_an_archive_larger_than_any(tmp_path, frugal, monkeypatch):
    """A million empty files in 5 MB, and gigabytes behind one."""
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 2**24)
    write_tar(tmp_path / "x.tar.gz", [(f"{number}/data_batch_1", b"") for number in range(40_000)])
    with frugal(), pytest.raises(DataError, match="more than 16,777,216 bytes unpacked"):
        cifar.read10(tmp_path / "x.tar.gz")


def test_a_pipe_is_not_waited_for(tmp_path, frugal):
    os.mkfifo(tmp_path / "x.tar")
    (tmp_path / "c").mkdir()
    for name in ("data_batch_1", "batches.meta"):
        os.mkfifo(tmp_path / "c" / name)
    for read in (lambda path: webdataset.read([path], 8), cifar.read10):
        for path in (tmp_path / "x.tar", tmp_path, tmp_path / "c"):
            with frugal(), pytest.raises(DataError):
                read(path)


def test_what_is_no_damage_is_read(tmp_path):
    """Folders, long names, and the records that git and BSD's tar write."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c" * 40}) as archive:
        folder = tarfile.TarInfo("./" + "long/" * 60)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number in range(3):
            info = tarfile.TarInfo(f"./{'long/' * 60}{number}.png")
            info.size, info.pax_headers = len(IMAGE), {"SCHILY.xattr.user.x": "x" * 5000, "mtime": "1.5"}
            archive.addfile(info, io.BytesIO(IMAGE))
    (split,) = webdataset.read([tmp_path / "x.tar"], 8).splits
    assert split.num_images == 3
    read_whole(tmp_path / "x.tar")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_in_several_streams(tmp_path, pack):
    """As parallel packers write, with zeros between those of xz; plain tars are the second route."""
    content = b"".join(member(f"{number}.png") for number in range(40)) + END
    between = bytes(8) if pack is lzma.compress else b""
    path = tmp_path / "x.tar"
    path.write_bytes(between.join(pack(content[start:start + 700]) for start in range(0, len(content), 700)) + between)
    with tars.opened(path) as archive:
        found = [(one.name, tars.content(archive, one, "x", 2**20)) for one in tars.members(archive, path)]
    assert found == [(f"{number}.png", IMAGE) for number in range(40)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_every_cut_of_a_packed_tar_is_refused(tmp_path, frugal, pack):
    content = pack(member() + member("b.png") + END)
    for end in range(1, len(content), 7):
        (tmp_path / "x.tar").write_bytes(content[:end])
        with pytest.raises(DataError, match=r"x\.tar: not a readable tar"):
            read_whole(tmp_path / "x.tar")


@pytest.mark.slow
def test_xz_takes_no_more_memory_than_it_is_given(tmp_path, frugal):
    """A window of 1 GiB that zeros would fill, which few bytes ask for."""
    packer = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**27, "preset": 0}])
    content = packer.compress(header("a.json", 2**28))
    for _ in range(2**8):
        content += packer.compress(bytes(2**20))
    (tmp_path / "x.tar.xz").write_bytes(content + packer.flush())
    with frugal(), pytest.raises(DataError, match=r"x\.tar\.xz: not a readable tar archive \(Memory usage limit"):
        read_whole(tmp_path / "x.tar.xz")
    head = member("a.cls", b"1") + member() + header("b.json", 2**28)
    (tmp_path / "y.tar.xz").write_bytes(lzma.compress(head + bytes(2**28) + END, preset=0))
    with frugal(), pytest.raises(DataError, match="a single class"):
        read_whole(tmp_path / "y.tar.xz")


def test_going_back_in_xz_unpacks_again(tmp_path):
    content = random_images(1, 128).tobytes()
    (tmp_path / "x").write_bytes(lzma.compress(content))
    with open(tmp_path / "x", "rb") as file:
        stream = tars.Unxz(file)
        for place in (0, 40_000, 10, 49_000, 49_000, 0):
            assert stream.seek(place) == place
            assert stream.read(100) == content[place:place + 100]
        assert stream.seek(60_000) == len(content)
        assert stream.read(1) == b""
