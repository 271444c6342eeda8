"""How well a sorted set mixes: different words in a batch beside a full shuffle's: python -m benchmarks.mixing."""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.measure import say, table
from pipelines.common import errors
from pipelines.common.errors import Parser
from pipelines.sampling import Order, generator
from pipelines.windows import GPU_WINDOW_BYTES, default_block_images, default_window_images, images_in

EXAMPLE = """example:
  python -m benchmarks.mixing --images 79302017 --word 1056
"""
IMAGE_SHAPE = (32, 32, 3)
BATCHES = (8, 16, 64, 96)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.mixing", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--images", type=errors.positive_int, default=79_302_017, metavar="N",
                        help="in the set (default: %(default)s, as Tiny Images)")
    parser.add_argument("--word", type=errors.positive_int, default=1056, metavar="N",
                        help="consecutive images of each word (default: %(default)s, as in Tiny Images on average)")
    parser.add_argument("--batches", type=errors.positive_int, default=2000, metavar="N",
                        help="looked at, spread over an epoch (default: %(default)s)")
    options = parser.parse_args(argv)
    windows = {"cpu": default_window_images(IMAGE_SHAPE, torch.device("cpu")),
               "gpu": images_in(GPU_WINDOW_BYTES, IMAGE_SHAPE)}
    found = {name: {str(batch): compare(options.images, options.word, window, batch, options.batches)
                    for batch in BATCHES} for name, window in windows.items()}
    print(table([(name, windows[name], default_block_images(windows[name]), batch, f"{one['words']:.2f}",
                  f"{one['shuffled']:.2f}", f"{one['ratio']:.3f}")
                 for name, batches in found.items() for batch, one in batches.items()],
                ("window of a", "images", "block", "batch", "words in it", "full shuffle", "ratio")))
    say({"images": options.images, "word": options.word, "ratios": found})
    return 0


def compare(images: int, word: int, window: int, batch: int, batches: int) -> dict[str, float]:
    """Mean number of different words in a batch of our order, and in one of a full shuffle."""
    order = Order(images, window, default_block_images(window), seed=0)
    random = generator(0)
    ours, shuffled = [], []
    for number in range(batches):
        position = (number * images // batches) // batch * batch
        ours.append(len(np.unique(order.indices(np.arange(position, position + batch)) // word)))
        shuffled.append(len(np.unique(random.choice(images, batch, replace=False, shuffle=False) // word)))
    mean, expected = float(np.mean(ours)), float(np.mean(shuffled))
    return {"words": round(mean, 3), "shuffled": round(expected, 3), "ratio": round(mean / expected, 4)}


if __name__ == "__main__":
    sys.exit(errors.run(main))
