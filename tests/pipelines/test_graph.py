"""The graphs of both backends, against NumPy and SciPy, and where a GPU's operators run. Needs no GPU."""

import numpy as np
import nvidia.dali.backend
import pytest
import scipy.ndimage
import scipy.stats
import torch

from pipelines.graph import DALI_SAMPLES, Graph, Recipe, quantiles
from pipelines.sampling import LABELED, Draws, noise_state
from pipelines.whitening import Preprocess
from pipelines.windows import draw, mirror_pad
from tests.pipelines.test_sampling import splitmix64

CPU = torch.device("cpu")
BACKENDS = ("numba", "dali")


def six_views_numpy(image: np.ndarray) -> np.ndarray:
    """The reference's geometric_transform: (H, W, C) to (6, H, W, C)."""
    return np.stack([np.rot90(image, i) for i in range(4)] + [np.fliplr(image), np.flipud(image)])


def unwhitened(shape: tuple[int, int, int]) -> Preprocess:
    """ZCA, whose images come normalised: the graph leaves them as they are."""
    size = int(np.prod(shape))
    return Preprocess("zca", shape, {"mean": torch.zeros(size), "matrix": torch.eye(size)})


def plain(count: int, **changed) -> Draws:
    """Draws of no shift, flip or noise."""
    zeros = np.zeros(count, np.int64)
    draws = Draws(np.full((count, 2), 2), zeros, zeros, noise_keys_of(9, 0, count, 75), noise_state(9))
    return draws._replace(**changed)


def noise_keys_of(key: int, first: int, count: int, values: int) -> np.ndarray:
    """SplitMix64's states after the numbers of the images before each: uint64 (count,)."""
    words = -(-values // 4)
    return np.array([(key + (first + i) * words * 0x9E3779B97F4A7C15) % 2**64 for i in range(count)], np.uint64)


def padded(images: torch.Tensor, preprocess) -> torch.Tensor:
    """Images (n, H, W, C) with their border, as on a GPU."""
    out = torch.zeros(len(images), images.shape[1] + 4, images.shape[2] + 4, images.shape[3])
    mirror_pad(out, preprocess(images))
    return out


def run(images: np.ndarray, backend: str, draws: Draws | None = None, preprocess: Preprocess | None = None,
        views: bool = False, noise: float = 0, steps: int = 1, threads: int = 2) -> np.ndarray:
    """What a graph makes of images (n, H, W, C): float32 (n, H, W, C), or with views (n, 6, H, W, C)."""
    shape, count = images.shape[1:], len(images)
    draws = draws or plain(count)
    preprocess = preprocess or unwhitened(shape)
    pixels = torch.from_numpy(images)
    if backend == "dali":
        as_they_are = (lambda pixels: pixels) if images.dtype == np.float32 else preprocess
        pixels = draw(padded(pixels, as_they_are), np.arange(count), draws.offsets)
    graph = Graph(Recipe(shape, preprocess, views, True, noise, steps, count), CPU, backend, threads)
    made = graph(pixels, draws).clone().numpy()
    return made if views else made[:, 0]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 12, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_all_25_crops_are_scipy_s_shifts(images, backend, dtype):
    pixels = np.repeat((100 + 20 * images[:1]).astype(dtype), 25, axis=0)
    preprocess = None
    if dtype == np.uint8:  # a normalisation that is none
        preprocess = Preprocess("standardize", (12, 12, 3), {"mean": torch.zeros(3), "deviation": torch.ones(3)})
    offsets = np.array([(y, x) for y in range(5) for x in range(5)])
    made = run(pixels, backend, plain(25, offsets=offsets), preprocess)
    for cropped, offset in zip(made, offsets, strict=True):
        expected = scipy.ndimage.shift(pixels[0], (*(2 - offset), 0), order=0, mode="reflect")
        assert np.array_equal(cropped, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (5, 2, 3), (7, 9, 1)])
def test_crops_of_images_smaller_than_their_border_and_not_square(shape, backend):
    pixels = np.random.default_rng(0).standard_normal((25, *shape)).astype(np.float32)
    offsets = np.array([(y, x) for y in range(5) for x in range(5)])
    bordered = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
    expected = [image[y:y + shape[0], x:x + shape[1]] for image, (y, x) in zip(bordered, offsets, strict=True)]
    assert np.array_equal(run(pixels, backend, plain(25, offsets=offsets)), np.stack(expected))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (5, 2, 3), (12, 12, 3)])
