"""Draw the two branches of the method, with real digits as a batch holds them: python -m sesemi.figure."""

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.batch import NOISE
from pipelines.common import errors
from pipelines.common.errors import Parser

EXAMPLE = """example:
  python -m sesemi.figure --out sesemi/branches.svg
"""
STYLE = """text{font-family:'DejaVu Sans',Verdana,sans-serif;font-size:14px;fill:#222;text-anchor:middle}
.small{font-size:12px;fill:#555} .box{fill:#f4f6f8;stroke:#56677a;stroke-width:1.5}
.trunk{fill:#e3ecf7;stroke:#2b5c94;stroke-width:1.5}
.arrow{stroke:#56677a;stroke-width:1.8;fill:none;marker-end:url(#tip)}
image{image-rendering:pixelated}"""
VIEW_NAMES = ("0°", "90°", "180°", "270°", "left-right", "up-down")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m sesemi.figure", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("branches.svg"), metavar="PATH")
    out = parser.parse_args(argv).out
    out.write_text(draw())
    print(out)
    return 0


def draw() -> str:
    """The picture as SVG."""
    from tools.sources import digits
    batches = {split.name: next(split.batches()) for split in digits.read().splits}
    images, labels = batches["train"]
    labeled, unlabeled = (int(np.flatnonzero(labels == digit)[0]) for digit in (7, 2))
    (one,), six = augmented(images[labeled], views=False), augmented(images[unlabeled], views=True)
    parts = [arrow(92, 88, 118, 88), arrow(258, 88, 284, 88), arrow(356, 88, 618, 88),
             arrow(92, 262, 118, 262), arrow(258, 262, 284, 262), arrow(564, 262, 618, 262),
             picture(images[labeled], 20, 52, 72), text(56, 144, "labeled: “7”"),
             box(118, 60, 140, 56, "shift, flip,", "noise"), picture(pixels(one), 284, 52, 72),
             picture(images[unlabeled], 20, 226, 72), text(56, 318, "unlabeled"),
             box(118, 234, 140, 56, "shift, noise,", "six views")]
    for i, (view, name) in enumerate(zip(six, VIEW_NAMES, strict=True)):
        x, y = 290 + i % 3 * 94, 172 + i // 3 * 108
        parts += [picture(pixels(view), x, y, 72), text(x + 36, y + 88, f"{i}: {name}", "small")]
    parts += ['<rect class="trunk" x="618" y="52" width="96" height="246" rx="8"/>',
              text(666, 160, "one CNN,"), text(666, 180, "shared by"), text(666, 200, "both"),
              arrow(714, 88, 742, 88), arrow(714, 262, 742, 262),
              box(742, 60, 130, 56, "class head:", "which digit?"),
              box(742, 234, 130, 56, "proxy head:", "which view?"),
              arrow(807, 116, 807, 146), arrow(807, 234, 807, 204),
              box(742, 146, 130, 58, "cross-entropy", "+ cross-entropy")]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 30 892 350" width="892" height="350">'
            f'<style>{STYLE}</style><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#56677a"/></marker></defs>'
            f'<rect y="30" width="892" height="350" fill="#fff"/>{"".join(parts)}</svg>\n')


def augmented(image: np.ndarray, views: bool) -> np.ndarray:
    """One image (H, W, C), or its six views, as a batch holds it, (1 or 6, H, W, C): normalised, shifted by (−2, 1),
    with noise."""
    import torch  # not before it is needed: --help should not wait for it, nor for DALI

    from pipelines.graph import Graph, Recipe
    from pipelines.sampling import LABELED, training_draws
    from pipelines.whitening import Preprocess
    recipe = Recipe(image.shape, Preprocess("gcn", image.shape), views, flip=False, noise=NOISE, steps=1, images=1)
    graph = Graph(recipe, torch.device("cpu"), "numba")
    draws = training_draws(0, LABELED, np.arange(1), image.size, flip=False)._replace(offsets=np.array([[4, 1]]))
    return graph(torch.from_numpy(image[None]), draws)[0].numpy()


def pixels(image: np.ndarray) -> np.ndarray:
    """Normalised values to gray levels one can look at."""
    return (image * 70 + 90).clip(0, 255).astype(np.uint8)


def picture(image: np.ndarray, x: int, y: int, size: int) -> str:
    """An image embedded as PNG."""
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{size}" height="{size}" href="data:image/png;base64,{data}"/>'


def text(x: int, y: int, words: str, kind: str = "") -> str:
    """A centred line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x: int, y: int, width: int, height: int, *lines: str) -> str:
    """A rounded box with lines of text in its middle."""
    top = y + height // 2 + 5 - 9 * (len(lines) - 1)
    return (f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
            + "".join(text(x + width // 2, top + 18 * i, line) for i, line in enumerate(lines)))


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """A straight arrow."""
    return f'<path class="arrow" d="M{x1} {y1}L{x2} {y2}"/>'


if __name__ == "__main__":
    sys.exit(errors.run(main))
