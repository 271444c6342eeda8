"""ImageNet of 32×32: pixels and labels of pickles of every protocol, what others get, and memory."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.fuzz.pickled import python2
from tools import prepare
from tools.sources import imagenet32

ROOT = Path(__file__).parents[2]


def content(count: int, seed: int, labels=list) -> dict:
    """What a file of ``count`` images holds; the labels are of 1 to 1000."""
    draw = np.random.default_rng(seed)
    rows = draw.integers(0, 256, (count, 3072), np.uint8)
    return {"data": rows, "labels": labels(draw.integers(1, 1001, count).tolist()),
            "mean": rows.mean(axis=0, dtype=np.float64)}


def write(folder: Path, protocol: int = 4, count: int = 30) -> dict[str, dict]:
    """All eleven files; what is in them, by name."""
    folder.mkdir(exist_ok=True)
    found = {name: content(count + seed, seed) for seed, name in enumerate([
        *(f"train_data_batch_{n}" for n in range(1, 11)), "val_data"])}
    for name, what in found.items():
        (folder / name).write_bytes(pickle.dumps(what, protocol))
    return found


def image_of(row: np.ndarray) -> np.ndarray:
    """One image as the authors describe a row: red, green and blue, 1024 values each, row by row."""
    return np.stack([row[:1024].reshape(32, 32), row[1024:2048].reshape(32, 32), row[2048:].reshape(32, 32)], axis=2)


def check(split, batches: list[dict]) -> None:
    """A split's images are those of these files in this order, its labels one lower."""
    got = list(split.batches())
    images = np.concatenate([images for images, _ in got])
    assert split.num_images == len(images) == sum(len(batch["labels"]) for batch in batches)
    assert np.array_equal(images, [image_of(row) for batch in batches for row in batch["data"]])
    assert np.concatenate([labels for _, labels in got]).tolist() == [
        label - 1 for batch in batches for label in batch["labels"]]


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path, protocol):
    written = write(tmp_path / "in", protocol)
    source = imagenet32.read(tmp_path / "in")
    assert source.dataset == "imagenet32"
    train, test = source.splits
    assert (train.name, test.name) == ("train", "test")
    assert train.classes == tuple(str(n) for n in range(1, 1001))
    check(train, [written[f"train_data_batch_{n}"] for n in range(1, 11)])
    check(test, [written["val_data"]])


def test_as_prepared(tmp_path):
    written = write(tmp_path / "in")
    prepare.prepare(imagenet32.read(tmp_path / "in"), tmp_path / "out")
    shard_set = ShardSet(tmp_path / "out" / "test")
    assert np.array_equal(shard_set.read(np.arange(40)), [image_of(row) for row in written["val_data"]["data"]])
    assert shard_set.labels.tolist() == [label - 1 for label in written["val_data"]["labels"]]


def test_python_2_s_pickle(tmp_path):
    write(tmp_path)
    rows = np.random.default_rng(5).integers(0, 256, (25, 3072), np.uint8)
    (tmp_path / "train_data_batch_2").write_bytes(python2(rows, list(range(1, 26))))
    batches = [images for images, _ in imagenet32.read(tmp_path).splits[0].batches()]
    assert np.array_equal(batches[1], [image_of(row) for row in rows])


@pytest.mark.parametrize("layout", ["above", "beside", "one level"])
def test_folders(tmp_path, layout):
    train = tmp_path / ("x" if layout == "above" else "Imagenet32_train")
    written = write(train)
    if layout == "beside":
        (tmp_path / "Imagenet32_val").mkdir()
        (train / "val_data").rename(tmp_path / "Imagenet32_val" / "val_data")
    source = imagenet32.read(train if layout == "one level" else tmp_path)
    check(source.splits[1], [written["val_data"]])


def test_without_validation(tmp_path):
    write(tmp_path)
    (tmp_path / "val_data").unlink()
    (tmp_path / "train_data_batch_11").write_bytes(b"")
    source = imagenet32.read(tmp_path)
    assert [split.name for split in source.splits] == ["train"]
    assert "val_data: not found" in source.report.notes
    assert source.report.as_dict()["files"] == {"no extension": {"count": 1, "names": ["train_data_batch_11"]}}


