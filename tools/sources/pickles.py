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
LONG = 2**16  # bytes of a string from which on it is left where it is
NUMBERS = frozenset({"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"})
ORDERS = frozenset("<>|=")
OPCODES = {opcode.code.encode("latin1"): opcode.name for opcode in pickletools.opcodes}
PLAIN = """PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT GLOBAL STACK_GLOBAL
REDUCE""".split()  # noqa: SIM905 - fifty quoted names read worse


class Span:
    """A long piece of a pickle, left where it is in its stream."""

    def __init__(self, stream: BinaryIO, start: int, length: int):
        self._stream, self._start, self._length = stream, start, length

    def __len__(self) -> int:
        return self._length

    def read(self, first: int, last: int) -> bytes | memoryview:
        """Bytes [first, last), of a stream in memory without a copy; EOFError where they are no longer there."""
        if isinstance(self._stream, io.BytesIO):
            return memoryview(self._stream.getvalue())[self._start + first:self._start + last]
        self._stream.seek(self._start + first)
        content = self._stream.read(last - first)
        if len(content) != last - first:
            raise EOFError
        return content


class Dtype:
    """What stands for ``numpy.dtype`` of numbers: a kind and a size, and with its state an order of bytes."""

    def __init__(self, code: str):
        self.numpy = np.dtype(code)

    def order(self, state: object) -> None:
        """Raises UnpicklingError for a state of fields, of arrays in an array, or of no byte order."""
        if not (isinstance(state, tuple) and 5 <= len(state) <= 9 and as_text(state[1]) in ORDERS
                and state[2:5] == (None, None, None)):
            raise pickle.UnpicklingError(f"an array of {self.numpy} with the state {shown(state)} found")
        self.numpy = self.numpy.newbyteorder(as_text(state[1]))


class Array:
    """What stands for an array: its content comes with its state, and stays where it is until it is read.

    ``shape`` is None before; its product was compared with the bytes there are.
    """

    shape: tuple[int, ...] | None = None
    dtype: np.dtype | None = None
    fortran = False

    def fill(self, shape: object, dtype: object, fortran: object, content: object) -> None:
        """Raises UnpicklingError for anything but the bytes of numbers in that shape."""
        plain = isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**32 for n in shape)
        is_bytes = isinstance(content, bytes | Span)
        if not (plain and isinstance(dtype, Dtype) and is_bytes
                and math.prod(shape) * dtype.numpy.itemsize == len(content)):
            size = f"{len(content):,} bytes" if is_bytes else shown(content)
            raise pickle.UnpicklingError(f"an array of {shown(shape)} in {size} found, expected bytes of that shape")
        self.shape, self.dtype, self.fortran, self._content = shape, dtype.numpy, bool(fortran), content

    def __len__(self) -> int:
        """Bytes."""
        return len(self._content)

    def read(self) -> np.ndarray:
        """All of it; EOFError where it is no longer there."""
        return np.frombuffer(self._bytes(0, len(self._content)), self.dtype).reshape(
            self.shape, order="F" if self.fortran else "C")

    def rows(self, first: int, last: int) -> np.ndarray:
        """[first, last) of an array in C order along its first axis; EOFError where it is no longer there."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return np.frombuffer(self._bytes(first * row, last * row), self.dtype).reshape(-1, *self.shape[1:])

    def _bytes(self, first: int, last: int) -> bytes | memoryview:
        if isinstance(self._content, Span):
            return self._content.read(first, last)
        return memoryview(self._content)[first:last]


class Cursor:
    """A pickle's bytes in order, of which at most ``held`` come into memory.

    Args:
        stream: where they are, from its start.
        size: how many there are.
        held: bytes.
    """

    def __init__(self, stream: BinaryIO, size: int, held: int):
        self._stream, self._size, self._held, self._left = stream, size, held, held
        stream.seek(0)

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end; UnpicklingError where these are too many in all."""
        if count >= LONG:  # to ask for more than there is would have so much memory made ready
            count = max(0, min(count, self._size - self._stream.tell(), self._left + 1))
        return self._counted(self._stream.read(count))

    def readline(self) -> bytes:
        """The next line, likewise."""
        return self._counted(self._stream.readline(self._left + 1))

    def skip(self, count: int) -> Span:
        """The next ``count`` bytes, left where they are; EOFError where they are not there."""
        start = self._stream.tell()
        if count > self._size - start:
            raise EOFError
        self._stream.seek(start + count)
        return Span(self._stream, start, count)

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise pickle.UnpicklingError(f"more than {self._held:,} bytes outside of arrays found, or arrays as text, "
                                         f"as Python 3 writes them by protocol 2: save it again by protocol 4")
        return content


