"""Windows hold the images that their stream positions ask for, two windows at most."""

import numpy as np
import pytest
import torch

from pipelines.sampling import Order
from pipelines.whitening import KINDS, Preprocess, prepare
from pipelines.windows import Windows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("window", "block"), [(8, 16), (64, 16), (50, 7), (300, 16), (1000, 16)])
def test_windows_hold_the_images_of_their_positions(small_set, window, block, kind):
    """Also where a window is smaller than a block, and across windows and epochs; the memory is used again."""
    preprocess = prepare(kind, [small_set], progress=False)
    windows = Windows(small_set, Order(300, window, block, seed=3), preprocess, torch.device("cpu"))
    for position in range(0, 700, 70):
        images = small_set.read(windows.indices(position, 70))
        found = windows.gather(position, 70)
        if kind == "zca":
            assert found.center is None
            ours = found.images
        else:
            assert found.images.dtype == torch.uint8
            ours = (found.images - found.center[:, None, None]) * found.scale[:, None, None]
        expected = np.pad(preprocess(torch.from_numpy(images)), ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
        assert np.abs(ours.numpy() - expected).max() < 1e-5
    windows.close()


@pytest.mark.parametrize("count", [5, 31, 33, 48])
def test_two_windows_at_most(small_set, monkeypatch, count):
    """Windows of 56 to 64 images, drawn from by less or more than a half at a time: two are there, or are loaded."""
    windows = Windows(small_set, Order(300, 64, 8, seed=3), Preprocess("gcn", (8, 8, 3)), torch.device("cpu"))
    wanted = []
    want = windows._want
    monkeypatch.setattr(windows, "_want", lambda keys: (wanted.append(list(keys)), want(keys)))
    for position in range(0, 40 * count, count):
        windows.gather(position, count)
    assert {len(set(keys)) for keys in wanted} == {1, 2}
    windows.settle()
    assert windows.loaded == len({key for keys in wanted for key in keys})
    windows.close()