@pytest.mark.parametrize("dtype", ["i8", ">i8", "u2", ">u2", "i4", "u1"])
def test_labels_in_an_array(tmp_path, dtype):
    written = write(tmp_path)
    file = tmp_path / "val_data"
    what = written["val_data"]
    what["labels"] = [label % 200 + 1 for label in what["labels"]]
    file.write_bytes(pickle.dumps(what | {"labels": np.array(what["labels"], dtype)}, 4))
    check(imagenet32.read(tmp_path).splits[1], [what])


@pytest.mark.parametrize("mean", [np.float64(3), np.float32(3), np.zeros((32, 32, 3), np.float32), None, [1.5], "x",
                                  np.zeros(3072, ">f8"), np.zeros((48, 64), np.float16, order="F"), np.array(2.0)])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_mean_of_any_type(tmp_path, mean, protocol):
    written = write(tmp_path)
    (tmp_path / "val_data").write_bytes(pickle.dumps(written["val_data"] | {"mean": mean}, protocol))
    check(imagenet32.read(tmp_path).splits[1], [written["val_data"]])


GOOD = content(5, 0)
OF_64 = {"data": np.zeros((5, 12288), np.uint8)}


@pytest.mark.parametrize(("change", "message"), [
    ({"data": GOOD["data"].astype(np.int16)}, r"data is int16 \(5, 3072\), expected uint8 \(n, 3072\)"),
    ({"data": np.asfortranarray(GOOD["data"])}, "in Fortran order"),
    ({"data": GOOD["data"].astype(object)}, "an array of b?'O8' found"),
    (OF_64, r"data is uint8 \(5, 12288\)"), ({"data": GOOD["data"][0]}, r"data is uint8 \(3072,\)"),
    ({"data": [1]}, "data is a list of 1"), ({"data": None}, "data is missing"),
    ({"data": GOOD["data"][:0], "labels": []}, "0 images found"),
    ({"data": np.zeros((200_001, 3072), np.uint8)}, "bytes found, which no"),
    ({"labels": [1, 2]}, "labels are a list of 2, expected 5 integers"), ({"labels": None}, "labels are missing"),
    ({"labels": [1, 2, 3, 4, 0]}, "label 0 found, expected 1 to 1000"),
    ({"labels": [1, 2, 3, 4, 1001]}, "label 1001 found"), ({"labels": [1, 2, 3, 4, -1]}, "label -1 found"),
    ({"labels": [1, 2, 3, 4, 2**70]}, "label an integer of 71 bits found"),
    ({"labels": np.array([1, 2, 3, 4, 1001], ">i4")}, "label 1001 found"),
    ({"labels": np.ones(5)}, r"labels are float64 \(5,\)"), ({"labels": np.ones((5, 1), int)}, "labels are int64"),
    ({"labels": [1, 2, 3, 4, "x"]}, "labels are a list of 5"), ({"labels": [1, 2, 3, 4, True]}, "labels are a list")])
def test_wrong_content(tmp_path, change, message):
    write(tmp_path)
    with open(tmp_path / "train_data_batch_4", "wb") as file:
        pickle.dump(GOOD | change, file, 4)
    with pytest.raises(DataError, match=message) as refused:
        imagenet32.read(tmp_path)
    assert "train_data_batch_4: " in str(refused.value)


@pytest.mark.parametrize("n", [1, 5, 10])
def test_a_missing_batch(tmp_path, n):
    write(tmp_path)
    (tmp_path / f"train_data_batch_{n}").unlink()
    with pytest.raises(DataError, match=f"train_data_batch_{n}: missing; expected train_data_batch_1 to"):
        imagenet32.read(tmp_path)


def test_truncated(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "train_data_batch_7").read_bytes()
    for length in (0, 100, 70_000, len(whole) - 1):
        (tmp_path / "train_data_batch_7").write_bytes(whole[:length])
        with pytest.raises(DataError, match="train_data_batch_7: not a readable ImageNet 32×32 pickle"):
            imagenet32.read(tmp_path)


