"""Pickles from the web, read as the plain data they hold: nothing in them is run, or believed about its size."""

import io
import math
import pickle
import pickletools
import weakref
from codecs import encode
from typing import BinaryIO

import numpy as np

from pipelines.common.errors import DataError, damage, shown

MAX_FILE_BYTES = 2**28  # the largest real one, CIFAR-100's training file, has 155 MB
MAX_STEPS = 2**21  # opcodes of a pickle; the index of Tiny Images has 0.5 million. A step can take 100 bytes
MAX_ARGUMENTS = 8  # of a call; NumPy's have five at most
LONG = 2**16  # bytes of a string from which on a copy costs more than a view
OPCODES = {opcode.code.encode("latin1"): opcode.name for opcode in pickletools.opcodes}
PLAIN = """PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT GLOBAL STACK_GLOBAL
REDUCE""".split()  # noqa: SIM905 - fifty quoted names read worse


class Dtype:
    """What stands for ``numpy.dtype`` of unsigned bytes, the only one there is; the state it gets says no more."""


class Array:
    """What stands for an array: its pixels come with its state.

    ``pixels`` is None, or uint8 of the shape the pickle says, whose product was compared with the bytes there are.
    """

    pixels: np.ndarray | None = None

    def fill(self, shape: object, dtype: object, fortran: object, content: object) -> None:
        """Raises UnpicklingError for anything but bytes of that shape."""
        plain = isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**32 for n in shape)
        is_bytes = isinstance(content, bytes | memoryview)
        if not (plain and isinstance(dtype, Dtype) and is_bytes and math.prod(shape) == len(content)):
            size = f"{len(content):,} bytes" if is_bytes else shown(content)
            raise pickle.UnpicklingError(f"an array of {shown(shape)} in {size} found, expected bytes of that shape")
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class PlainUnpickler(pickle._Unpickler):
    """Unpickles numbers, text, lists, tuples, dictionaries with plain keys, and arrays of unsigned bytes.

    Globals get stand-ins of this module, so that no state or argument in a pickle reaches NumPy, and a global without
    one is refused by name. The opcodes are those of the standard library's unpickler in Python, for what the one in C
    cannot do: to choose and count them, and to keep its memo in a dictionary, where no number sets its size.
    Frames, which say how much could be read at once, are skipped.
    """

    def __init__(self, content: bytes):
        self._stream, self._content = io.BytesIO(content), memoryview(content)
        super().__init__(self._stream, encoding="bytes")
        this = weakref.proxy(self)  # no cycle: what it holds, pixels mostly, goes with it
        self._encodable = len(content)
        known = {bytes([code]): does for code, does in pickle._Unpickler.dispatch.items()}
        self._known = {code: known[code] for code, name in OPCODES.items() if name in PLAIN} | {
            pickle.FRAME: PlainUnpickler._frame, pickle.BYTEARRAY8: known[pickle.BINBYTES8],
            pickle.PUT: PlainUnpickler._put, pickle.REDUCE: PlainUnpickler._reduce,
            pickle.BINSTRING: PlainUnpickler._string, pickle.BUILD: PlainUnpickler._build,
            pickle.SETITEM: PlainUnpickler._set_item, pickle.SETITEMS: PlainUnpickler._set_items,
            pickle.DICT: PlainUnpickler._dictionary, pickle.INST: PlainUnpickler._instance}
        self._globals = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _dtype,
                         ("_codecs", "encode"): lambda *arguments: this._encode(*arguments)}
        for core in ("numpy.core", "numpy._core"):  # Python 2's and NumPy 1's name, and today's
            self._globals |= {(f"{core}.multiarray", "_reconstruct"): _reconstruct,
                              (f"{core}.numeric", "_frombuffer"): _frombuffer}

    def load(self) -> object:
        """What is in the pickle; UnpicklingError, or whatever a damaged one causes, where that is nothing plain."""
        self.read, self.readline = self._stream.read, self._stream.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        read, known = self.read, self._known
        try:
            for self._steps in range(1, MAX_STEPS + 1):  # the fuzzer asks how far it came
                code = read(1)
                if not code:
                    raise EOFError
                if code not in known:
                    raise pickle.UnpicklingError(f"asks for opcode {OPCODES.get(code, code[0])}, which no data set "
                                                 f"needs")
                known[code](self)
        except pickle._Stop as stop:
            return stop.value
        raise pickle.UnpicklingError(f"more than {MAX_STEPS:,} opcodes")

    def find_class(self, module: object, name: object):
        """The stand-in for a global; UnpicklingError naming it where there is none."""
        if (module, name) not in self._globals:
            raise pickle.UnpicklingError(f"asks for {str(module)[:60]}.{str(name)[:60]}, which no data set needs")
        return self._globals[module, name]

    def _encode(self, text: object, encoding: object) -> bytes:
        """Python 3's way of writing bytes for Python 2; each text once, so that a short pickle stays short."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"asks for {shown(encoding)}, which no data set needs")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("makes more bytes than it has")
        return encode(text, "latin1")

    def _frame(self) -> None:
        """The length of what could be read at once; all is there already."""
        self.read(8)

    def _string(self) -> None:
        """Python 2's string; where it is long, which pixels are, without a copy."""
        length = int.from_bytes(self.read(4), "little")
        if length < LONG:
            self.append(self.read(length))
        else:
            start = self._stream.tell()
            self.append(self._content[start:start + length])
            self._stream.seek(start + length)

    def _put(self) -> None:
        """Numbers in the memo are small: large ones can be chosen to collide in a dictionary."""
        number = int(self.readline()[:-1])
        if not 0 <= number < MAX_STEPS:
            raise pickle.UnpicklingError(f"a memo of {shown(number)} found")
        self.memo[number] = self.stack[-1]

    def _reduce(self) -> None:
        """A call takes a tuple, as Python's own unpickler in C has it, not whatever could be unpacked into one."""
        arguments = self.stack.pop()
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"a call with {shown(arguments)} found")
        self.stack[-1] = self.stack[-1](*arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Array) and isinstance(state, tuple) and len(state) == 5:
            self.stack[-1].fill(*state[1:])
        elif not isinstance(self.stack[-1], Dtype):
            raise pickle.UnpicklingError(f"gives a state to {shown(self.stack[-1])}, which no data set needs")

    def _set_item(self) -> None:
        self._fill([self.stack.pop(-2), self.stack.pop()])

    def _set_items(self) -> None:
        self._fill(self.pop_mark())

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def _fill(self, items: list) -> None:
        """Keys are text: the hash of tuples in tuples takes for ever, and numbers can be chosen to collide."""
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str | bytes) for key in items[::2]):
            raise pickle.UnpicklingError("a dictionary with keys other than text found")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
        raise pickle.UnpicklingError(f"asks for {module[:60]}.{name[:60]}, which no data set needs")


