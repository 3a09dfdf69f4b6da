"""The machine: its facts, its load, the memory that a computation takes, and its rates of matmul and copy.

FLOPs over the rate of matmul are the least seconds that a computation can take.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

# By the type of the device: a GPU's rate is reached with larger ones.
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}  # bytes
REPETITIONS = 10
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DRIVER = Path("/proc/driver/nvidia/version")  # Linux alone has these
PROCESS = Path("/proc/self")


# --- facts ------------------------------------------------------------------------------------------------


def conditions(packages: Sequence[str], loads: Sequence[float]) -> list[str]:
    """Lines on the command, the machine, the versions, and the load averages before the rounds."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not known"
    return [
        f"- Command: `{command}`",
        f"- Machine: {processor()}, {os.cpu_count()} cores, {memory()} of memory, {platform.system()}",
        *([f"- GPU: {gpu()}"] if torch.cuda.is_available() else []),
        f"- Versions: Python {platform.python_version()}, {versions}",
        f"- Load average before each round: {load}",
    ]


def load_average() -> list[float]:
    """That over one minute; nothing where the system does not tell it."""
    return [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown size"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def gpu() -> str:
    size = torch.cuda.get_device_properties(0).total_memory / 2**30
    driver = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER.read_text() if DRIVER.exists() else "")
    return (
        f"{torch.cuda.get_device_name(0)}, {size:.0f} GiB of memory, driver "
        f"{driver[0] if driver else 'unknown'}, CUDA {torch.version.cuda}"
    )


def default_device() -> torch.device:
    """The device that trainers take, unless told otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- memory -----------------------------------------------------------------------------------------------


def peak_memory(compute: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `compute` takes at its peak above what was taken before; None where the system hides it.

    On a GPU what torch reserves: what a CUDA graph keeps for its replays is not allocated, but taken. On a
    CPU the resident set of the process.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        compute()
        return torch.cuda.max_memory_reserved(device) - before
    if not _reset_peak():
        compute()
        return None
    resident = _resident("VmRSS")
    compute()
    return max(0, _resident("VmHWM") - resident)


def memory_source(device: torch.device) -> str:
    """How `peak_memory` measures."""
    if device.type == "cuda":
        return "what torch reserves at the peak above what was taken before, CUDA graphs included"
    if _reset_peak():
        return "growth of the process's resident set (VmHWM)"
    return "unknown: this system cannot reset the peak of a process (/proc/self/clear_refs)"


def _reset_peak() -> bool:
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


# --- rates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Of a GPU, or of a CPU with torch's present number of threads, each the best of several.

    Attributes:
        matmul: FLOPs per second, in numbers of type `dtype`.
        bandwidth: bytes per second that a copy reads and writes.
        device: its type.
    """

    matmul: float
    bandwidth: float
    dtype: str
    device: str = "cpu"

    def floor(self, flops: float) -> float:
        """Seconds."""
        return flops / self.matmul

    def share(self, flops: float, seconds: float) -> float:
        """Of the rate of matmul, in percent."""
        return 100 * self.floor(flops) / seconds

    def line(self) -> str:
        side, copied = SIDE[self.device], COPIED[self.device]
        threads = f"{torch.get_num_threads()} threads" if self.device == "cpu" else "on the GPU"
        dtype = self.dtype
        if self.device == "cuda" and dtype == "float32":
            tf32 = "off" if torch.get_float32_matmul_precision() == "highest" else "on"
            dtype += f", TF32 {tf32}"
        return (
            f"- Floor: {self.matmul / 1e9:,.0f} GFLOP/s of matmul ({side} × {side}, {dtype}) and "
            f"{self.bandwidth / 1e9:,.1f} GB/s of a copy ({copied / 2**20:,.0f} MiB, read and written), "
            f"{threads}, best of {REPETITIONS}"
        )


def measure_rates(precision: str = "fp32") -> Rates:
    """The rates of the device that trainers take, in the type that trainers of this `precision` use."""
    device = default_device()
    dtype = TYPES.get(precision, torch.float16 if device.type == "cuda" else torch.bfloat16)
    side = SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return Rates(
        2 * side**3 / min(_best(matmul, a=a, b=b) for matmul in matmuls(a, b)),
        2 * source.nbytes / _best("target.copy_(source)", target=target, source=source),
        str(dtype).removeprefix("torch."),
        device.type,
    )


def matmuls(a: torch.Tensor, b: torch.Tensor) -> list[str]:
    """Statements of torch's ways to multiply: its own choice, and oneDNN's where it takes them."""
    found = ["a @ b"]
    if a.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found.append("torch.ops.mkldnn._linear_pointwise(a, b, None, 'none', [], '')")
    return found


def _best(statement: str, **tensors: torch.Tensor) -> float:
    """Seconds."""
    timer = Timer(statement, globals={**tensors, "torch": torch}, num_threads=torch.get_num_threads())
    timer.timeit(2)  # a GPU's clock rises only when there is work
    return min(timer.timeit(1).median for _ in range(REPETITIONS))
