"""The stage ``env`` of benchmarks.device: versions, and what the machine itself can do. Needs no DALI."""

import subprocess
import time
from functools import partial

import torch

from benchmarks.device_setup import Report, Setup, pace, seconds_of
from benchmarks.measure import machine
from sesemi.device import cpu_cores
from sesemi.runlog import versions

QUERY = "name,driver_version,memory.total,clocks.sm,pstate"


def env(setup: Setup, report: Report) -> None:
    """Versions and devices; rates of copies and of matrix products, the cost of a launch; whether DALI works."""
    report.note("versions", {**versions("triton", "scipy", "scikit-learn", "pytest"),
                             "cudnn": torch.backends.cudnn.version()})
    if not setup.dry:
        report.attempt("nvidia-smi", _card, report)
        report.attempt("properties", _properties, setup, report)
    report.note("CPU", f"{machine(setup.device)['cpu']}, {cpu_cores()} cores")
    for part in (_copies, _product, _launches, _dali):
        report.attempt(part.__name__.strip("_"), part, setup, report)


def _card(report: Report) -> None:
    done = subprocess.run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True,
                          text=True, check=True)
    report.note("nvidia-smi", done.stdout.strip())


def _properties(setup: Setup, report: Report) -> None:
    found = torch.cuda.get_device_properties(setup.device)
    report.note("GPU", f"{found.name}, {found.multi_processor_count} SMs, {found.total_memory / 2**30:.1f} GiB, "
                       f"compute {found.major}.{found.minor}")


def _copies(setup: Setup, report: Report) -> None:
    device = setup.device
    source = torch.randint(0, 255, (2**22 if setup.dry else 2**30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device)
    report.note("copy on the device, TB/s read + written", round(2 * len(source) / seconds / 1e12, 3))
    host = torch.randint(0, 255, (2**22 if setup.dry else 2**27,), dtype=torch.uint8)

    def upload(kind: str, pixels: torch.Tensor) -> None:
        seconds = seconds_of(lambda: pixels.to(device, non_blocking=pixels.is_pinned()), device, repeats=5, warm=1)
        report.note(f"upload, {kind}, GB/s", round(len(pixels) / seconds / 1e9, 2))
    if not setup.dry:
        upload("pageable", host)
        upload("pinned", host.pin_memory())


def _product(setup: Setup, report: Report) -> None:
    size = 256 if setup.dry else 8192
    for dtype in (torch.bfloat16, torch.float32):
        one, other = (torch.randn(size, size, device=setup.device, dtype=dtype) for _ in range(2))
        seconds = seconds_of(partial(torch.matmul, one, other), setup.device)
        report.note(f"matrix product {size}, {str(dtype)[6:]}, TFLOP/s", round(2 * size**3 / seconds / 1e12, 1))
    report.note("TF32 in matrix products, in convolutions",
                [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32])


def _launches(setup: Setup, report: Report) -> None:
    x = torch.zeros(1024, device=setup.device)
    found = pace(lambda: x.add_(1), setup.device, 200 if setup.dry else 20_000, 100)
    report.note("a small operation, µs on the host, in all", [round(1e3 * one, 2) for one in found])
    if setup.dry:
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(400):
            x.add_(1)
    found = pace(graph.replay, setup.device, 200)
    report.note("a graph of 400 small kernels, µs on the host, in all", [round(1e3 * one, 1) for one in found])


def _dali(setup: Setup, report: Report) -> None:
    try:
        from nvidia.dali import Pipeline, fn, types
    except ImportError:
        report.note("DALI", "not installed")
        return
    on = "cpu" if setup.dry else "gpu"
    pipeline = Pipeline(batch_size=4, num_threads=1, device_id=setup.device.index, seed=1)
    with pipeline:
        zeros = types.Constant([0.0] * 12, shape=(2, 2, 3), device=on)
        pipeline.set_outputs(fn.random.normal(zeros, stddev=1.0, seed=1))
    start = time.perf_counter()
    pipeline.build()
    values = torch.from_dlpack(pipeline.run()[0].as_tensor())
    seconds = time.perf_counter() - start
    report.note("DALI draws noise", f"on {values.device}, first run {seconds:.2f} s", values.std() > 0)
