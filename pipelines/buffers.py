"""Memory that is used again once nothing looks at it: fresh pages cost a CPU as much as the work done in them."""

import weakref
from collections import deque

import numpy as np
import torch

UNUSED = 4  # tensors' memory kept at most; a stream has its runs ahead and the one that is handed out


class Buffers:
    """Tensors of one shape on the CPU, float32, their values undefined, out of memory that is used again.

    A tensor belongs to whoever took it, and may be kept: its memory is used again when it and all views of it are gone.
    Of memory that nobody uses a little is kept, for what is usual; the rest is given back.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._unused: deque[np.ndarray] = deque(maxlen=UNUSED)

    def take(self) -> torch.Tensor:
        """A tensor that shares its memory with no other one that is alive."""
        memory = self._unused.pop() if self._unused else np.empty(self._shape, np.float32)
        seen = memory[:]  # the tensor's storage keeps this array alive, not the memory's own
        weakref.finalize(seen, self._unused.append, memory).atexit = False
        return torch.from_numpy(seen)

    def clear(self) -> None:
        """Give back what nobody uses."""
        self._unused.clear()
