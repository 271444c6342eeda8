"""Graph fragments and their twins on the CPU, against NumPy and SciPy."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from nvidia.dali import Pipeline, fn

from pipelines import augment


def six_views_numpy(image: np.ndarray) -> np.ndarray:
    """The reference's geometric_transform: (H, W, C) to (6, H, W, C)."""
    return np.stack([np.rot90(image, i) for i in range(4)] + [np.fliplr(image), np.flipud(image)])


def dali_on_cpu(graph, images: np.ndarray) -> np.ndarray:
    """Run a graph fragment on DALI's CPU backend over a batch: of images (n, H, W, C), or of steps (n, B, H, W, C)."""
    pipeline = Pipeline(batch_size=len(images), num_threads=2, device_id=None, seed=1)
    with pipeline:
        pipeline.set_outputs(graph(fn.external_source(lambda: images, batch=True, layout="FHWC"[5 - images.ndim:])))
    pipeline.build()
    return torch.from_dlpack(pipeline.run()[0].as_tensor()).clone().numpy()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 12, 12, 3)).astype(np.float32)


def test_the_border_is_symmetric(images):
    expected = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
    padded = torch.full(expected.shape, torch.nan)
    augment.mirror_pad(torch.from_numpy(images), padded)
    assert np.array_equal(padded, expected)
    assert not np.array_equal(expected, np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (5, 2, 3), (7, 9, 1)])
def test_the_border_of_bytes_and_of_images_smaller_than_it(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    padded = torch.empty(3, shape[0] + 4, shape[1] + 4, shape[2], dtype=torch.uint8)
    expected = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
    augment.mirror_pad(torch.from_numpy(images), padded)
    assert np.array_equal(padded, expected)
    padded.zero_()
    rows, columns = (np.pad(np.arange(size), 2, "symmetric") for size in shape[:2])
    augment.mirror_pad_by_slices(torch.from_numpy(images), padded, rows, columns)  # as on a GPU
    assert np.array_equal(padded, expected)


@pytest.mark.parametrize("out", [torch.zeros(2, 7, 8, 3), torch.zeros(1, 8, 8, 3), torch.zeros(2, 8, 8, 1),
                                 torch.zeros(2, 8, 8, 3, dtype=torch.uint8)])
def test_a_border_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match=r"into .*\(\d, \d, 8, \d\)"):
        augment.mirror_pad(torch.zeros(2, 4, 4, 3), out)