def test_a_file_that_changes(tmp_path):
    write(tmp_path)
    source = imagenet32.read(tmp_path)
    (tmp_path / "train_data_batch_1").write_bytes(pickle.dumps(GOOD, 4))
    with pytest.raises(DataError, match="train_data_batch_1: 5 images found, 30 before"):
        list(source.splits[0].batches())


def test_other_places(tmp_path):
    (tmp_path / "Imagenet32_train.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"Imagenet32_train\.zip: a zip file; unzip it first"):
        imagenet32.read(tmp_path / "Imagenet32_train.zip")
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=f"{name}: .*expected train_data_batch_1 to train_data_batch_10"):
            imagenet32.read(tmp_path / name)
    for name in ("a", "b"):
        write(tmp_path / name)
    with pytest.raises(DataError, match="found in a, b, expected a single folder"):
        imagenet32.read(tmp_path)


def test_python_3_s_protocol_2_is_refused_where_it_would_take_memory(tmp_path, frugal):
    """Its pixels are text of more than 64 MB."""
    write(tmp_path)
    rows = np.random.default_rng(0).integers(0, 256, (20_000, 3072), np.uint8)
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": rows, "labels": [1] * 20_000}, 2))
    with frugal(100), pytest.raises(DataError, match=r"val_data: .*save it again by protocol 4"):
        imagenet32.read(tmp_path)


def test_arrays_of_the_same_bytes_take_no_memory(tmp_path, frugal):
    write(tmp_path)
    rows = np.zeros((10_000, 3072), np.uint8)
    array = pickle.dumps(rows, 4)[11:-1]  # without header, frame and end
    (tmp_path / "val_data").write_bytes(
        b"\x80\x04}(\x8c\x04data" + array + b"\x8c\x06labels](" + b"K\x01" * 10_000 + b"e" + b"u.")
    with frugal(64):
        assert imagenet32.read(tmp_path).splits[1].num_images == 10_000


MAKE = """
import pickle, sys
import numpy as np
from pathlib import Path
folder, count = Path(sys.argv[1]), int(sys.argv[2])
draw = np.random.default_rng(0)
with open(folder / "train_data_batch_3", "wb") as file:
    rows = draw.integers(0, 256, (count, 3072), np.uint8)
    pickle.dump({"data": rows, "labels": draw.integers(1, 1001, count).tolist(), "mean": rows.mean(0)}, file, 4)
"""
MEASURE = """
import sys
from pathlib import Path
from pipelines.common.memory import peak_rss_bytes
from tools.sources import imagenet32
before = peak_rss_bytes()
count = 0
for split in imagenet32.read(Path(sys.argv[1])).splits:
    for images, labels in split.batches():
        count += len(images)
        images.copy()
print(count, before / 2**20, peak_rss_bytes() / 2**20)
"""


def measured(folder: Path, count: int) -> tuple[float, float]:
    """Peak memory in MB of a process that reads a data set with one file of ``count`` images: at its start, and in
    all.
    """
    write(folder)
    subprocess.run([sys.executable, "-c", MAKE, folder, str(count)], check=True)
    done = subprocess.run([sys.executable, "-c", MEASURE, folder], cwd=ROOT, check=True, capture_output=True, text=True)
    read, before, peak = map(float, done.stdout.split())
    assert read == count + sum(30 + seed for seed in range(11) if seed != 2)
    print(f"{count:,} images: {before:.0f} MB at the start, {peak:.0f} MB at the peak")
    return before, peak


def test_memory(tmp_path):
    before, peak = measured(tmp_path, 20_000)  # 61 MB
    assert peak - before < 50


@pytest.mark.slow
def test_memory_with_a_file_of_full_size(tmp_path):
    before, peak = measured(tmp_path, 128_116)
    assert (tmp_path / "train_data_batch_3").stat().st_size > 128_116 * 3072
    assert peak - before < 80
    assert peak < 500
