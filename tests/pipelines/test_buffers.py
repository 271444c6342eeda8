"""Memory is used again when all that looks at it is gone."""

import torch

from pipelines.buffers import UNUSED, Buffers


def test_memory_is_used_again_only_when_every_view_is_gone():
    buffers = Buffers((4, 3))
    first, second = buffers.take(), buffers.take()
    assert first.shape == (4, 3)
    assert first.dtype == torch.float32
    where = first.data_ptr()
    assert second.data_ptr() != where
    view = first.permute(1, 0)[1:]
    del first
    assert buffers.take().data_ptr() not in (where, second.data_ptr())  # the view is still there
    del view
    assert where in {tensor.data_ptr() for tensor in (buffers.take(), buffers.take())}


def test_a_tensor_outlives_its_buffers():
    buffers = Buffers((1000,))
    tensor = buffers.take().fill_(3)
    del buffers
    assert (tensor == 3).all()


def test_memory_that_is_rarely_needed_is_given_back():
    buffers = Buffers((1000,))
    many = [buffers.take() for _ in range(3 * UNUSED)]
    addresses = {tensor.data_ptr() for tensor in many}
    del many
    assert len(buffers._unused) == UNUSED
    assert {tensor.data_ptr() for tensor in (buffers.take() for _ in range(UNUSED))} <= addresses
    buffers.clear()
    assert not buffers._unused