def test_all_25_shifts_are_scipy_s(images):
    image = images[0]
    offsets = np.array([(y, x) for y in range(5) for x in range(5)])
    padded = np.repeat(np.pad(images[:1], ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric"), 25, axis=0)

    def graph(source):
        return augment.shift(source, fn.external_source(lambda: offsets.astype(np.int32), batch=True), (12, 12))
    got = dali_on_cpu(graph, padded)
    for shifted, offset in zip(got, offsets, strict=True):
        expected = scipy.ndimage.shift(image, (*(2 - offset), 0), order=0, mode="reflect")
        assert np.array_equal(shifted, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_crop_is_scipy_s_shift(images, dtype):
    """Of images in any order and more than once, at every offset."""
    pixels = (100 + 20 * images).astype(dtype)
    padded = torch.from_numpy(np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric"))
    offsets = np.array([(y, x) for y in range(5) for x in range(5)])
    rows = np.random.default_rng(1).integers(0, len(images), len(offsets))
    out = torch.empty(len(offsets), 12, 12, 3, dtype=padded.dtype)
    augment.crop(padded, torch.from_numpy(rows), torch.from_numpy(offsets), out)
    for cropped, row, offset in zip(out.numpy(), rows, offsets, strict=True):
        expected = scipy.ndimage.shift(pixels[row], (*(2 - offset), 0), order=0, mode="reflect")
        assert np.array_equal(cropped, expected)


def test_six_views(images):
    expected = np.stack([six_views_numpy(image) for image in images])
    assert np.array_equal(dali_on_cpu(augment.six_views, images[None]), expected[None])
    ours = torch.empty(expected.shape)
    augment.augment_cpu(torch.from_numpy(images), (), ours)
    assert np.array_equal(ours, expected)


def test_flips(images):
    mirror = np.array([1, 0, 0, 1, 1], np.int32)
    expected = np.stack([np.fliplr(image) if flip else image for image, flip in zip(images, mirror, strict=True)])
    ours = torch.from_numpy(images.copy())
    augment.augment_cpu(ours, (), ours, mirror=mirror)  # in place
    assert np.array_equal(ours, expected)

    which = mirror.astype(np.float32).reshape(1, -1, 1, 1, 1)

    def graph(source):
        return augment.mirror_some(source, fn.external_source(lambda: which, batch=True))
    assert np.array_equal(dali_on_cpu(graph, images[None]), expected[None])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("views", [False, True])
def test_bytes_are_normalised_flipped_and_viewed_in_one_pass(channels, per_channel, views):
    rng = np.random.default_rng(channels)
    pixels = rng.integers(0, 256, (5, 7, 7, channels), dtype=np.uint8)
    center, scale = rng.uniform(0.01, 200, (2, 5, channels if per_channel else 1)).astype(np.float32)
    mirror = None if views else np.array([0, 1, 1, 0, 1])
    expected = (pixels.astype(np.float64) - center[:, None, None]) * scale[:, None, None]
    if views:
        expected = np.stack([six_views_numpy(image) for image in expected])
    else:
        expected = np.stack([image[:, ::-1] if flip else image for image, flip in zip(expected, mirror, strict=True)])
    ours = torch.full(expected.shape, torch.nan)
    augment.augment_cpu(torch.from_numpy(pixels), (torch.from_numpy(center), torch.from_numpy(scale)), ours,
                        mirror=mirror)
    assert np.allclose(ours, expected, rtol=1e-6, atol=1e-3)


SHARED = torch.zeros(3, 4, 4, 3)


@pytest.mark.parametrize("change", [
    {"images": torch.zeros(2, 4, 4, 3, dtype=torch.float64)}, {"out": torch.zeros(2, 4, 4, 3, dtype=torch.float64)},
    {"out": torch.zeros(2, 4, 4, 1)}, {"out": torch.zeros(1, 4, 4, 3)}, {"out": torch.zeros(2, 5, 4, 4, 3)},
    {"statistics": (torch.zeros(1, 1),) * 2}, {"statistics": (torch.zeros(2, 2),) * 2},
    {"statistics": (torch.zeros(2, 1), torch.zeros(2, 3))}, {"mirror": np.array([0])}, {"mirror": np.array([0, 2])},
    {"mirror": np.array([0, -1])}, {"out": torch.zeros(2, 6, 4, 4, 3), "mirror": np.array([0, 1])},
    {"images": torch.zeros(2, 4, 3, 3), "out": torch.zeros(2, 6, 4, 3, 3)},
    {"statistics": (torch.zeros(2, 1, dtype=torch.float64),) * 2},
    {"images": SHARED[:2], "out": SHARED[1:]}, {"images": SHARED[:2], "out": SHARED.expand(6, 3, 4, 4, 3)[:2]},
    {"out": torch.zeros(2, 3, 4, 4).permute(0, 2, 3, 1)}, {"images": torch.zeros(2, 3, 4, 4).permute(0, 2, 3, 1)}])
def test_what_would_be_read_or_written_elsewhere_is_refused(change):
    good = {"images": torch.zeros(2, 4, 4, 3), "statistics": (), "out": torch.zeros(2, 4, 4, 3), "mirror": None}
    augment.augment_cpu(**good)
    with pytest.raises(ValueError, match=r"\(2, 4, [43], 3\)"):
        augment.augment_cpu(**good | change)


@pytest.mark.parametrize("where", ["dali", "cpu"])
def test_noise_has_its_mean_deviation_and_independence(where):
    images = np.full((64, 16, 16, 3), 5, np.float32)
    if where == "dali":
        noise = dali_on_cpu(lambda x: augment.add_noise(x, 0.15, seed=3), images) - images
    else:
        noise = augment.add_noise_cpu(torch.from_numpy(images), 0.15, key=3).numpy() - images
        assert (images == 5).all()
    values = noise.size
    assert abs(noise.mean()) < 5 * 0.15 / np.sqrt(values)
    assert abs(noise.std() - 0.15) < 5 * 0.15 / np.sqrt(2 * values)
    between_images = np.corrcoef(noise.reshape(64, -1)) - np.eye(64)
    assert abs(between_images).max() < 6 / np.sqrt(16 * 16 * 3)
    assert scipy.stats.kstest(noise.reshape(-1) / 0.15, "norm").pvalue > 1e-4
    neighbours = np.corrcoef(noise.reshape(-1)[:-1], noise.reshape(-1)[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(values)


def test_an_image_s_noise_is_that_of_its_place():
    """By whoever it is drawn, in whatever portions: and no two places have the same."""
    zeros = torch.zeros(40, 5, 5, 3)  # 75 values an image, which is no multiple of four
    whole = augment.add_noise_cpu(zeros, 0.15, key=2**64 - 5, first=2**40)
    for first, last in ((0, 1), (1, 17), (17, 40)):
        part = augment.add_noise_cpu(zeros[first:last], 0.15, key=2**64 - 5, first=2**40 + first)
        assert torch.equal(part, whole[first:last])
    assert len(whole.flatten(1).unique(dim=0)) == 40
    assert not torch.equal(whole, augment.add_noise_cpu(zeros, 0.15, key=2**64 - 6, first=2**40))


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as Steele, Lea and Flood wrote it down, one number after another."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ z >> 31)
    return numbers


def test_noise_is_looked_up_in_the_quantiles_by_splitmix64():
    """16 bits after 16 bits, lowest first; every image begins with a number of its own."""
    numbers = splitmix64(1234567, 3 * 19)  # images of 75 values take 19 numbers
    assert numbers[:5] == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                           16408922859458223821]  # published
    draws = np.array([[number >> shift & 0xFFFF for number in numbers[19 * i:19 * i + 19] for shift in (0, 16, 32, 48)]
                      for i in range(3)])[:, :75]
    ours = augment.add_noise_cpu(torch.zeros(3, 5, 5, 3), 0.15, key=1234567).flatten(1)
    assert np.allclose(ours, 0.15 * scipy.stats.norm.ppf((draws + 0.5) / 2**16), rtol=1e-4)


def test_the_quantiles_have_their_deviation():
    table = augment._noise_table(0.15).astype(np.float64)
    assert abs(table.mean()) < 1e-9
    assert abs(table.std() - 0.15) < 1e-8


def test_pieces_are_even_and_whole(monkeypatch):
    monkeypatch.setattr("pipelines.augment.PIECE_VALUES", 1000)
    for count in (*range(1, 40), 768):
        for values in (1, 10, 350, 999, 1000, 5000):
            pieces = augment.even_pieces(count, values)
            sizes = [len(range(count)[piece]) for piece in pieces]
            assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
            assert min(sizes) > 0
            assert max(sizes) - min(sizes) <= 1
            assert len(pieces) == min(count, -(-count * values // 1000))
