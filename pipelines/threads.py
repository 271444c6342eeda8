"""Background threads that leave the cores to the training step: each works on one core."""

from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


def background_thread(name: str, device: torch.device, count: int = 1) -> ThreadPoolExecutor:
    """A thread (or several) for work on ``device``, whose operations on the CPU do not split over the cores.

    Streams and windows are several such threads and the step is another; were each to split its small operations, they
    would wait for one another more than they work.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_set_up, initargs=(device,))


def _set_up(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # as all that follows, for this thread alone
    torch.get_num_threads()  # has PyTorch set this thread up; later it would undo what follows
    threadpool_limits(1, user_api="openmp")
