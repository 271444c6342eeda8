"""Tiny Images: the right images of a raw file, whatever its size, copied or in place."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError, UsageError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare, verify
from tools.sources import tiny_images

ALL = 79_302_017
INDEX = Path(__file__).parents[3] / "shared" / "data" / "tiny_index.pkl"


def raw_bytes(image: np.ndarray) -> bytes:
    """An image (32, 32, 3) as tiny_images.bin has it, value by value: channel slowest, then column, row fastest."""
    return bytes(image[row, column, channel] for channel in range(3) for column in range(32) for row in range(32))


@pytest.fixture
def source(tmp_path):
    """A folder with 700 images, in three words."""
    images = random_images(700, 32)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny_images.bin").write_bytes(b"".join(map(raw_bytes, images)))
    write_index(tmp_path / "tiny" / "tiny_index.pkl", {"a": (0, 300), "b": (300, 301), "c": (301, 700)})
    return tmp_path / "tiny", images


def write_index(path, words) -> None:
    path.write_bytes(pickle.dumps(words, protocol=2))


def read_all(path) -> np.ndarray:
    shard_set = ShardSet(path)
    assert shard_set.classes is None
    return shard_set.read(np.arange(len(shard_set)))


@pytest.mark.parametrize("in_place", [False, True])
def test_all_in_file_order(source, tmp_path, command, in_place):
    path, images = source
    flags = ["--in-place"] if in_place else []
    status, out, _ = command(prepare.main, "tinyimages", "--source", path, "--extra", "all", "--out", tmp_path / "s",
                             *flags)
    assert status == 0
    assert "700 images of 32×32, unlabeled" in out
    assert np.array_equal(read_all(tmp_path / "s" / "train"), images)
    mixed = np.random.default_rng(0).integers(0, 700, 100)
    assert np.array_equal(ShardSet(tmp_path / "s" / "train").read(mixed), images[mixed])
    files = sorted(file.name for file in (tmp_path / "s" / "train").iterdir())
    assert files == (["manifest.json"] if in_place else ["images-00000.npy", "manifest.json"])
    assert command(verify.main, tmp_path / "s")[0] == 0


def test_a_random_part_is_the_reference_s(source, tmp_path, command):
    path, images = source
    assert command(prepare.main, "tinyimages", "--source", path / "tiny_images.bin", "--extra", 90, "--out",
                   tmp_path / "s")[0] == 0
    indices = np.arange(700)  # as the reference: 64-bit indices
    np.random.RandomState(1).shuffle(indices)
    assert np.array_equal(read_all(tmp_path / "s" / "train"), images[np.sort(indices[:90])])


def test_a_smaller_part_is_part_of_a_larger_one():
    few, many = (set(tiny_images.random_subset(n, 1000, Path("x")).tolist()) for n in ("10", "300"))
    assert few < many
    assert len(many) == 300


def test_runs_of_indices():
    indices = np.array([0, 1, 2, 5, 7, 8, 20], np.int32)
    assert tiny_images.as_ranges(indices).tolist() == [[0, 3], [5, 6], [7, 9], [20, 21]]
    assert tiny_images.as_ranges(indices[:1]).tolist() == [[0, 1]]


def test_the_words_of_cifar_100_in_file_order(source, tmp_path, command, monkeypatch):
    """A hundred words of 2 images each, backwards in the index and with others between them."""
    path, images = source
    monkeypatch.setattr(tiny_images, "CIFAR100_WORDS_EXTRA", 200)
    words, expected = {"other": (0, 3)}, []
    for number, name in enumerate(reversed(tiny_images.CIFAR100_CLASSES)):
        words[{"maple_tree": "maple", "aquarium_fish": "fish"}.get(name, name)] = (3 + 5 * number, 5 + 5 * number)
        expected += [3 + 5 * number, 4 + 5 * number]
    write_index(path / "tiny_index.pkl", words)
    for flags in ([], ["--in-place"]):
        assert command(prepare.main, "tinyimages", "--source", path, "--extra", 200, "--out",
                       tmp_path / f"s{len(flags)}", *flags)[0] == 0
        assert np.array_equal(read_all(tmp_path / f"s{len(flags)}" / "train"), images[expected])


def test_class_names_are_cifar_100_s():
    names = tiny_images.CIFAR100_CLASSES
    assert len(names) == len(set(names)) == 100
    assert names == tuple(sorted(names))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """The real index beside a sparse file of the real size, real images planted at chosen places; and those."""
    if not INDEX.exists():
        pytest.skip(f"needs the real index of Tiny Images: {INDEX} is absent")
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "tiny_images.bin"
    try:
        os.truncate(os.open(file, os.O_RDWR | os.O_CREAT), ALL * 3072)
    except OSError as error:
        pytest.skip(f"needs a file system that holds a sparse file of 244 GB: {error}")
    with open(INDEX, "rb") as stream:
        words = pickle.load(stream)
    (folder / "tiny_index.pkl").write_bytes(INDEX.read_bytes())
    places = [words["apple"][0], words["fish"][1] - 1, words["worm"][1] - 1, 8, 79_301_792]
    images = random_images(len(places), 32, seed=3)
    with open(file, "r+b") as stream:
        for place, image in zip(places, images, strict=True):
            stream.seek(place * 3072)
            stream.write(raw_bytes(image))
    yield folder, places, images, words
    file.unlink()


def prepared_in_a_process(*argv) -> int:
    """Run tools.prepare in a process of its own; returns its resident peak in bytes."""
    code = "import sys; from pipelines.common.memory import peak_rss_bytes; from tools import prepare; " \
        "prepare.main(sys.argv[1:]); print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def test_237203_of_the_full_file(full_size, tmp_path):
    folder, places, images, words = full_size
    peak = prepared_in_a_process("tinyimages", "--source", folder, "--extra", 237203, "--out", tmp_path / "s")
    assert peak < 700e6
    shard_set = ShardSet(tmp_path / "s" / "train")
    assert len(shard_set) == 237_203
    renamed = {"maple_tree": "maple", "aquarium_fish": "fish"}
    chosen = np.sort(np.concatenate([np.arange(*words[renamed.get(name, name)])
                                     for name in tiny_images.CIFAR100_CLASSES]))
    assert np.array_equal(shard_set.read(np.searchsorted(chosen, places[:3])), images[:3])
    everything = shard_set.read(np.arange(len(shard_set)))
    assert np.flatnonzero(everything.any(axis=(1, 2, 3))).tolist() == sorted(np.searchsorted(chosen, places[:3]))


@pytest.mark.slow
def test_500000_of_the_full_file(full_size, tmp_path):
    folder, _, _, _ = full_size
    chosen = np.arange(ALL)
    np.random.RandomState(1).shuffle(chosen)
    chosen = np.sort(chosen[:500_000])
    planted = random_images(4, 32, seed=9)
    with open(folder / "tiny_images.bin", "r+b") as stream:
        for place, image in zip(chosen[[0, 1, 250_000, -1]], planted, strict=True):
            stream.seek(int(place) * 3072)
            stream.write(raw_bytes(image))
    peak = prepared_in_a_process("tinyimages", "--source", folder, "--extra", 500000, "--out", tmp_path / "s")
    assert peak < 700e6
    assert np.array_equal(tiny_images.random_subset("500000", ALL, folder), chosen)
    shard_set = ShardSet(tmp_path / "s" / "train")
    assert len(shard_set) == 500_000
    assert np.array_equal(shard_set.read(np.array([0, 1, 250_000, 499_999])), planted)


def test_the_full_file_in_place(full_size, tmp_path, command):
    folder, places, images, _ = full_size
    assert command(prepare.main, "tinyimages", "--source", folder, "--extra", "all", "--in-place", "--out",
                   tmp_path / "s")[0] == 0
    shard_set = ShardSet(tmp_path / "s" / "train")
    assert len(shard_set) == ALL
    assert np.array_equal(shard_set.read(np.array(places)), images)


@pytest.mark.parametrize(("extra", "flags", "status", "message"), [
    ("701", [], 2, "701"), ("0", [], 2, "--extra"), ("some", [], 2, "some"), ("90", ["--in-place"], 2, "--in-place"),
    ("237203", [], 1, "'apple' not found"), ("all", ["--index", "nowhere.pkl"], 1, "nowhere.pkl: not found"),
    ("all", ["--in-place", "--exclude", "x"], 2, "--exclude")])
def test_wrong_use(source, tmp_path, command, extra, flags, status, message):
    found, out, err = command(prepare.main, "tinyimages", "--source", source[0], "--extra", extra, "--out",
                              tmp_path / "s", *flags)
    assert found == status
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "s").exists()


def test_a_file_of_another_size(source, tmp_path, command):
    path, _ = source
    with open(path / "tiny_images.bin", "ab") as stream:
        stream.write(b"x")
    status, _, err = command(prepare.main, "tinyimages", "--source", path, "--extra", "all", "--out", tmp_path / "s")
    assert status == 1
    assert "multiple of 3,072" in err
    (path / "tiny_images.bin").unlink()
    with pytest.raises(DataError, match=r"tiny_images\.bin: not found"):
        tiny_images.read(path, "all")


@pytest.mark.parametrize("words", [{"a": (0, 701)}, {"a": (5, 2)}, {"a": (-1, 2)}, {"a": "b"}, {3: (0, 1)}, [1]])
def test_an_index_of_another_file(source, words):
    path, _ = source
    write_index(path / "tiny_index.pkl", words)
    with pytest.raises(DataError, match=r"tiny_index\.pkl"):
        tiny_images.read(path, "all")


def test_an_index_that_runs_code_is_refused(source, tmp_path):
    path, _ = source

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)
    write_index(path / "tiny_index.pkl", {"a": Runs()})
    with pytest.raises(DataError, match="system"):
        tiny_images.read(path, "all")
    assert not (tmp_path / "ran").exists()


def test_words_need_the_index(source):
    path, _ = source
    (path / "tiny_index.pkl").unlink()
    with pytest.raises(UsageError, match=r"needs tiny_index\.pkl"):
        tiny_images.read(path, "237203")