def test_the_border_is_symmetric(shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(dtype)
    expected = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric")
    out = torch.zeros(expected.shape, dtype=torch.from_numpy(pixels).dtype)
    mirror_pad(out, torch.from_numpy(pixels))
    assert np.array_equal(out, expected)
    if min(shape) > 1:
        assert not np.array_equal(expected, np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_six_views(images, backend):
    assert np.array_equal(run(images, backend, views=True), [six_views_numpy(image) for image in images])


@pytest.mark.parametrize("backend", BACKENDS)
def test_flips(images, backend):
    flips = np.array([1, 0, 0, 1, 1])
    expected = [np.fliplr(image) if flip else image for image, flip in zip(images, flips, strict=True)]
    assert np.array_equal(run(images, backend, plain(5, flip=flips)), expected)


def test_flips_come_before_the_views(images):
    flips = np.array([1, 0, 0, 1, 1])
    flipped = [np.fliplr(image) if flip else image for image, flip in zip(images, flips, strict=True)]
    expected = [six_views_numpy(image) for image in flipped]
    for backend in BACKENDS:
        assert np.array_equal(run(images, backend, plain(5, flip=flips), views=True), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["gcn", "standardize"])
@pytest.mark.parametrize("views", [False, True])
def test_bytes_are_normalised_flipped_and_viewed(channels, kind, views, backend):
    rng = np.random.default_rng(channels)
    pixels = rng.integers(0, 256, (6, 7, 7, channels), dtype=np.uint8)
    mean, deviation = rng.uniform(1, 200, (2, channels))
    values = pixels.astype(np.float64)
    if kind == "gcn":
        preprocess = Preprocess("gcn", (7, 7, channels))
        flat = values.reshape(6, -1) - values.reshape(6, -1).mean(axis=1, keepdims=True)
        flat *= 55 * np.sqrt(flat.shape[1] / 3072) / np.linalg.norm(flat, axis=1, keepdims=True)
        values = flat.reshape(values.shape)
    else:
        preprocess = Preprocess("standardize", (7, 7, channels), {
            "mean": torch.tensor(mean, dtype=torch.float32), "deviation": torch.tensor(deviation, dtype=torch.float32)})
        values = (values - mean) / deviation
    flips = np.array([0, 1, 1, 0, 1, 0]) * (not views)
    expected = [six_views_numpy(image) if views else image[:, ::-1] if flip else image
                for image, flip in zip(values, flips, strict=True)]
    made = run(pixels, backend, plain(6, flip=flips), preprocess, views, steps=3)
    assert np.allclose(made, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_of_one_value_becomes_zeros(backend):
    pixels = np.full((2, 300, 300, 3), 77, np.uint8)
    assert not run(pixels, backend, preprocess=Preprocess("gcn", (300, 300, 3))).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_has_its_mean_deviation_and_independence(backend):
    images = np.full((64, 16, 16, 3), 5, np.float32)
    draws = plain(64, noisy=np.ones(64, np.int64), noise_keys=noise_keys_of(3, 0, 64, 768))
    noise = run(images, backend, draws, noise=0.15, steps=8) - images
    values = noise.size
    assert abs(noise.mean()) < 5 * 0.15 / np.sqrt(values)
    assert abs(noise.std() - 0.15) < 5 * 0.15 / np.sqrt(2 * values)
    between_images = np.corrcoef(noise.reshape(64, -1)) - np.eye(64)
    assert abs(between_images).max() < 6 / np.sqrt(16 * 16 * 3)
    assert scipy.stats.kstest(noise.reshape(-1) / 0.15, "norm").pvalue > 1e-4
    neighbours = np.corrcoef(noise.reshape(-1)[:-1], noise.reshape(-1)[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_noisy_images_get_noise(images, backend):
    noisy = np.array([0, 1, 0, 0, 1])
    made = run(images, backend, plain(5, noisy=noisy), noise=0.15)
    changed = (made != images).mean(axis=(1, 2, 3))
    assert (changed[noisy == 0] == 0).all()
    assert (changed[noisy == 1] > 0.99).all()


def test_dali_s_noise_is_a_function_of_its_state(images):
    """Not of what the pipeline ran before: which makes a superbatch a function of its number."""
    ones = np.ones(5, np.int64)
    graph = Graph(Recipe((12, 12, 3), unwhitened((12, 12, 3)), False, False, 0.15, 1, 5), CPU, "dali")
    made = [graph(torch.from_numpy(images), plain(5, noisy=ones, noise_state=noise_state(LABELED, number)))
            for number in (0, 1, 2, 1, 0)]
    assert torch.equal(made[0], made[4])
    assert torch.equal(made[1], made[3])
    assert (made[0] != made[1]).float().mean() > 0.99
    noise = torch.cat(made[:3]).flatten(1) - torch.from_numpy(images).flatten(1).repeat(3, 1)
    assert (torch.corrcoef(noise) - torch.eye(15)).abs().max() < 6 / 432 ** 0.5


def test_an_image_s_noise_is_that_of_its_key():
    """By whichever thread it is drawn, in whatever portions: and no two keys have the same."""
    zeros, ones = np.zeros((40, 5, 5, 3), np.float32), np.ones(40, np.int64)
    keys = noise_keys_of(2**64 - 5, 2**40, 40, 75)  # 75 values an image, which is no multiple of four
    whole = run(zeros, "numba", plain(40, noisy=ones, noise_keys=keys), noise=0.15)
    for first, last in ((0, 1), (1, 17), (17, 40)):
        part = run(zeros[first:last], "numba", plain(last - first, noisy=ones[first:last],
                                                     noise_keys=keys[first:last]), noise=0.15, threads=1)
        assert np.array_equal(part, whole[first:last])
    assert len(np.unique(whole.reshape(40, -1), axis=0)) == 40
    other = plain(40, noisy=ones, noise_keys=noise_keys_of(2**64 - 6, 2**40, 40, 75))
    assert not np.array_equal(whole, run(zeros, "numba", other, noise=0.15))


def test_noise_is_looked_up_in_the_quantiles_by_splitmix64():
    """16 bits after 16 bits, lowest first; every image begins with a number of its own."""
    numbers = splitmix64(1234567, 3 * 19)  # images of 75 values take 19 numbers
    assert numbers[:5] == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                           16408922859458223821]  # published
    bits = np.array([[number >> shift & 0xFFFF for number in numbers[19 * i:19 * i + 19] for shift in (0, 16, 32, 48)]
                     for i in range(3)])[:, :75]
    draws = plain(3, noisy=np.ones(3, np.int64), noise_keys=noise_keys_of(1234567, 0, 3, 75))
    ours = run(np.zeros((3, 5, 5, 3), np.float32), "numba", draws, noise=0.15).reshape(3, -1)
    assert np.allclose(ours, 0.15 * scipy.stats.norm.ppf((bits + 0.5) / 2**16), rtol=1e-4)


def test_the_quantiles_have_their_deviation():
    table = quantiles(0.15).astype(np.float64)
    assert abs(table.mean()) < 1e-9
    assert abs(table.std() - 0.15) < 1e-8


GOOD = torch.zeros(2, 4, 4, 3)


@pytest.mark.parametrize("wrong", [
    {"images": GOOD.double()}, {"images": GOOD[:1]}, {"images": torch.zeros(2, 4, 3, 3)}, {"images": GOOD[..., :1]},
    {"images": torch.zeros(3, 4, 4, 3)}, {"images": torch.zeros(2, 3, 4, 4).permute(0, 2, 3, 1)},
    {"images": GOOD.to(torch.uint8)}, {"flip": np.array([0, 2])}, {"flip": np.array([0, -1])},
    {"flip": np.array([0])}, {"offsets": np.array([[0, 0], [0, 5]])}, {"offsets": np.array([[0, 0], [-1, 0]])},
    {"noise_keys": noise_keys_of(0, 0, 1, 48)}])
def test_what_would_be_read_or_written_elsewhere_is_refused(wrong):
    """What is compiled checks nothing."""
    graph = Graph(Recipe((4, 4, 3), unwhitened((4, 4, 3)), False, True, 0.15, 1, 2), CPU, "numba")
    graph(GOOD, plain(2))
    with pytest.raises(ValueError, match=r"graph of \(4, 4, 3\)"):
        graph(wrong.pop("images", GOOD), plain(2, **wrong))


# ---- the graph as built for a GPU

def operators(graph: Graph) -> list[tuple[str, str, list[str], list[str]]]:
    """(name, DALI operator, devices of inputs, devices of outputs) in graph order, without building."""
    pipeline, found = graph._pipeline, []
    pipeline._build_graph()
    for op in pipeline._ops:
        spec, kind = op.spec, getattr(op._op, "schema_name", type(op._op).__name__)
        found.append((op.name, kind, [spec.InputDevice(i) for i in range(spec.NumInput())],
                      [spec.OutputDevice(i) for i in range(spec.NumOutput())]))
    return found


def dali_graph_of(which: str, device: str) -> Graph:
    preprocess = unwhitened((32, 32, 3)) if which == "whitened" else Preprocess("gcn", (32, 32, 3))
    return Graph(Recipe((32, 32, 3), preprocess, which == "unlabeled", which == "labeled", 0.15, 4, 64),
                 torch.device(device), "dali")


@pytest.mark.parametrize("which", ["labeled", "unlabeled", "whitened"])
def test_every_gpu_operator_is_registered_and_none_falls_back(which):
    registered = set(nvidia.dali.backend.RegisteredGPUOps())
    graph = dali_graph_of(which, "cuda:0")
    ops = operators(graph)
    for name, kind, inputs, outputs in ops:
        if kind == "ExternalSource":  # the upload; and the state of the noise, which DALI wants on the CPU
            assert inputs == []
            assert outputs == ["cpu" if name == "noise_state" else "gpu"]
            continue
        assert outputs == ["gpu"], f"{name} ({kind}) runs on the CPU, after the upload"
        assert kind in registered, f"{name}: DALI has no GPU operator {kind}"
        assert inputs[0] == "gpu"
        if "Arithmetic" in kind:
            assert set(inputs) == {"gpu"}, f"{name} wants something that is on the CPU"
    assert [node.device for node in graph._pipeline._graph_outputs] == ["gpu"]


@pytest.mark.parametrize(("which", "names"), [
    ("labeled", {"flip_some", "noise"}), ("unlabeled", {"noise", "six_views"})])
def test_the_random_stages_are_on_the_gpu_by_name(which, names):
    found = {name: outputs for name, _, _, outputs in operators(dali_graph_of(which, "cuda:0"))}
    assert names <= set(found)
    assert all(found[name] == ["gpu"] for name in names)


def test_no_operator_launches_a_kernel_an_image():
    assert "Flip" not in {kind for _, kind, _, _ in operators(dali_graph_of("unlabeled", "cuda:0"))}


@pytest.mark.parametrize("which", ["labeled", "unlabeled", "whitened"])
def test_dali_s_graph_on_a_cpu_is_the_same_but_for_placement(which):
    on_gpu, on_cpu = (operators(dali_graph_of(which, device)) for device in ("cuda:0", "cpu"))
    assert [(name, kind) for name, kind, _, _ in on_gpu] == [(name, kind) for name, kind, _, _ in on_cpu]
    assert {device for _, _, inputs, outputs in on_cpu for device in inputs + outputs} == {"cpu"}


def test_a_gpu_s_samples_are_steps():
    """One of them an image would cost the host more than the training step, and DALI's transposition fails on a GPU."""
    for which in ("labeled", "unlabeled", "whitened"):
        assert dali_graph_of(which, "cuda:0")._pipeline.max_batch_size == 4
    recipe = Recipe((32, 32, 3), Preprocess("gcn", (32, 32, 3)), True, False, 0.15, DALI_SAMPLES + 1, 650)
    with pytest.raises(ValueError, match="65 steps a superbatch, expected at most 64"):
        Graph(recipe, torch.device("cuda:0"), "dali")


@pytest.mark.parametrize("which", ["gcn", "zca"])
def test_on_a_cpu_one_operator_does_it_all(which):
    preprocess = unwhitened((8, 8, 3)) if which == "zca" else Preprocess("gcn", (8, 8, 3))
    graph = Graph(Recipe((8, 8, 3), preprocess, True, False, 0.15, 4, 64), CPU, "numba")
    kinds = [kind for _, kind, _, _ in operators(graph)]
    assert kinds.count("NumbaFunction") == 1
    assert set(kinds) == {"NumbaFunction", "ExternalSource", "Constant"}
