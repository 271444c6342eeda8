"""What reaches the terminal of an error: one printable line, however long or strange its message."""

import signal

import pytest

from pipelines.common import errors
from pipelines.common.errors import DataError, Stopped, shown


def test_one_printable_line(capsys):
    def fail(argv):
        raise DataError("a name with \x1b[2J, a\nnew line and \udcff" + "x" * 10**6)
    assert errors.run(fail) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: a name with ?[2J, a new line and ?xxx")
    assert len(line) < 4100
    assert line.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_stopped_says_how_to_go_on(capsys, number, status):
    """Whichever command it was, the demo too."""
    def stop(argv):
        raise Stopped("stopped at step 3; go on with: this", number)
    assert errors.run(stop) == status
    assert capsys.readouterr().err == "stopped at step 3; go on with: this\n"


def test_values_are_shown_in_short():
    deep = ()
    for _ in range(10**5):
        deep = (deep,)
    for value, text in (("a", "'a'"), (b"a" * 99, f"b'{'a' * 60}'…"), (3, "3"), (2**65, "an integer of 66 bits"),
                        ((5, 2), "(5, 2)"), (deep, "(a tuple,)"), (None, "None"), ([1] * 9, "a list"), ({}, "a dict")):
        assert shown(value) == text
