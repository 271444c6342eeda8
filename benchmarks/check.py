"""Whether a loader's batches are what the method says, by plain NumPy: what every rival and ours must pass."""

from collections.abc import Callable, Iterator

import numpy as np

from pipelines.batch import Batch

STEPS, LABELED_IMAGES = 4, 384  # batches looked at, and labeled images in them: so many at least
TOLERANCE = 1e-4


def gcn(images: np.ndarray) -> np.ndarray:
    """Float64 (n, H, W, C) of uint8 images: mean zero, L2 norm 55 at 32×32×3."""
    flat = images.reshape(len(images), -1) / 255.0
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    norm[norm < 1e-10] = 1.0
    return (55.0 * np.sqrt(flat.shape[1] / 3072) * flat / norm).reshape(images.shape)


def candidates(images: np.ndarray) -> np.ndarray:
    """All that shift and flip may make of images (n, S, S, C): float32 (n, 25, 2, S, S, C)."""
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
    shifted = np.stack([padded[:, y:y + size, x:x + size] for y in range(5) for x in range(5)], 1)
    return np.stack([shifted, shifted[:, :, :, ::-1]], 2).astype(np.float32)


def check(build: Callable[[float], Iterator[Batch]], images: np.ndarray, labels: np.ndarray, preprocessed: np.ndarray,
          flip: bool) -> None:
    """Raise AssertionError unless a loader's batches are right.

    Args:
        build: makes the loader over exactly these images, at a standard deviation of the noise.
        images, labels: its data, uint8 (n, S, S, C) and (n,), all different and few.
        preprocessed: (n, S, S, C), what GCN or ZCA makes of them.
        flip: whether labeled images are mirrored by chance.
    """
    made = candidates(preprocessed)
    flat = made.reshape(len(images) * 50, -1)
    square = (flat.astype(np.float64) ** 2).sum(1)

    def nearest(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each image (m, C, S, S), which candidate is nearest, and what is left over, (m, D)."""
        ours = batch.transpose(0, 2, 3, 1).reshape(len(batch), -1)
        which = (square - 2 * (ours @ flat.T).astype(np.float64)).argmin(1)
        return which, ours - flat[which]

    clean, noisy = build(0.0), build(0.15)
    flipped, left, seen, shifts = [], [], [], set()
    while len(seen) < STEPS or sum(map(len, seen)) < LABELED_IMAGES:
        for source, noise in ((clean, 0.0), (noisy, 0.15)):
            batch = next(source)
            which, rest = nearest(batch.labeled.images.cpu().numpy())
            assert (labels[which // 50] == batch.labeled.labels.cpu().numpy()).all(), "labels of other images"
            views = batch.unlabeled.images.cpu().numpy()
            assert (batch.unlabeled.labels.cpu().numpy() == np.arange(len(views)) % 6).all(), "proxy labels"
            first, first_rest = nearest(views[::6])
            assert (first % 2 == 0).all(), "an unlabeled image flipped before its views"
            for view in range(6):
                upright = np.rot90(views[view::6], -view, (2, 3)) if view < 4 else \
                    np.flip(views[view::6], 3 if view == 4 else 2)
                assert np.abs(upright - views[::6]).max() < TOLERANCE, f"view {view} is not that of the same image"
            if noise:
                left += [rest, first_rest]
            else:
                seen.append(which // 50)
                shifts |= set((which % 50 // 2).tolist())
                assert max(np.abs(rest).max(), np.abs(first_rest).max()) < TOLERANCE, "no shift of any image"
                flipped.append(which % 2)
    assert len(shifts) == 25, f"{len(shifts)} different shifts, expected all 25"
    together = np.concatenate(seen)
    assert np.bincount(together).max() <= -(-len(together) // len(images)) + 1, "an image more often than others"
    assert not (np.diff(together) == 1).mean() > 0.2, "images in the order of the file"
    share = np.concatenate(flipped).mean()
    assert abs(share - 0.5 * flip) < 0.15 * flip + 1e-9, f"{share:.2f} of the labeled images are flipped"
    noise = np.concatenate(left)
    assert abs(noise.std() - 0.15) < 5 * 0.15 / np.sqrt(2 * noise.size), f"noise of deviation {noise.std():.4f}"
    correlation = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(correlation).max() < 6.5 / np.sqrt(noise.shape[1]), "noise that is not fresh for every image"
