"""A set sorted by word mixes: its batches have nearly as many different words as a full shuffle's."""

import pytest
import torch

from benchmarks.mixing import compare
from pipelines.windows import default_window_images

WORD = 1056


@pytest.mark.parametrize("images", [550_000, 79_302_017])
@pytest.mark.parametrize("batch", [16, 96])
def test_within_a_tenth_of_a_full_shuffle(images, batch):
    """Expected of a full shuffle, by W words: W · (1 − (1 − 1/W)^batch)."""
    found = compare(images, WORD, default_window_images((32, 32, 3), torch.device("cpu")), batch, batches=200)
    words = images / WORD
    assert found["shuffled"] == pytest.approx(words * (1 - (1 - 1 / words) ** batch), rel=0.02)
    assert found["ratio"] > 0.9
    assert found["ratio"] == pytest.approx(found["words"] / found["shuffled"], abs=1e-3)


def test_blocks_as_long_as_a_word_would_not(monkeypatch):
    """So the figure can fail: four words a window."""
    monkeypatch.setattr("benchmarks.mixing.default_block_images", lambda window: WORD)
    assert compare(550_000, WORD, 4 * WORD, 96, batches=50)["ratio"] < 0.1
