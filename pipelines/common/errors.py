"""What bad input gets everywhere: one line on stderr that says what to do, and the right exit status."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

MAX_MESSAGE = 4000  # characters of an error


class UsageError(Exception):
    """Wrong use: a flag or argument that cannot be. Exit status 2."""


class DataError(Exception):
    """Bad data: a file that is missing, damaged or not what it should be. Exit status 1."""


class Stopped(Exception):
    """Work was asked to stop by a signal, and did; the message says how to go on. Exit status 128 + ``signal``."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, without the usage text."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def run(command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main(argv)`` and turn its errors into one line and an exit status.

    Returns 0 (or what the command returned), 1 for bad data or a failing disk, 2 for wrong use, 130 when interrupted,
    143 when stopped by SIGTERM.
    """
    try:
        return command(argv) or 0
    except UsageError as error:
        return _say(error, 2)
    except DataError as error:
        return _say(error, 1)
    except MemoryError:
        return _say("not enough memory", 1)
    except Stopped as stopped:
        print(one_line(stopped), file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1
    except OSError as error:  # no permission, no space: the message names the file
        return _say(error, 1)


def _say(message: object, status: int) -> int:
    print("error:", one_line(message), file=sys.stderr)
    return status


def one_line(message: object) -> str:
    """A message on one line that any terminal shows, whatever names of files and libraries' messages have in it."""
    line = " ".join(str(message)[:MAX_MESSAGE].splitlines())
    return "".join(c if c.isprintable() else "?" for c in line)  # a name may hold escapes


def shown(value: object, nested: bool = True) -> str:
    """A value out of a file, for a message: short, however long, large or deep it is."""
    if isinstance(value, str | bytes):
        return repr(value[:60]) + "…" * (len(value) > 60)
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
        return repr(value)
    if isinstance(value, tuple | list) and len(value) <= 4 and nested:
        comma = "," * (len(value) == 1 and isinstance(value, tuple))
        return f"({', '.join(shown(part, False) for part in value)}{comma})"
    return f"an integer of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def reason(error: Exception) -> str:
    """What a library's exception says, the first line of it, or its kind where it says nothing."""
    line = str(error).strip().partition("\n")[0][:200]
    return line or ("ends early" if isinstance(error, EOFError) else type(error).__name__)


@contextmanager
def damage(message: str, missing: str | None = None, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """While inside, whatever a library raises over a damaged file becomes a DataError: ``message`` and the reason.

    Where the file is not there, it is ``missing``, if given. DataError and UsageError stay what they are, and so does
    what ``passes`` names.
    """
    try:
        yield
    except (DataError, UsageError):
        raise
    except Exception as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            raise DataError(missing) from None
        if isinstance(error, passes):
            raise
        raise DataError(f"{message} ({reason(error)})") from None


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    return _bounded(text, 1)


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    return _bounded(text, 0)


def _bounded(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer of at least {least}")
    return value
