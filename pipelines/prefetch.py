"""The only concurrency above DALI: something is made by its number, some ahead, on a thread of its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """``make(number)`` in ascending order on one background thread, for a reader that goes through the numbers.

    Results are kept for the number asked for last and ``ahead`` more, and released for others. Since ``make`` is a
    function of the number, a reader who is interrupted, or whose ``make`` failed, may ask again, or for any other.

    Args:
        make: called on the thread.
        ahead: how many may be made before they are asked for; 0 for none.
        device: which the thread works for: on a GPU, on a CUDA stream of its own.
        threads: over which PyTorch's operations on the CPU split; one leaves the cores to the training step.
    """

    def __init__(self, make: Callable[[int], T], ahead: int, device: torch.device, threads: int = 1):
        self._make, self._ahead = make, ahead
        self._pending: dict[int, Future[T]] = {}
        self._thread = ThreadPoolExecutor(1, initializer=_set_up, initargs=(device, threads))

    def start(self, number: int, ahead: int | None = None) -> None:
        """Start making ``number`` and ``ahead`` more (all that may be), unless they are made or in the making."""
        kept = range(number, number + self._ahead + 1)
        for other in [other for other in self._pending if other not in kept]:
            self._pending.pop(other).cancel()
        for other in kept[:1 + (self._ahead if ahead is None else ahead)]:
            if other not in self._pending or _failed(self._pending[other]):
                self._pending[other] = self._thread.submit(self._make, other)

    def get(self, number: int, ahead: int | None = None) -> T:
        """Wait for ``make(number)``'s result, or raise its exception; ``ahead`` as for ``start``."""
        self.start(number, ahead)
        return self._pending[number].result()

    def forget(self) -> None:
        """Release all results: what is asked for again is made again."""
        for pending in self._pending.values():
            pending.cancel()
        self._pending.clear()

    def settle(self) -> None:
        """Wait until the thread is idle."""
        self._thread.submit(int).result()

    def close(self) -> None:
        """Release all results and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


def _failed(future: Future) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _set_up(device: torch.device, threads: int) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # like what follows, for this thread alone
        torch.cuda.set_stream(torch.cuda.Stream(device))
    torch.get_num_threads()  # has PyTorch set this thread up; later it would undo the limit
    threadpool_limits(threads, user_api="openmp")
