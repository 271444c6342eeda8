"""Windows hold the images that their stream positions ask for."""

import numpy as np
import pytest
import torch

from pipelines.sampling import Order
from pipelines.whitening import KINDS, prepare
from pipelines.windows import Windows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("window", "block"), [(8, 16), (64, 16), (50, 7), (300, 16), (1000, 16)])
def test_windows_hold_the_images_of_their_positions(small_set, window, block, kind, padded, monkeypatch):
    """Also where a window is smaller than a block, across windows, epochs and chunks, and with gaps between them."""
    monkeypatch.setattr("pipelines.windows.CHUNK_VALUES", {"cpu": 8 * 8 * 3 * 7})
    preprocess, order = prepare(kind, [small_set], progress=False), Order(300, window, block, seed=3)
    windows = Windows(small_set, order, preprocess, torch.device("cpu"), padded)
    offsets = np.random.default_rng(0).integers(0, 5, (70, 2))
    for first in range(0, 700, 70):
        positions = first + np.arange(70) + np.arange(70) // 10
        images = small_set.read(windows.indices(positions))
        assert np.array_equal(windows.indices(positions), order.indices(positions))
        ours, expected = windows.gather(positions, offsets), torch.from_numpy(images)
        if padded or kind == "zca":
            expected = preprocess(expected)
        assert ours.dtype == expected.dtype
        if padded:
            bordered = np.pad(expected, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
            expected = np.stack([image[y:y + 8, x:x + 8] for image, (y, x) in zip(bordered, offsets, strict=True)])
        assert np.abs(ours.numpy().astype(np.float64) - np.asarray(expected)).max() < 1e-4
    windows.close()
