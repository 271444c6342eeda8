"""CIFAR-10 as its users have it: real pixels in the real layouts, and every way a copy may be damaged."""

import io
import os
import pickle
import shutil
import tarfile
from dataclasses import replace as with_

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.shards import ShardSet
from tests.conftest import random_images
from tools import prepare, verify
from tools.sources import cifar

ROWS = 10_000


def read_obviously(path) -> tuple[np.ndarray, np.ndarray]:
    """A batch file by plain pickle, as the data set's page says: (n, 32, 32, 3) and labels."""
    with open(path, "rb") as file:
        content = pickle.load(file, encoding="bytes")
    return content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(content[b"labels"])


@pytest.fixture(scope="module")
def pickles(cifar_layouts):
    return cifar_layouts / "cifar-10-batches-py"


@pytest.mark.parametrize("layout", ["python", "binary", "tar.gz"])
def test_every_layout_gives_the_source_in_source_order(pickles, cifar_layouts, layout, tmp_path, command):
    source = {"python": pickles, "binary": cifar_layouts / "cifar-10-batches-bin",
              "tar.gz": tmp_path / "cifar-10-python.tar.gz"}[layout]
    if layout == "tar.gz":
        with tarfile.open(source, "w:gz", compresslevel=1) as archive:
            archive.add(pickles, "cifar-10-batches-py")
    status, out, _ = command(prepare.main, "cifar10", "--source", source, "--out", tmp_path / "c10")
    assert status == 0
    assert "50,000 images" in out
    for split, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
        shard_set = ShardSet(tmp_path / "c10" / split)
        assert len(shard_set) == ROWS * len(names)
        assert shard_set.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                                     "truck")
        for i, name in enumerate(names):
            images, labels = read_obviously(pickles / name)
            part = np.arange(i * ROWS, (i + 1) * ROWS)
            assert np.array_equal(shard_set.read(part), images)
            assert np.array_equal(shard_set.labels[part], labels)
    status, out, _ = command(verify.main, tmp_path / "c10")
    assert status == 0
    assert out.count("as written") == 2