def _reconstruct(kind: object, shape: object, code: object) -> Array:
    return Array()


def _dtype(code: object, *flags: object) -> Dtype:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"an array of {shown(code)} found, expected u1")
    return Dtype()


def _frombuffer(content: object, dtype: object, shape: object, order: object = "C", *more: object) -> Array:
    if order not in ("C", b"C", "F", b"F"):
        raise pickle.UnpicklingError(f"an array in order {shown(order)} found, expected C or F")
    array = Array()
    array.fill(shape, dtype, order in ("F", b"F"), content)
    return array


def load_dict(where: str, stream: BinaryIO, kind: str) -> dict:
    """The dictionary in a pickle; DataError naming ``where`` for anything else.

    Its keys are text. Python 2's strings among its values stay bytes, or views of bytes where they are long.
    """
    size = stream.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise DataError(f"{where}: {size:,} bytes found, which no {kind} pickle has")
    stream.seek(0)
    content = stream.read(size)  # to ask for more than there is would have so much memory made ready
    with damage(f"{where}: not a readable {kind} pickle"):
        content = PlainUnpickler(content).load()
    if not isinstance(content, dict):
        raise DataError(f"{where}: a pickled {type(content).__name__} found, a dictionary expected")
    return {as_text(key): value.pixels if isinstance(value, Array) else value for key, value in content.items()}


def as_text(value: object) -> object:
    """Python 2's strings as text; anything else as it is."""
    return value.decode("latin1") if isinstance(value, bytes) else value
