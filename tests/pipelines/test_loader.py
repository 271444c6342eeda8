"""Streams resume to the bit, load no window they do not need, and never overwrite what they handed out."""


import numpy as np
import pytest
import torch

from pipelines.batch import StreamOptions
from pipelines.evaluation import EvaluationLoader
from pipelines.loader import SemiSupervisedLoader
from pipelines.sampling import LABELED, UNLABELED, Order
from pipelines.stream import Stream
from pipelines.whitening import KINDS, Preprocess, prepare
from pipelines.windows import default_block_images, default_window_images
from tests.conftest import random_images, write_set

PREPROCESS = Preprocess("gcn", (8, 8, 3))


def stream(small_set, seed=1, backend=None, **options) -> Stream:
    options = {"batch": 10, "views": True, "flip": False, "window_images": 64, "steps_per_superbatch": 4, **options}
    return Stream([small_set], PREPROCESS, StreamOptions(**options), seed=seed, stream_id=UNLABELED,
                  device=torch.device("cpu"), backend=backend)


def take(source, count: int) -> list:
    return [next(source) for _ in range(count)]


def equal(left: list, right: list) -> bool:
    return all(torch.equal(a, b) for one, other in zip(left, right, strict=True)
               for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("backend", ["numba", "dali"])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 8, 30, 77])
def test_resumes_to_the_bit(small_set, steps, backend):
    """Also in DALI's own noise, which is each superbatch's."""
    one = stream(small_set, backend=backend)
    take(one, steps)
    state = one.state_dict()
    expected = take(one, 12)
    other = stream(small_set, backend=backend)
    other.load_state_dict(state)
    assert equal(take(other, 12), expected)
    assert other.state_dict() == one.state_dict()
    other.load_state_dict(state)  # a stream that has run can be put back, too
    assert equal(take(other, 3), expected[:3])
    one.close()
    other.close()


@pytest.mark.parametrize("views", [True, False])
def test_batches_do_not_depend_on_the_superbatch(small_set, views):
    """Whose size depends on the device; but for DALI's noise."""
    for backend, noise in (("numba", 0.15), ("dali", 0)):
        feeds = [stream(small_set, backend=backend, noise=noise, views=views, flip=not views,
                        steps_per_superbatch=steps) for steps in (1, 4, 7)]
        for batches in zip(*(take(feed, 30) for feed in feeds), strict=True):
            assert equal([batches[0]] * 2, batches[1:])
        for feed in feeds:
            feed.close()


def test_a_checkpoint_of_other_noise_is_refused(small_set):
    one = stream(small_set)
    state = one.state_dict()
    for other in ({name: value for name, value in state.items() if name != "noise_scheme"},
                  state | {"noise_scheme": "another"}):
        with pytest.raises(ValueError, match="noise_scheme"):
            one.load_state_dict(other)
    one.close()


def test_large_images_resume_to_the_bit_past_the_first_window(tmp_path):
    """Of 600 pixels, a chunk is one image; by one thread or by several, the result is the same."""
    images = random_images(12, 600)
    large = write_set(tmp_path / "large", images, shard_bytes=2**23)

    def feed(threads: int) -> Stream:
        options = StreamOptions(2, views=True, flip=False, window_images=4, block_images=1, steps_per_superbatch=1)
        return Stream([large], Preprocess("gcn", (600, 600, 3)), options, seed=1, stream_id=UNLABELED,
                      device=torch.device("cpu"), threads=threads)
    one, other = feed(1), feed(3)
    take(one, 3)
    other.load_state_dict(one.state_dict())
    assert equal(take(other, 2), take(one, 2))
    one.close()
    other.close()


@pytest.mark.parametrize("steps", [0, 5, 30])
def test_two_sources_resume_to_the_bit(small_set, tmp_path, steps):
    other = write_set(tmp_path / "other", random_images(90, 8, seed=3))

    def both() -> Stream:
        options = StreamOptions(batch=10, views=True, flip=False, window_images=64, steps_per_superbatch=4)
        return Stream([small_set, other], PREPROCESS, options, seed=1, stream_id=UNLABELED, device=torch.device("cpu"))
    one, again = both(), both()
    take(one, steps)
    again.load_state_dict(one.state_dict())
    assert equal(take(again, 12), take(one, 12))
    alone = stream(small_set)
    with pytest.raises(ValueError, match="in the checkpoint"):
        alone.load_state_dict(one.state_dict())
    for feed in (one, again, alone):
        feed.close()


def test_images_of_another_shape_than_the_preprocessing_or_each_other_are_refused(small_set, tmp_path):
    """The kernel would read beyond what it was given."""
    other = write_set(tmp_path / "other", random_images(20, 12))
    for sources, preprocess, message in (([small_set], Preprocess("gcn", (32, 32, 3)), "preprocessing of"),
                                         ([small_set, other], PREPROCESS, "in one stream")):
        with pytest.raises(ValueError, match=message):
            Stream(sources, preprocess, StreamOptions(10, views=True, flip=False), seed=1, stream_id=UNLABELED,
                   device=torch.device("cpu"))
    with pytest.raises(ValueError, match="preprocessing of"):
        next(iter(EvaluationLoader(small_set, Preprocess("gcn", (8, 8, 1)), flip=True)))


