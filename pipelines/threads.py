"""Background threads that leave the cores to the training step: each works on one core."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


def background_thread(name: str, device: torch.device) -> ThreadPoolExecutor:
    """One thread for work on ``device``, whose operations on the CPU do not split over the cores.

    Streams and windows are several such threads and the step is another; were each to split its small operations, they
    would wait for one another more than they work.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_set_up, initargs=(device,))


@contextmanager
def all_cores() -> Iterator[None]:
    """While inside, the operations of a background thread do split over the cores."""
    with threadpool_limits(len(os.sched_getaffinity(0)), user_api="openmp"):
        yield


def _set_up(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # as all that follows, for this thread alone
    torch.get_num_threads()  # has PyTorch set this thread up; later it would undo what follows
    threadpool_limits(1, user_api="openmp")
