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
from prompted_clip.kernels import linear

# By the type of the device: a GPU's rate is reached with larger ones.
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}  # bytes
REPETITIONS = 10
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU, or of a CPU with torch's present number of threads, each the best of several.

    Attributes:
        matmul: operations a second, a multiply-add being two, in numbers of type `dtype`.
        bandwidth: bytes a second that a copy reads and writes.
        device: its type.
    """

    matmul: float
    bandwidth: float
    dtype: str
    device: str = "cpu"

    def floor(self, operations: float) -> float:
        """Seconds."""
        return operations / self.matmul

    def share(self, operations: float, seconds: float) -> float:
        """Of the matrix rate, in percent: 100 % is the floor."""
        return 100 * self.floor(operations) / seconds

    def line(self) -> str:
        side, copied = SIDE[self.device], COPIED[self.device]
        threads = f"{torch.get_num_threads()} threads" if self.device == "cpu" else "on the GPU"
        return (
            f"- Floor: {self.matmul / 1e9:,.0f} GFLOP/s of matrices ({side} × {side}, {self.numbers()}) and "
            f"{self.bandwidth / 1e9:,.1f} GB/s of a copy ({copied / 2**20:,.0f} MiB, read and written), "
            f"{threads}, best of {REPETITIONS}"
        )

    def numbers(self) -> str:
        """The type of the numbers; for a GPU's float32 also whether TF32 stands in for it."""
        if self.device == "cpu" or self.dtype != "float32":
            return self.dtype
        return f"float32, TF32 {'off' if torch.get_float32_matmul_precision() == 'highest' else 'on'}"


def trainers_device() -> torch.device:
    """The device that trainers take, unless told otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure_machine(precision: str = "fp32") -> Machine:
    """The rates on the device that trainers take, in the type that one of this `precision` computes in."""
    device = trainers_device()
    dtype = TYPES.get(precision, torch.float16 if device.type == "cuda" else torch.bfloat16)
    side = SIDE[device.type]
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    product = torch.empty_like(one)
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    by_torch = _best(lambda: torch.mm(one, other, out=product), device)
    by_ours = _best(lambda: linear(one, other), device)  # as blocks are computed
    return Machine(
        2 * side**3 / min(by_torch, by_ours),
        2 * source.nbytes / _best(lambda: target.copy_(source), device),
        str(dtype).removeprefix("torch."),
        device.type,
    )


def _best(compute: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    for _ in range(2):  # a GPU's clock rises only when there is work
        compute()
    taken = []
    for _ in range(REPETITIONS):
        wait_for(device)
        start = time.perf_counter()
        compute()
        wait_for(device)
        taken.append(time.perf_counter() - start)
    return min(taken)
