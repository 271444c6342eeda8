"""Pickles that want to run something, or to take memory or time: refused in one line, for none of it."""

import gc
import io
import os
import pickle
import struct
import weakref

import numpy as np
import pytest

from pipelines.common.errors import DataError
from tools.sources import tiny_images
from tools.sources.pickles import load_dict, open_dict

COMMAND = "touch ran"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def state(shape: bytes, dtype: bytes = DTYPE, content: bytes = b"U\x02ab") -> bytes:
    """A dictionary with an array that gets this state."""
    return b"}U\x04data" + ARRAY + b"(K\x01" + shape + dtype + b"\x89" + content + b"tbs."


class Runs:
    """What a hostile object reduces to."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def call(function, *arguments):
    return [pickle.dumps({"x": Runs(function, arguments)}, protocol) for protocol in range(6)]


@pytest.mark.parametrize(("content", "named"), [
    *[(content, "system") for content in call(__import__("os").system, COMMAND)],
    *[(content, "eval") for content in call(eval, f"__import__('os').system({COMMAND!r})")],
    (b"cos\nsystem\n(S'" + COMMAND.encode() + b"'\ntR.", "os.system"),
    (b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n.", "os.system"),
    (b"(cos\nsystem\nS'" + COMMAND.encode() + b"'\no.", "os.system"),
    (b"\x80\x04" + text("posix") + text("system") + b"\x93" + text(COMMAND) + b"\x85R.", "posix.system"),
    (b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.", "numpy.ndarray.tofile"),
    (b"\x80\x02csubprocess\nPopen\nU\x01x\x85\x81.", "subprocess.Popen"),  # NEWOBJ
    (b"\x80\x04csubprocess\nPopen\n)}\x92.", "subprocess.Popen"),  # NEWOBJ_EX
    (b"}U\x01xcnumpy\nndarray\n)\x81s.", "NEWOBJ"), (b"}U\x01xcnumpy\ndtype\n)}\x92s.", "NEWOBJ_EX"),
    (b"\x82\x01.", "EXT1"), (b"\x83\x01\x00.", "EXT2"), (b"\x84\x01\x00\x00\x00.", "EXT4"), (b"Psome\n.", "PERSID"),
    (b"U\x01xQ.", "BINPERSID"), (b"\x80\x05\x97.", "NEXT_BUFFER"), (b"(inumpy\nndarray\n.", "numpy.ndarray"),
    (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
    (b"cnumpy\nload\n.", "numpy.load"), (b"\x80\x04K\x01K\x02\x93.", "requires str"), (b"\xff.", "opcode 255"),
    (b"c" + b"x" * 10**6 + b"\ny\n.", "asks for xxx")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_pickle_asks_for_is_named_and_not_run(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=named) as refused:
        load_dict("file", io.BytesIO(content), "CIFAR")
    assert len(str(refused.value)) < 300
    assert list(tmp_path.iterdir()) == []


def nested(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


SAME = b"\x80\x04(B" + struct.pack("<I", 10**6) + bytes(10**6) + b"q\x00" + DTYPE + b"q\x011}(" + b"".join(
    text(str(n)) + ARRAY + b"(K\x01J" + struct.pack("<i", 10**6) + b"\x85h\x01\x89h\x00tb" for n in range(4000)) + b"u."
LAUGHS = b"((" + b"K\x01" * 9 + b"t" + b"".join(
    b"q" + bytes([level]) + b"(" + (b"h" + bytes([level])) * 9 + b"t" for level in range(30)) + b"t"


@pytest.mark.parametrize("content", [
    pytest.param(content, id=name) for name, content in {
        "shape of 10**12": state(b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"),
        "shape whose product overflows": state(b"(" + b"\x8a\x05" + (2**32).to_bytes(5, "little") + b"\x8a\x05" +
                                               (2**32).to_bytes(5, "little") + b"t"),
        "shape below 0": state(b"J" + struct.pack("<i", -2) + b"\x85"), "shape of text": state(b"U\x01x\x85"),
        "shape of nothing": state(b"N"), "type of objects": state(b"K\x02\x85", DTYPE.replace(b"u1", b"O8")),
        "type of fields": state(b"K\x02\x85", DTYPE + b"(K\x03U\x01|NU\x01a\x85}K\x00K\x00K\x00tb"),
        "type of arrays": state(b"K\x02\x85", DTYPE + b"(K\x03U\x01|" + DTYPE + b"K\x02\x86NNK\x00K\x00K\x00tb"),
        "type of no byte order": state(b"K\x02\x85", DTYPE + b"(K\x03U\x01?NNNK\x00K\x00K\x00tb"),
        "type with a state of nothing": state(b"K\x02\x85", DTYPE + b"Nb"),
        "type of dates": state(b"K\x02\x85", DTYPE.replace(b"u1", b"M8"), b"U\x10" + bytes(16)),
        "too few bytes for the type": state(b"K\x02\x85", DTYPE.replace(b"u1", b"i8")),
        "scalar of a list": b"}U\x01xcnumpy.core.multiarray\nscalar\n" + DTYPE + b"]\x86Rs.",
        "scalar of two bytes": b"}U\x01xcnumpy.core.multiarray\nscalar\n" + DTYPE + b"U\x02ab\x86Rs.",
        "BINBYTES that lies": b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"ab.",
        "the same bytes in many arrays": SAME,
        "type of 10**12 bytes": state(b"K\x02\x85", b"cnumpy\ndtype\nX\x0e\x00\x00\x00V1000000000000\x85R"),
        "content that is a list": state(b"K\x02\x85", content=b"]"),
        "type that is a dictionary": state(b"K\x02\x85", b"}"), "short state": b"}U\x01x" + ARRAY + b"Nbs.",
        "state for a list": b"]}U\x01xK\x01sb.", "state for a function": b"cnumpy\ndtype\nN}U\x01xK\x01s\x86b.",
        "call of a number": b"K\x01)R.", "call of an array": ARRAY + b")R.",
        "frombuffer that lies": b"\x80\x05}U\x01xcnumpy._core.numeric\n_frombuffer\n(C\x02ab" + DTYPE +
                                b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85tRs.",
        "BINBYTES8 that lies": b"\x80\x04\x8e" + struct.pack("<Q", 10**12) + b"ab.",
        "BINUNICODE8 that lies": b"\x80\x04\x8d" + struct.pack("<Q", 10**12) + b"ab.",
        "BYTEARRAY8 that lies": b"\x80\x05\x96" + struct.pack("<Q", 3 * 10**9) + b"ab.",
        "LONG4 that lies": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"ab.",
        "BINSTRING that lies": b"T" + struct.pack("<i", 2**31 - 1) + b"ab.",
        "memo of 2**27": b"]r" + struct.pack("<I", 2**27) + b".", "memo of 10**8": b"]p100000000\n.",
        "a million digits": b"I" + b"9" * 10**6 + b"\n.",
        "ten million lists": b"]" * 10**7 + b".", "lists in lists": nested(10**6) + b".",
        "tuples in tuples as a key": b"}" + b")" + b"\x85" * 10**6 + b"K\x01s.",
        "a billion laughs as a key": b"}" + LAUGHS + b"K\x01s.", "a million marks": b"(" * 10**6 + b".",
        "one text encoded often": b"(" + text("x" * 10**5) + b"q\x00" + (
            b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R") * 10**4 + b"t.",
        "a text as a call's arguments": b"cnumpy\ndtype\nX" + struct.pack("<I", 2 * 10**7) + (
            "\u0100".encode() * 10**7) + b"R.",
        "keys that collide": b"}(" + b"".join(
            b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 10**5)) + b"u.",
        "a memo that collides": b"N" + b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(1, 10**5)) + b".",
        "a shape that is long to multiply": state(
            b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7 + b"q\x05h\x05h\x05\x87"),
        "no end": b"}", "nothing": b"", "no protocol": b"\x80\xff}.", "a stack that ends": b"s."}.items()])
def test_memory_and_time_are_not_the_pickle_s_to_take(frugal, content):
    with frugal(256), pytest.raises(DataError, match=r"^file: (not a readable CIFAR pickle|a pickled) ") as refused:
        load_dict("file", io.BytesIO(content), "CIFAR")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [LAUGHS, nested(10**5), b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
                                   b"K\x00\x8a\xff" + b"\x7f" * 255 + b"\x86", b"X\x40\x42\x0f\x00" + b"x" * 10**6],
                         ids=["laughs", "nested", "integer", "integers", "text"])
def test_a_value_of_an_index_is_shown_in_short(tmp_path, frugal, value):
    (tmp_path / "tiny_index.pkl").write_bytes(b"\x80\x02}U\x01a" + value + b"s.")
    with frugal(), pytest.raises(DataError, match=r"tiny_index\.pkl: 'a'") as refused:
        tiny_images.read_index(tmp_path / "tiny_index.pkl", 10, tmp_path)
    assert len(str(refused.value)) < 500


DTYPES = ["|b1", "|i1", "|u1", *(f"{order}{kind}" for order in "<>" for kind in (
    "i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8"))]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_and_scalars_of_every_kind_of_number(protocol, dtype):
    """As NumPy and its own pickles have them, short and long."""
    small = (np.random.default_rng(0).normal(size=(4, 5)) * 100).astype(dtype)
    large = np.tile(small, (2000, 2))
    values = {"small": small, "large": large, "cut": large[::2, 1:], "turned": large.T, "one": small[2, 3]}
    with np.errstate(all="ignore"):
        content = pickle.dumps(values, protocol)
    found = load_dict("file", io.BytesIO(content), "CIFAR")
    for name in ("small", "large", "cut", "turned"):
        assert found[name].dtype == np.dtype(dtype)
        assert np.array_equal(found[name], values[name])
    assert found["one"] == small[2, 3]
    assert type(found["one"]) in (int, float, bool)


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([b"a"]), np.array([1j]), np.array([None]),
                                   np.longdouble(1), np.zeros(2, "i4,f4"), np.zeros(2, "M8[s]"),
                                   np.zeros(2, [("a", "u1")])],
                         ids=lambda value: str(value.dtype))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_other_things(protocol, value):
    with pytest.raises(DataError, match=r"^file: not a readable CIFAR pickle .*, expected numbers, u1 for instance"):
        load_dict("file", io.BytesIO(pickle.dumps({"data": value}, protocol)), "CIFAR")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_rows_are_read_from_the_file_when_they_are_wanted(tmp_path, protocol):
    rows = np.random.default_rng(1).integers(0, 256, (5000, 30), np.uint8)
    (tmp_path / "x").write_bytes(pickle.dumps({"data": rows, "few": rows[:3]}, protocol))
    with open(tmp_path / "x", "rb") as stream:
        content = open_dict("x", stream, "CIFAR", 2**20, 10_000)
        for first, last in ((0, 1), (4000, 5000), (17, 18), (2, 2)):
            assert np.array_equal(content["data"].rows(first, last), rows[first:last])
        assert np.array_equal(content["few"].rows(1, 3), rows[1:3])
        assert content["data"].shape == (5000, 30)
        os.truncate(tmp_path / "x", 100_000)
        with pytest.raises(EOFError):
            content["data"].rows(4000, 5000)


def test_limits_of_a_pickle():
    content = pickle.dumps({"data": np.zeros(10**5, np.uint8), "x": "x" * 5000}, 4)
    open_dict("x", io.BytesIO(content), "CIFAR", len(content), 6000)
    with pytest.raises(DataError, match=f"^x: {len(content):,} bytes found, which no CIFAR pickle has"):
        open_dict("x", io.BytesIO(content), "CIFAR", len(content) - 1)
    with pytest.raises(DataError, match="more than 4,000 bytes outside of arrays found"):
        open_dict("x", io.BytesIO(content), "CIFAR", len(content), 4000)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol(protocol, order):
    pixels = np.array(np.arange(12, dtype=np.uint8).reshape(3, 4), order=order)
    content = pickle.dumps({"data": pixels, b"labels": [1, 2**40, -3], "name": "é", "raw": b"\xff"}, protocol)
    found = load_dict("file", io.BytesIO(content), "CIFAR")
    assert np.array_equal(found.pop("data"), pixels)
    assert found == {"labels": [1, 2**40, -3], "name": "é", "raw": b"\xff"}


def test_nothing_is_held_when_it_is_read():
    content = pickle.dumps({"data": np.zeros(2**20, np.uint8)}, 2)
    gc.collect()
    gc.disable()
    try:
        held = weakref.ref(load_dict("file", io.BytesIO(content), "CIFAR")["data"])
        assert held() is None
    finally:
        gc.enable()


def test_a_file_larger_than_any(tmp_path, frugal):
    with open(tmp_path / "tiny_index.pkl", "wb") as file:
        file.truncate(10**12)
    with frugal(), pytest.raises(DataError, match="1,000,000,000,000 bytes found, expected at most 268,435,456"):
        tiny_images.read_index(tmp_path / "tiny_index.pkl", 10, tmp_path)
