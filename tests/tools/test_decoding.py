"""Many images at once: in order, by threads and by processes, whatever one of them meets."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import random_images
from tools.sources import decoding
from tools.sources.decoding import Item, decoded
from tools.sources.images import load_image
from tools.sources.report import Report

ROOT = Path(__file__).parents[2]


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def processes(monkeypatch):
    """Chunks of three images, after two chunks by processes; says how many were started."""
    started = []
    real = decoding.Process.__init__

    def init(self):
        real(self)
        started.append(self._process)
    monkeypatch.setattr(decoding.Process, "__init__", init)
    monkeypatch.setattr(decoding, "CHUNK", 3)
    monkeypatch.setattr(decoding, "BY_THREADS", 6)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    return started


def test_in_order_by_threads_and_processes(processes, tmp_path):
    images = random_images(40, 16)
    items = []
    for number, image in enumerate(images):  # files and contents alike
        content = png(image)
        (tmp_path / f"{number}.png").write_bytes(content)
        items.append(Item(str(number), tmp_path / f"{number}.png" if number % 2 else content, number % 7))
    found = list(decoded(items, 8, Report()))
    assert len(processes) == 2
    assert all(process.returncode == 0 for process in processes)
    expected = [load_image(png(image), 8) for image in images]
    assert np.array_equal(np.concatenate([batch for batch, _ in found]), expected)
    assert np.concatenate([labels for _, labels in found]).tolist() == [number % 7 for number in range(40)]


def test_few_images_start_no_process(processes):
    assert len(list(decoded([Item("x", png(random_images(1, 16)[0]), None)] * 5, 8, Report()))) == 2
    assert not processes


def test_what_processes_meet_is_in_the_report(processes, tmp_path):
    """Damaged images, 16 bits, further frames, and an image of many pixels, which this process decodes."""
    content = png(random_images(1, 16)[0])
    deep, frames, large = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((9, 9), 5000, np.uint16)).save(deep, "PNG")
    Image.new("RGB", (9, 9)).save(frames, "GIF", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    Image.new("L", (4200, 4200), 77).save(large, "PNG", compress_level=1)
    odd = {12: b"x", 13: deep.getvalue(), 14: frames.getvalue(), 15: large.getvalue(), 16: tmp_path / "gone.png"}
    report = Report(skip_damaged=True)
    found = list(decoded([Item(f"n{number}", odd.get(number, content), number) for number in range(20)], 8, report))
    assert np.concatenate([labels for _, labels in found]).tolist() == [n for n in range(20) if n not in (12, 16)]
    assert (np.concatenate([batch for batch, _ in found])[14] == 77).all()
    assert report.as_dict()["damaged"]["names"] == [
        "n12 (no image that is read here; it begins with b'x')", "n16 (No such file or directory)"]
    assert report.as_dict()["frames"]["frames, pages or previews behind the first"]["names"] == ["n14"]
    assert any(line.startswith("dark: the brightest pixel of 1 image of 16 bits is 5,000") for line in report.lines())


def test_few_contents_are_held(processes, monkeypatch):
    """Of what is in memory until it is decoded, no more than the limit and one more."""
    monkeypatch.setattr(decoding, "MAX_MEMBER_BYTES", 4000)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(decoding, "CHUNK", 100)
    content = png(random_images(1, 16)[0])
    assert 800 < len(content) < 1000
    taken, held = 0, []

    def items():
        nonlocal taken
        for number in range(60):
            taken += 1
            yield Item("x", content, number)
    done = 0
    for batch, _ in decoded(items(), 8, Report()):
        held.append(taken - done)
        done += len(batch)
    assert done == 60
    assert max(held) * len(content) <= 4000 + 2 * 1500 + len(content)


def test_a_process_that_ends_is_said(processes):
    def items():
        for number in range(300):
            if number == 150:
                for process in processes:
                    process.kill()
            yield Item("x", png(random_images(1, 16)[0]), None)
    with pytest.raises(OSError, match="a process that decodes images ended with status -9"):
        list(decoded(items(), 8, Report()))


def test_what_is_no_longer_read_leaves_no_process(processes):
    batches = decoded((Item("x", png(random_images(1, 16)[0]), None) for _ in range(300)), 8, Report())
    for _ in range(5):
        next(batches)
    assert len(processes) == 2
    batches.close()
    assert all(process.returncode is not None for process in processes)


@pytest.mark.parametrize(("number", "status", "wait"), [(signal.SIGINT, 130, 0), (signal.SIGINT, 130, 0.2),
                                                        (signal.SIGKILL, -9, 0.5)])
def test_processes_end_with_the_command(tmp_path, number, status, wait):
    """A terminal's Ctrl-C, also while they start, and a kill."""
    (tmp_path / "p").mkdir()
    for i in range(3000):
        (tmp_path / "p" / f"{i}.png").hardlink_to(tmp_path / "p" / "0.png") if i else \
            (tmp_path / "p" / "0.png").write_bytes(png(random_images(1, 400)[0]))
    command = subprocess.Popen([sys.executable, "-m", "tools.prepare", "folder", "--unlabeled", "--source",
                                tmp_path / "p", "--out", tmp_path / "s"], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    children, started = [], time.monotonic()
    while not children and time.monotonic() < started + 60:
        time.sleep(0.05)
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        children += [child for task in Path(f"/proc/{command.pid}/task").iterdir()
                     for child in (task / "children").read_text().split()]
    time.sleep(wait)
    (os.killpg if number == signal.SIGINT else os.kill)(command.pid, number)
    _, err = command.communicate(timeout=60)
    assert command.returncode == status
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]
              for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline
    assert children
