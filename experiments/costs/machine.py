"""What a computation costs on this machine: its seconds, and its peak of memory."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

LEAST_REPETITIONS = 3
MOST_REPETITIONS = 100
PROCESS = Path("/proc/self")  # Linux alone has it


class Timing(NamedTuple):
    """One repetition: the median, and the range in seconds."""

    seconds: float
    least: float
    most: float
    repetitions: int


def time_of(compute: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """Repeats `compute` for that many seconds, and 3 times at least. Warming up is the caller's."""
    taken: list[float] = []
    while len(taken) < LEAST_REPETITIONS or (sum(taken) < seconds and len(taken) < MOST_REPETITIONS):
        wait_for(device)
        start = time.perf_counter()
        compute()
        wait_for(device)
        taken.append(time.perf_counter() - start)
    return Timing(median(taken), min(taken), max(taken), len(taken))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(compute: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `compute` takes at its peak, above what was taken before; None where nobody can tell.

    On a GPU what torch allocates, on a CPU the resident set of the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        return torch.cuda.max_memory_allocated(device) - before
    if not _forget_peak():
        compute()
        return None
    resident = _resident("VmRSS")
    compute()
    return max(0, _resident("VmHWM") - resident)


def memory_source(device: torch.device) -> str:
    """How `peak_memory` knows, for the reader of its numbers."""
    if device.type == "cuda":
        return "torch's peak of allocated GPU memory above the model"
    if _forget_peak():
        return "growth of the process's resident set (VmHWM)"
    return "unknown: this system cannot reset the peak of a process (/proc/self/clear_refs)"


def _forget_peak() -> bool:
    """Gives freed memory back to the system, and sets the peak to what is left; False if that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the step would reuse it, and the set would not grow
        (PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return True


def _resident(entry: str) -> int:
    """`VmRSS`, the resident set now, or `VmHWM`, its peak; in bytes."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


# --- the machine ------------------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"CPU: {model}"


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def is_busy(load: float | None) -> bool:
    """Whether others use so much of the machine that times are not to be trusted."""
    return load is not None and load > max(0.5, (os.cpu_count() or 1) / 8)
