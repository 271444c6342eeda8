"""SIGINT and SIGTERM as a request that is polled, so that work ends where it can be gone on with."""

import signal
import threading


class StopRequest:
    """``with StopRequest() as stop``: the first SIGINT or SIGTERM is kept in ``stop.signal``; a second acts as usual.

    A signal that is ignored at the start, as in the background jobs of a script, stays ignored. On another thread than
    the main one, which alone gets signals, nothing is changed.
    """

    def __init__(self):
        self.signal: int | None = None
        self._usual: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop, and soon."""
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                usual = signal.getsignal(number) or signal.SIG_DFL
                if usual is not signal.SIG_IGN:
                    self._usual[number] = usual
                    signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: object) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        self._restore()
