"""A stop request: the first signal is kept, the second acts as usual, and what was there before comes back."""

import os
import signal

import pytest

from sesemi.signals import StopRequest


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal, with Python's usual handler for it meanwhile: tests that run in the background ignore SIGINT."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_the_first_is_kept_and_the_second_acts(number):
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.default_int_handler


def test_handlers_come_back_without_a_signal(number):
    with StopRequest() as stop:
        assert signal.getsignal(number) is not signal.default_int_handler
    assert signal.getsignal(number) is signal.default_int_handler
    assert not stop.requested


def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
    assert not stop.requested
    assert signal.getsignal(number) is signal.SIG_IGN
