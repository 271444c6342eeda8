"""The stage ``profile`` of benchmarks.device: where the time of fed training steps goes."""

import collections
import json
import statistics
import tempfile
from contextlib import closing
from pathlib import Path

from torch import profiler

from benchmarks.device_parts import new_trainer, open_loader
from benchmarks.device_setup import Report, Setup
from benchmarks.measure import synchronize

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
RUNTIME = ("cuda_runtime", "cuda_driver")
WAITS = ("cudaMemcpy", "cudaMalloc", "cudaFree", "cudaHostAlloc")  # beside all that synchronises
LONG_GAP = 20  # µs
SHOWN = 40  # kernels, those that take most


def profile(setup: Setup, report: Report) -> None:
    """Fed steps as training makes them: their kernels, the gaps between those, and the waits of the host."""
    network, steps = setup.network or ("wrn-10-1" if setup.dry else "convnet"), 3 if setup.dry else 30
    with closing(open_loader(setup)) as source:
        trainer = new_trainer(setup, network, cuda_graph=True, settle=source.settle)
        for _ in range(2 * steps):
            trainer.train_step(next(source))
        synchronize(setup.device)
        activities = [profiler.ProfilerActivity.CPU] + ([] if setup.dry else [profiler.ProfilerActivity.CUDA])
        with profiler.profile(activities=activities) as profiled:
            for _ in range(steps):
                with profiler.record_function("batch"):
                    batch = next(source)
                with profiler.record_function("step"):
                    trainer.train_step(batch)
            synchronize(setup.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
    _host(report, network, steps, events)
    on_gpu = [event for event in events if event.get("cat") in ON_GPU]
    if on_gpu:
        _print_groups(f"{network}, {steps} fed steps: kernels", steps, on_gpu)
        _gpu(report, network, steps, on_gpu)
    else:
        operations = [event for event in events if event.get("cat") == "cpu_op"]
        _print_groups(f"{network}, {steps} fed steps: operations on the CPU", steps, operations)
        report.note(f"{network}: operations a step", round(len(operations) / steps, 1))


def _print_groups(title: str, steps: int, events: list[dict]) -> None:
    groups = collections.defaultdict(list)
    for event in events:
        groups[event["name"][:110]].append(event["dur"])
    total = sum(event["dur"] for event in events)
    print(f"{title} by time; ms a step, share, number a step, name")
    for name, durations in sorted(groups.items(), key=lambda group: -sum(group[1]))[:SHOWN]:
        taken = sum(durations)
        print(f"{taken / steps / 1e3:9.4f} {taken / total:6.1%} {len(durations) / steps:7.1f}  {name}")


def _host(report: Report, network: str, steps: int, events: list[dict]) -> None:
    """What the host calls and waits for."""
    calls = collections.Counter(event["name"] for event in events if event.get("cat") in RUNTIME)
    calls = {name: round(number / steps, 2) for name, number in calls.most_common()}
    print("calls of the CUDA runtime a step:", calls)
    report.note(f"{network}: waits and allocations of the host a step",
                {name: number for name, number in calls.items() if "Synchronize" in name or name in WAITS})
    for name in ("batch", "step"):
        spans = [event["dur"] for event in events if (event.get("cat"), event["name"]) == ("user_annotation", name)]
        report.note(f"{network}: host, ms a {name}: median, largest",
                    [round(statistics.median(spans) / 1e3, 3), round(max(spans) / 1e3, 3)])


def _gpu(report: Report, network: str, steps: int, events: list[dict]) -> None:
    """How busy the GPU is."""
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events]
    busy, gaps = union(spans)
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    long = [gap for gap in gaps if gap > LONG_GAP]
    streams = collections.Counter()
    for event in events:
        streams[str(event.get("args", {}).get("stream"))] += event["dur"]

    def a_step(microseconds: float) -> float:
        return round(microseconds / steps / 1e3, 3)
    report.note(f"{network}: kernels and copies a step", round(len(events) / steps, 1))
    report.note(f"{network}: ms a step, busy ms, busy share (profiled: slower than usual)",
                [a_step(wall), a_step(busy), round(busy / wall, 3)])
    report.note(f"{network}: gaps between kernels a step: number, ms; of those over {LONG_GAP} µs: number, ms",
                [round(len(gaps) / steps, 1), a_step(sum(gaps)), round(len(long) / steps, 2), a_step(sum(long))])
    report.note(f"{network}: busy ms a step by stream",
                {name: a_step(duration) for name, duration in streams.most_common()})


def union(spans: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """The length that spans (start, end) cover together, and the gaps between its parts."""
    covered, gaps, reached = 0.0, [], None
    for start, end in sorted(spans):
        if reached is not None and start > reached:
            gaps.append(start - reached)
        begin = start if reached is None else max(start, reached)
        covered += max(0.0, end - begin)
        reached = end if reached is None else max(reached, end)
    return covered, gaps
