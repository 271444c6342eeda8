"""The machine: which device a run is on, what it is called, and which precision suits it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.common.errors import UsageError, reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the names in sesemi.config


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a network computes in ``dtype``; without effect for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def check_compiler(device: torch.device) -> None:
    """Try torch.compile on one operation; UsageError where it lacks a compiler, for which its own message is a page."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # of any kind: missing compilers, headers, GPUs that are too old
        raise UsageError(f"--compile: torch.compile does not work here ({reason(error)}); install a C++ compiler and "
                         f"Python's headers (Debian: build-essential, python3-dev), or leave it out") from None


def parse_device(gpu: str | None) -> str | None:
    """``--gpu``'s value as a device: None (left out) stays open, ``none`` is the CPU, a number that GPU.

    Raises:
        UsageError: not a number, or no such GPU on this machine.
    """
    if gpu is None:
        return None
    if gpu.lower() in {"none", "cpu"}:
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpu.isdecimal() or int(gpu) >= count:
        there = f"0 to {count - 1}" if count > 1 else "0" if count else "no GPU here"
        raise UsageError(f"--gpu: found {gpu!r}, expected a GPU's number ({there}), or none for the CPU")
    return f"cuda:{int(gpu)}"


@contextmanager
def compiling(network: str) -> Iterator[None]:
    """While inside, what torch.compile raises over a network that it cannot make one graph of is a UsageError."""
    from torch._dynamo.exc import TorchDynamoException
    try:
        yield
    except TorchDynamoException as error:
        raise UsageError(f"--compile: torch.compile cannot make one graph of {network} ({reason(error)}); leave it "
                         f"out") from None


def default_precision(device: torch.device) -> str:
    """bfloat16 where the GPU has it, else float16 with gradient scaling; float32 on a CPU."""
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def device_name(device: torch.device) -> str:
    """For people and result files: the GPU's product name, or the number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {cpu_cores()} cores"


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
