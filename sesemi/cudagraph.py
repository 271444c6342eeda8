"""A training step as one CUDA graph: recorded once, then replayed by one launch where eager mode needs hundreds."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from pipelines.batch import Batch, Examples
from pipelines.common.errors import UsageError, reason

WARM_UP = 3  # eager steps first: cuDNN chooses its algorithms, the optimiser and the gradient scaler make their state


class Graph(Protocol):
    """Work on tensors that can be recorded and repeated."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work as it will be recorded."""

    def record(self, work: Callable[[], None]) -> None:
        """Keep the work, without doing it."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaGraph:
    """A Graph on a GPU.

    Args:
        device: a GPU.
        settle: called before the work is recorded, to wait until no other thread works on the GPU: the loader's
            ``settle``. A thread that synchronises the device meanwhile, as DALI's may, would end the recording with an
            error.
    """

    def __init__(self, device: torch.device, settle: Callable[[], object] = lambda: None):
        self._device, self._settle = device, settle
        self._stream = torch.cuda.Stream(device)  # nothing can be recorded on the default one
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work on the stream that it will be recorded on."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> None:
        """Keep the kernels that the work launches; UsageError for work that waits for the GPU."""
        self._settle()
        try:
            # What other threads do is theirs: in the default mode an allocation of one would end the recording.
            with torch.cuda.device(self._device), \
                    torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            raise UsageError(f"--cuda-graph: the training step cannot be recorded ({reason(error)}); leave it out by "
                             f"--no-cuda-graph") from error

    def replay(self) -> None:
        """Launch them, on the current stream."""
        self._graph.replay()


class GraphedStep:
    """Calls ``step`` on batches; from the fourth call on it replays a recording of it.

    Args:
        step: works on the batch and on tensors that stay where they are, which it changes in place: what Python
            computes is done while the step is recorded, and never again. It must not wait for the device.
        graph: new.

    The recording holds for batches of one shape; others are given to ``step`` itself. Batches are copied on the
    caller's current stream, and may be freed when the call returns.
    """

    def __init__(self, step: Callable[[Batch], None], graph: Graph):
        self._step, self._graph = step, graph
        self._warmed_up = 0
        self._batch: Batch | None = None  # the recording's own, which new ones are copied into

    def __call__(self, batch: Batch) -> None:
        if self._warmed_up < WARM_UP:
            self._graph.warm_up(partial(self._step, batch))
            self._warmed_up += 1
            return
        if self._batch is None:
            own = Batch(*(part and Examples(*(tensor.clone() for tensor in part)) for part in batch))
            self._graph.record(partial(self._step, own))
            self._batch = own
        if not _alike(batch, self._batch):
            self._step(batch)
            return
        for new, recorded in zip(_tensors(batch), _tensors(self._batch), strict=True):
            recorded.copy_(new)
        self._graph.replay()


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [tensor for part in batch if part is not None for tensor in part]


def _alike(one: Batch, other: Batch) -> bool:
    shapes = [[(tensor.shape, tensor.dtype) for tensor in _tensors(batch)] for batch in (one, other)]
    return shapes[0] == shapes[1]
