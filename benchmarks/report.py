"""What every measurement says about itself, and how figures of several rounds are put together."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DRIVER = Path("/proc/driver/nvidia/version")  # Linux alone has it


def conditions(packages: Sequence[str], loads: Sequence[float]) -> list[str]:
    """Lines on the command, the machine and the versions.

    Args:
        loads: load averages over one minute, one for each round.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not known"
    return [
        f"- Command: `{command}`",
        f"- Machine: {_processor()}, {os.cpu_count()} cores, {_memory()} of memory, {platform.system()}",
        *([f"- GPU: {_gpu()}"] if "torch" in packages and _gpu() else []),
        f"- Versions: Python {platform.python_version()}, {versions}",
        f"- Load average before each round: {load}",
    ]


def load_average() -> list[float]:
    """That over one minute, where the system tells it."""
    return [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float], digits: int = 2) -> str:
    """Median and range of the quotients, each of one round."""
    return spread([a / b for a, b in zip(above, below, strict=True)], digits)


def save(name: str, lines: Sequence[str]) -> None:
    """Prints the report, and writes it into `results/`."""
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown size"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def _gpu() -> str:
    """That which trainers take, with the versions of what stands below torch; "" where there is none."""
    import torch  # here, as some measurements do without it

    if not torch.cuda.is_available():
        return ""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    words = DRIVER.read_text() if DRIVER.exists() else ""
    driver = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", words)
    return (
        f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB of memory, driver "
        f"{driver[0] if driver else 'unknown'}, CUDA {torch.version.cuda}"
    )
