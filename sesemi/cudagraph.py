"""A training step as one CUDA graph: recorded once, then replayed by one launch where eager mode needs hundreds."""

from collections.abc import Callable

import torch

from pipelines.batch import Batch, Examples

WARM_UP = 3  # eager steps first: cuDNN chooses its algorithms, the optimiser and the gradient scaler make their state


class GraphedStep:
    """Calls ``step`` on batches; from the fourth call on it replays a recording of it.

    Args:
        step: works on the batch and on tensors that stay where they are, which it changes in place: what Python
            computes is done while the step is recorded, and never again. It must not wait for the device.
        device: a GPU.
        settle: called before the step is recorded, to wait until no other thread works on the GPU: the loader's
            ``settle``. A thread that synchronises the device meanwhile, as DALI's may, would end the recording with an
            error.

    The recording holds for batches of one shape; others are given to ``step`` itself. Batches are copied on the
    caller's current stream, and may be freed when the call returns.
    """

    def __init__(self, step: Callable[[Batch], None], device: torch.device,
                 settle: Callable[[], object] = lambda: None):
        self._step, self._device, self._settle = step, device, settle
        self._stream = torch.cuda.Stream(device)  # nothing can be recorded on the default one
        self._warmed_up = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None  # the recording's own, which new ones are copied into

    def __call__(self, batch: Batch) -> None:
        if self._warmed_up < WARM_UP:
            self._warm_up(batch)
            return
        if self._graph is None:
            self._record(batch)
        if not _alike(batch, self._batch):
            self._step(batch)
            return
        for new, recorded in zip(_tensors(batch), _tensors(self._batch), strict=True):
            recorded.copy_(new)
        self._graph.replay()

    def _warm_up(self, batch: Batch) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._step(batch)
        current.wait_stream(self._stream)
        self._warmed_up += 1

    def _record(self, batch: Batch) -> None:
        self._batch = Batch(*(part and Examples(*(tensor.clone() for tensor in part)) for part in batch))
        self._settle()
        graph = torch.cuda.CUDAGraph()
        # What other threads do is theirs: in the default mode an allocation of one would end the recording.
        with torch.cuda.device(self._device), \
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._step(self._batch)
        self._graph = graph


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [tensor for part in batch if part is not None for tensor in part]


def _alike(one: Batch, other: Batch) -> bool:
    shapes = [[(tensor.shape, tensor.dtype) for tensor in _tensors(batch)] for batch in (one, other)]
    return shapes[0] == shapes[1]