class PlainUnpickler(pickle._Unpickler):
    """Unpickles numbers, text, lists, tuples, dictionaries with plain keys, and arrays of numbers.

    Globals get stand-ins of this module, so that no state or argument in a pickle reaches NumPy, and a global without
    one is refused by name. The opcodes are those of the standard library's unpickler in Python, for what the one in C
    cannot do: to choose and count them, and to keep its memo in a dictionary, where no number sets its size.
    Frames, which say how much could be read at once, are skipped. Long bytes, which pixels are, become a ``Span``.

    Args:
        stream: in which the pickle is, from its start.
        size: bytes in it.
        held: bytes that may be read into memory, other than the arrays.
    """

    def __init__(self, stream: BinaryIO, size: int, held: int):
        self._cursor = Cursor(stream, size, held)
        super().__init__(self._cursor, encoding="bytes")
        this = weakref.proxy(self)  # no cycle: what it holds, pixels mostly, goes with it
        self._encodable = size
        known = {bytes([code]): does for code, does in pickle._Unpickler.dispatch.items()}
        self._known = {code: known[code] for code, name in OPCODES.items() if name in PLAIN} | {
            pickle.FRAME: PlainUnpickler._frame, pickle.BINBYTES: PlainUnpickler._string,
            pickle.BINBYTES8: PlainUnpickler._string8, pickle.BYTEARRAY8: PlainUnpickler._string8,
            pickle.PUT: PlainUnpickler._put, pickle.REDUCE: PlainUnpickler._reduce,
            pickle.BINSTRING: PlainUnpickler._string, pickle.BUILD: PlainUnpickler._build,
            pickle.SETITEM: PlainUnpickler._set_item, pickle.SETITEMS: PlainUnpickler._set_items,
            pickle.DICT: PlainUnpickler._dictionary, pickle.INST: PlainUnpickler._instance}
        self._globals = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _dtype,
                         ("_codecs", "encode"): lambda *arguments: this._encode(*arguments)}
        for core in ("numpy.core", "numpy._core"):  # Python 2's and NumPy 1's name, and today's
            self._globals |= {(f"{core}.multiarray", "_reconstruct"): _reconstruct,
                              (f"{core}.multiarray", "scalar"): _scalar,
                              (f"{core}.numeric", "_frombuffer"): _frombuffer}

    def load(self) -> object:
        """What is in the pickle; UnpicklingError, or whatever a damaged one causes, where that is nothing plain."""
        self.read, self.readline = self._cursor.read, self._cursor.readline
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
        self._bytes(4)

    def _string8(self) -> None:
        self._bytes(8)

    def _bytes(self, width: int) -> None:
        """Bytes, or Python 2's string, behind a length of ``width`` bytes; without a copy where it is long."""
        length = int.from_bytes(self.read(width), "little")
        self.append(self.read(length) if length < LONG else self._cursor.skip(length))

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
        elif isinstance(self.stack[-1], Dtype):
            self.stack[-1].order(state)
        else:
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
    if as_text(code) not in NUMBERS:
        raise pickle.UnpicklingError(f"an array of {shown(code)} found, expected numbers, u1 for instance")
    return Dtype(as_text(code))


def _scalar(dtype: object, content: object) -> int | float | bool:
    """One number of NumPy's as one of Python's."""
    array = Array()
    array.fill((1,), dtype, False, content)
    return array.read()[0].item()


def _frombuffer(content: object, dtype: object, shape: object, order: object = "C", *more: object) -> Array:
    if order not in ("C", b"C", "F", b"F"):
        raise pickle.UnpicklingError(f"an array in order {shown(order)} found, expected C or F")
    array = Array()
    array.fill(shape, dtype, order in ("F", b"F"), content)
    return array


def load_dict(where: str, stream: BinaryIO, kind: str) -> dict:
    """The dictionary in a pickle of at most ``MAX_FILE_BYTES``, read whole; DataError naming ``where`` for anything
    else.

    Its keys are text. Python 2's strings among its values stay bytes, or a ``Span`` where they are long.
    """
    content = open_dict(where, stream, kind, MAX_FILE_BYTES)
    arrays = {id(value): value for value in content.values() if isinstance(value, Array) and value.shape is not None}
    with damage(f"{where}: not a readable {kind} pickle", passes=(MemoryError,)):
        if sum(map(len, arrays.values())) > stream.seek(0, io.SEEK_END):  # several of the same bytes
            raise ValueError("makes more bytes than it has")
        read = {key: array.read() for key, array in arrays.items()}
    return {key: read.get(id(value), value) for key, value in content.items()}


def open_dict(where: str, stream: BinaryIO, kind: str, limit: int, held: int | None = None) -> dict:
    """The dictionary in a pickle, its arrays as ``Array``, which read from ``stream`` while it is open.

    Arrays in pickles of protocols 0 to 2 that Python 3 wrote are texts, which come into memory twice; those of Python
    2, and of protocols 3 to 5, stay in the stream.

    Args:
        where: for messages.
        stream: of the pickle alone.
        kind: of pickle, for messages.
        limit: bytes the pickle may have.
        held: bytes outside of arrays; None: all.

    Raises:
        DataError: the pickle is larger, damaged, or holds no dictionary or anything but plain data.
    """
    size = stream.seek(0, io.SEEK_END)
    if size > limit:
        raise DataError(f"{where}: {size:,} bytes found, which no {kind} pickle has")
    with damage(f"{where}: not a readable {kind} pickle"):
        content = PlainUnpickler(stream, size, size if held is None else held).load()
    if not isinstance(content, dict):
        raise DataError(f"{where}: a pickled {type(content).__name__} found, a dictionary expected")
    return {as_text(key): value for key, value in content.items()}


def as_text(value: object) -> object:
    """Python 2's strings as text; anything else as it is."""
    return value.decode("latin1") if isinstance(value, bytes) else value
