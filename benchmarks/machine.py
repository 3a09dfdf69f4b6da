"""What the machine can do at best: how fast it multiplies matrices, and how fast it moves memory.

Operations over the first are the floor of a computation's seconds; where much is read and little computed, it
is bytes over the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experiments.costs.machine import wait_for

SIDE = 2048  # of the square matrices
COPIED = 256 * 2**20  # bytes
REPETITIONS = 10
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """Rates with torch's present number of threads, each the best of several.

    Attributes:
        matmul: operations a second, a multiply-add being two, in numbers of type `dtype`.
        bandwidth: bytes a second that a copy reads and writes.
    """

    matmul: float
    bandwidth: float
    dtype: str

    def floor(self, operations: float) -> float:
        """Seconds."""
        return operations / self.matmul

    def share(self, operations: float, seconds: float) -> float:
        """Of the matrix rate, in percent: 100 % is the floor."""
        return 100 * self.floor(operations) / seconds

    def line(self) -> str:
        return (
            f"- Floor: {self.matmul / 1e9:,.0f} GFLOP/s of matrices ({SIDE} × {SIDE}, {self.dtype}) and "
            f"{self.bandwidth / 1e9:,.1f} GB/s of a copy ({COPIED / 2**20:,.0f} MiB, read and written), "
            f"{torch.get_num_threads()} threads, best of {REPETITIONS}"
        )


def measure_machine(precision: str = "fp32") -> Machine:
    """The rates on the device that trainers take, in the type that one of this `precision` computes in."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = TYPES.get(precision, torch.float16 if device.type == "cuda" else torch.bfloat16)
    one, other = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    product = torch.empty_like(one)
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return Machine(
        2 * SIDE**3 / _best(lambda: torch.mm(one, other, out=product), device),
        2 * source.nbytes / _best(lambda: target.copy_(source), device),
        str(dtype).removeprefix("torch."),
    )


def _best(compute: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    compute()
    taken = []
    for _ in range(REPETITIONS):
        wait_for(device)
        start = time.perf_counter()
        compute()
        wait_for(device)
        taken.append(time.perf_counter() - start)
    return min(taken)