def test_batches_that_do_not_divide_among_the_sources(small_set):
    with pytest.raises(ValueError, match="batches of 5 from 2 sources"):
        Stream([small_set, small_set], PREPROCESS, StreamOptions(5, views=True, flip=False), seed=1,
               stream_id=UNLABELED, device=torch.device("cpu"))


@pytest.mark.parametrize(("size", "classes"), [(32, 55), (96, 55), (224, 45)])
def test_a_set_in_the_order_of_its_classes_mixes(size, classes, tmp_path):
    """20,000 images of 100 classes, one after another: a full shuffle has 62 classes among 96 images."""
    window = default_window_images((size, size, 3), torch.device("cpu"))
    order = Order(20_000, window, default_block_images(window))
    found = []
    for step in range(100):
        indices = order.indices(96 * step * 2 + np.arange(96))
        found.append(len(set((indices // 200).tolist())))
    assert np.mean(found) > classes


def test_batches_are_the_caller_s(small_set):
    one, other = stream(small_set), stream(small_set)
    kept = take(one, 50)
    copies = [tuple(part.clone() for part in next(other)) for _ in range(50)]
    assert equal(kept, copies)
    for batch in kept:
        batch.images.zero_()  # writing into them disturbs no later one
        batch.labels.zero_()
    assert equal(take(one, 10), take(other, 10))
    one.close()
    other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_depend_on_threads_or_chunks(small_set, monkeypatch, kind):
    preprocess = prepare(kind, [small_set], progress=False)

    def feed(threads: int) -> list:
        loader = SemiSupervisedLoader(small_set, [small_set], preprocess, batch_unlabeled=4, threads=threads)
        batches = take(loader, 20)
        loader.close()
        return [examples for batch in batches for examples in batch]
    whole = feed(1)
    monkeypatch.setattr("pipelines.windows.CHUNK_VALUES", {"cpu": 8 * 8 * 3 * 7})
    for threads in (1, 3):
        for one, other in zip(whole, feed(threads), strict=True):
            assert torch.equal(one.labels, other.labels)
            # a product of other matrices is rounded otherwise
            assert torch.allclose(one.images, other.images, atol=1e-4 if kind == "zca" else 0, rtol=0)


def test_no_noise_is_drawn_twice(small_set):
    """By no image, stream or seed, nor in the evaluation: 192 values each, any two of which are independent."""
    drawn = []
    for seed in (0, 1):
        for which in (LABELED, UNLABELED):
            plain, noisy = (Stream([small_set], PREPROCESS, StreamOptions(
                10, views=which == UNLABELED, flip=False, noise=noise, window_images=64, steps_per_superbatch=4),
                seed=seed, stream_id=which, device=torch.device("cpu")) for noise in (0, 0.15))
            drawn += [next(noisy).images[::6] - next(plain).images[::6] for _ in range(9)]
            plain.close()
            noisy.close()
        for views, _ in EvaluationLoader(small_set, PREPROCESS, flip=True, seed=seed):
            image, jittered, noisy, noisy_jittered = views.unflatten(0, (-1, 8))[:20, :4].unbind(1)
            drawn += [noisy - image, noisy_jittered - jittered]
    rows = torch.cat([noise.flatten(1) for noise in drawn])
    assert len(rows) > 300
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 6.5 / rows.shape[1] ** 0.5


def test_streams_and_seeds_are_independent(small_set):
    feeds = [SemiSupervisedLoader(small_set, [small_set], PREPROCESS, batch_unlabeled=4, seed=seed)
             for seed in (0, 0, 1)]
    first = [next(feed) for feed in feeds]
    assert torch.equal(first[0].labeled.images, first[1].labeled.images)
    assert not torch.equal(first[0].labeled.labels, first[2].labeled.labels)
    assert not torch.equal(first[0].labeled.images[:4], first[0].unlabeled.images[::6])
    for feed in feeds:
        feed.close()


def test_supervised_has_no_unlabeled_branch(small_set):
    feed = SemiSupervisedLoader(small_set, [], PREPROCESS, batch_unlabeled=4)
    with_branch = SemiSupervisedLoader(small_set, [small_set], PREPROCESS, batch_unlabeled=4)
    batch = next(feed)
    assert batch.unlabeled is None
    assert torch.equal(batch.labeled.images, next(with_branch).labeled.images)  # the rest is equal
    with pytest.raises(ValueError, match=r"proxy \(unlabeled\) branch"):
        feed.load_state_dict(with_branch.state_dict())
    feed.close()
    with_branch.close()


@pytest.mark.parametrize("other", [{"seed": 2}, {"batch": 5}, {"steps_per_superbatch": 2}, {"window_images": 128},
                                   {"noise": 0.0}, {"backend": "dali"}])
def test_a_checkpoint_of_another_stream_is_refused(small_set, other):
    one, different = stream(small_set), stream(small_set, **other)
    with pytest.raises(ValueError, match="in the checkpoint"):
        different.load_state_dict(one.state_dict())
    one.close()
    different.close()