@pytest.fixture(scope="module")
def hundred(tmp_path_factory, layouts_module):
    """CIFAR-100's pickles, of CIFAR-100's sizes, and its binaries with the same content."""
    folder = tmp_path_factory.mktemp("c100")
    python, binary = folder / "cifar-100-python", folder / "cifar-100-binary"
    python.mkdir()
    binary.mkdir()
    random = np.random.default_rng(0)
    names = {"fine": [f"fine_{i}" for i in range(100)], "coarse": [f"coarse_{i}" for i in range(20)]}
    for split, count in (("train", 50_000), ("test", 10_000)):
        rows = random.integers(0, 256, (count, 3072), np.uint8)
        fine = random.integers(0, 100, count)
        (python / split).write_bytes(layouts_module.pickled(
            fine_labels=layouts_module.integers(fine), coarse_labels=layouts_module.integers(fine // 5),
            data=layouts_module.array(rows)))
        labels = np.stack([fine // 5, fine], 1).astype(np.uint8)
        np.concatenate([labels, rows], 1).tofile(binary / f"{split}.bin")
    (python / "meta").write_bytes(layouts_module.pickled(
        fine_label_names=layouts_module.strings(names["fine"]),
        coarse_label_names=layouts_module.strings(names["coarse"])))
    for kind, words in names.items():
        (binary / f"{kind}_label_names.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.mark.parametrize("labels", ["fine", "coarse"])
@pytest.mark.parametrize("layout", ["python", "binary"])
def test_cifar_100(hundred, tmp_path, command, layout, labels):
    flags = ["--coarse"] if labels == "coarse" else []
    status, out, _ = command(prepare.main, "cifar100", "--source", hundred / f"cifar-100-{layout}", "--out",
                             tmp_path / "s", *flags)
    assert status == 0
    classes = 20 if flags else 100
    assert f"50,000 images of 32×32, {classes} classes" in out
    for split, count in (("train", 50_000), ("test", 10_000)):
        shard_set = ShardSet(tmp_path / "s" / split)
        with open(hundred / "cifar-100-python" / split, "rb") as file:
            content = pickle.load(file, encoding="bytes")
        some = np.array([0, 1, count // 2, count - 1])
        assert np.array_equal(shard_set.read(some), content[b"data"][some].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert shard_set.labels.tolist() == content[f"{labels}_labels".encode()]
        assert shard_set.classes == tuple(f"{labels}_{i}" for i in range(classes))
        assert shard_set.manifest.dataset == "cifar100"


def test_one_cifar_given_as_the_other(hundred, pickles, tmp_path, command):
    for name, source, other in (("cifar10", hundred / "cifar-100-python", "cifar100"),
                                ("cifar10", hundred / "cifar-100-binary", "cifar100"),
                                ("cifar100", pickles, "cifar10")):
        status, _, err = command(prepare.main, name, "--source", source, "--out", tmp_path / "s")
        assert status == 1
        assert len(err.splitlines()) == 1
        assert f"tools.prepare {other} reads it" in err


def test_verify_names_the_damaged_file(pickles, tmp_path, command):
    command(prepare.main, "cifar10", "--source", pickles, "--out", tmp_path / "c10")
    path = tmp_path / "c10" / "train" / "images-00001.npy"
    with open(path, "r+b") as file:
        file.seek(123_456)
        byte = file.read(1)
        file.seek(123_456)
        file.write(bytes([byte[0] ^ 255]))
    status, out, err = command(verify.main, tmp_path / "c10")
    assert status == 1
    assert str(path) in err
    assert "test: 10,000 images" in out
    path.unlink()
    status, _, err = command(verify.main, tmp_path / "c10")
    assert status == 1
    assert f"error: {path}: missing" in err


def small_batch(layouts_module, rows=ROWS, labels=None, **more) -> bytes:
    """A batch file as Python 2 wrote it, of blank images."""
    labels = np.zeros(rows, int) if labels is None else labels
    return layouts_module.pickled(labels=layouts_module.integers(labels),
                                  data=layouts_module.array(np.zeros((rows, 3072), np.uint8)), **more)


@pytest.fixture
def copy(pickles, tmp_path):
    """A copy of the pickles by hard links; replace a file by unlinking it first."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in pickles.iterdir():
        os.link(path, target / path.name)
    return target


def replace(path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def refused(command, source, tmp_path) -> str:
    """The one line that preparing ``source`` ends with; nothing is left behind."""
    out = tmp_path / "out"
    status, stdout, err = command(prepare.main, "cifar10", "--source", source, "--out", out)
    assert status == 1
    assert stdout == ""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "Traceback" not in err
    assert not out.exists()
    return lines[0]


def test_missing_file(copy, command, tmp_path):
    (copy / "data_batch_3").unlink()
    assert "data_batch_3: missing" in refused(command, copy, tmp_path)


@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
def test_truncated_file(copy, command, tmp_path, name):
    content = (copy / name).read_bytes()
    replace(copy / name, content[:len(content) // 2])
    assert f"{name}: not a readable CIFAR pickle" in refused(command, copy, tmp_path)


def test_wrong_content(copy, command, tmp_path, layouts_module):
    for content, message in (
            (small_batch(layouts_module, rows=99), "expected uint8"),
            (small_batch(layouts_module, labels=np.full(ROWS, 10)), "0 to 9 expected"),
            (small_batch(layouts_module, fine_labels=layouts_module.integers([1])), "this is CIFAR-100"),
            (pickle.dumps([1, 2]), "a dictionary expected"), (b"", "not a readable"),
            (pickle.dumps({"data": "x", "labels": []}), "data is str"),
            (pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), "labels": ["a"] * ROWS}), "labels are not")):
        replace(copy / "data_batch_2", content)
        line = refused(command, copy, tmp_path)
        assert message in line
        assert "data_batch_2" in line


class Runs:
    """A pickle that calls os.system when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(copy, command, tmp_path):
    marker = tmp_path / "ran"
    replace(copy / "data_batch_1", pickle.dumps(Runs(marker)))
    assert "system" in refused(command, copy, tmp_path)
    assert not marker.exists()


def test_wrong_folder_and_no_file(command, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cifar-10-batches-py" in refused(command, tmp_path / "empty", tmp_path)
    assert "not found" in refused(command, tmp_path / "nowhere", tmp_path)
    (tmp_path / "file").write_bytes(b"neither tar nor anything")
    assert "not a readable tar archive" in refused(command, tmp_path / "file", tmp_path)


def test_truncated_archive(pickles, command, tmp_path):
    with tarfile.open(tmp_path / "c10.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(pickles, "cifar-10-batches-py")
    content = (tmp_path / "c10.tar.gz").read_bytes()
    (tmp_path / "short.tar.gz").write_bytes(content[:len(content) // 2])
    assert "short.tar.gz" in refused(command, tmp_path / "short.tar.gz", tmp_path)


@pytest.mark.parametrize("name", ["middle", "checksum"])
def test_an_archive_with_a_wrong_bit(pickles, command, tmp_path, name):
    """Caught by gzip's checksum, which lies behind the end of the tar, if not before."""
    with tarfile.open(tmp_path / "c10.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(pickles, "cifar-10-batches-py")
    content = bytearray((tmp_path / "c10.tar.gz").read_bytes())
    content[len(content) // 2 if name == "middle" else -6] ^= 1
    (tmp_path / "bad.tar.gz").write_bytes(content)
    assert "bad.tar.gz: not a readable" in refused(command, tmp_path / "bad.tar.gz", tmp_path)


def test_incomplete_archive(command, tmp_path):
    with tarfile.open(tmp_path / "c10.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert "c10.tar.gz:data_batch_2: missing" in refused(command, tmp_path / "c10.tar.gz", tmp_path)


@pytest.mark.parametrize("length", [-1, 1])
def test_binary_of_another_size(cifar_layouts, command, tmp_path, length):
    target = tmp_path / "bin"
    shutil.copytree(cifar_layouts / "cifar-10-batches-bin", target)
    content = (target / "test_batch.bin").read_bytes()
    (target / "test_batch.bin").write_bytes(content[:-1] if length < 0 else content + b"x")
    assert "test_batch.bin: " in refused(command, target, tmp_path)


def test_usage(command, tmp_path, copy):
    status, _, err = command(prepare.main, "cifar10")
    assert status == 2
    assert "--source" in err
    status, _, err = command(prepare.main, "cifar11")
    assert status == 2
    assert len(err.splitlines()) == 1
    (tmp_path / "out" / "train").mkdir(parents=True)
    status, _, err = command(prepare.main, "cifar10", "--source", copy, "--out", tmp_path / "out")
    assert status == 2
    assert "--force" in err


@pytest.fixture
def small(monkeypatch):
    """A writer of data sets of three images a file in either layout, and what it writes: images and labels by file."""
    monkeypatch.setattr(cifar, "CIFAR10", with_(cifar.CIFAR10, images_per_file={"train": 3, "test": 3}))
    monkeypatch.setattr(cifar, "CIFAR100", with_(cifar.CIFAR100, images_per_file={"train": 3, "test": 3}))

    def write(folder, seed: int = 0, suffix: str = "", hundred: bool = False) -> np.ndarray:
        folder.mkdir(parents=True)
        names = ["train", "test"] if hundred else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        images = random_images(3 * len(names), 32, seed)
        for i, name in enumerate(names):
            rows = images[3 * i:3 * i + 3].transpose(0, 3, 1, 2).reshape(3, 3072)
            keys = ("coarse_labels", "fine_labels") if hundred else ("labels",)
            if suffix:
                leading = np.tile(np.arange(3, dtype=np.uint8)[:, None], (1, len(keys)))
                np.concatenate([leading, rows], 1).tofile(folder / f"{name}.bin")
            else:
                (folder / name).write_bytes(pickle.dumps({"data": rows} | {key: [0, 1, 2] for key in keys}, 2))
        kinds = {"fine_label_names": 100, "coarse_label_names": 20} if hundred else {"label_names": 10}
        if suffix:
            for kind, count in kinds.items():
                (folder / f"{kind if hundred else 'batches.meta'}.txt").write_text("\n".join(map(str, range(count))))
        else:
            (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(
                {kind: list(map(str, range(count))) for kind, count in kinds.items()}, 2))
        return images
    return write


def pack(folder, target, mode="gz"):
    with tarfile.open(target, f"w:{mode}") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)


def all_images(source) -> np.ndarray:
    return np.concatenate([images for split in source.splits for images, _ in split.batches()])


@pytest.mark.parametrize(("name", "suffix", "archive"), [
    ("cifar-10-batches-py", "", None), ("cifar-10-batches-bin", ".bin", None), ("anything", "", None),
    ("anything", ".bin", None), ("cifar-10-batches-py", "", "cifar-10-python.tar.gz"),
    ("cifar-10-batches-bin", ".bin", "cifar-10-binary.tar.gz"), ("cifar-10-batches-py", "", "cifar-10-python.tar")])
def test_the_folder_above(tmp_path, small, name, suffix, archive):
    images = small(tmp_path / "in" / name, 0, suffix)
    small(tmp_path / "in" / "cifar-100-python", 1, hundred=True)
    (tmp_path / "in" / "notes").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("x")
    if archive:
        pack(tmp_path / "in" / name, tmp_path / "in" / archive, "gz" if archive.endswith("gz") else "")
    source = cifar.read10(tmp_path / "in")
    assert np.array_equal(all_images(source), images)
    assert source.origin["path"] == str((tmp_path / "in" / (archive or name)).resolve())
    assert source.report.notes == [f"{tmp_path / 'in'}: {archive or name} is read"]


@pytest.mark.parametrize(("suffix", "name"), [("", "cifar-100-python"), (".bin", "cifar-100-binary")])
def test_the_folder_above_cifar_100(tmp_path, small, suffix, name):
    small(tmp_path / "cifar-10-batches-py")
    images = small(tmp_path / name, 3, suffix, hundred=True)
    assert np.array_equal(all_images(cifar.read100(tmp_path)), images)
    pack(tmp_path / name, tmp_path / f"{name}.tar.gz")
    assert np.array_equal(all_images(cifar.read100(tmp_path)), images)


def test_which_of_several_is_read(tmp_path, small):
    images = {name: small(tmp_path / name, seed) for seed, name in enumerate(
        ("cifar-10-batches-py", "copy", "other", "packed"))}
    pack(tmp_path / "packed", tmp_path / "cifar-10-python.tar.gz")
    assert np.array_equal(all_images(cifar.read10(tmp_path)), images["cifar-10-batches-py"])
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match="CIFAR-10 found in copy, other, expected a single folder; --source names it"):
        cifar.read10(tmp_path)
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert np.array_equal(all_images(cifar.read10(tmp_path)), images["copy"])
    shutil.rmtree(tmp_path / "copy")
    assert np.array_equal(all_images(cifar.read10(tmp_path)), images["packed"])


def test_what_is_wrong_one_level_down_is_said_of_that(tmp_path, small):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(DataError, match=f"^{folder}: no CIFAR-10 here; expected cifar-10-batches-py"):
        cifar.read10(tmp_path)
    folder.rmdir()
    with pytest.raises(DataError, match=f"^{tmp_path}: no CIFAR-10 here; expected cifar-10-batches-py"):
        cifar.read10(tmp_path)
    small(folder)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match=f"^{folder}/data_batch_2: missing"):
        cifar.read10(tmp_path)
    (folder / "data_batch_2").write_bytes(b"no pickle")
    with pytest.raises(DataError, match=f"^{folder}/data_batch_2: not a readable CIFAR pickle"):
        all_images(cifar.read10(tmp_path))
    shutil.rmtree(folder)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=rf"^{tmp_path}/cifar-10-python\.tar\.gz: not a readable tar archive"):
        cifar.read10(tmp_path)


@pytest.mark.parametrize(("data", "found"), [
    (np.zeros((3, 3072), np.int16), "int16"), (np.zeros((3, 3072)), "float64"), (np.zeros((3, 3072), bool), "bool"),
    (np.zeros((3, 3072), np.uint8).T, r"uint8 \(3072, 3\)")])
def test_pixels_of_another_kind(tmp_path, small, data, found):
    small(tmp_path / "in")
    (tmp_path / "in" / "data_batch_1").write_bytes(pickle.dumps({"data": data, "labels": [0, 1, 2]}, 2))
    with pytest.raises(DataError, match=rf"data_batch_1: data is {found}.*expected uint8 \(3, 3072\)"):
        all_images(cifar.read10(tmp_path / "in"))
