"""scikit-learn's 1,797 real handwritten digits, enlarged to 32×32 RGB: data that needs no download."""

import numpy as np
from PIL import Image

from tools.sources import Batches, Source, Split

SIZE = 32
TEST_PER_CLASS = 50


def read() -> Source:
    """Training and test sets of 1,297 and 500 images, a fixed split with 50 test images of each digit."""
    from sklearn.datasets import load_digits  # seconds to import, and needed here alone
    digits = load_digits()
    images = np.stack([enlarge(image) for image in digits.images])
    random = np.random.RandomState(0)
    test = np.concatenate([random.permutation(np.flatnonzero(digits.target == k))[:TEST_PER_CLASS]
                           for k in range(10)])
    held_out = np.zeros(len(images), bool)
    held_out[test] = True

    def split(name: str, chosen: np.ndarray) -> Split:
        def batches() -> Batches:
            yield images[chosen], digits.target[chosen]
        return Split(name, int(chosen.sum()), batches, tuple("0123456789"))

    return Source("digits", (SIZE, SIZE, 3), (split("train", ~held_out), split("test", held_out)),
                  {"path": "sklearn.datasets.load_digits"})


def enlarge(image: np.ndarray) -> np.ndarray:
    """An 8×8 digit with values 0 to 16 as uint8 (32, 32, 3), by bicubic interpolation."""
    gray = Image.fromarray(np.round(image * 255 / 16).astype(np.uint8))
    return np.asarray(gray.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))
