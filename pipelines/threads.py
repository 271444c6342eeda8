"""Background threads that leave the cores to the training step: each works on one core, when the step does not."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits

LOWEST_PRIORITY = 19  # nice


def background_thread(name: str, device: torch.device, count: int = 1) -> ThreadPoolExecutor:
    """A thread (or several) for work on ``device``, whose operations on the CPU do not split over the cores.

    Streams and windows are several such threads and the step is another; were each to split its small operations, they
    would wait for one another more than they work.

    Where the step is on the CPU too they have the lowest priority, and so have DALI's, which they start. A step splits
    its operations over the cores and waits for the one that is held up, so that work beside it costs it all the time
    that the work takes; once the step is waiting for its batch, all cores do that work.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_set_up, initargs=(device,))


def _set_up(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # as all that follows, for this thread alone
    else:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # for Linux a thread is a process
    torch.get_num_threads()  # has PyTorch set this thread up; later it would undo what follows
    threadpool_limits(1, user_api="openmp")
