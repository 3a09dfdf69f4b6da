"""Where runs find room: the GPUs that can be seen, each for one run or for several, or the CPU's cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prompted_clip.errors import UserError

GIB = 2**30
CONTEXT = 1 * GIB  # what CUDA itself takes of a GPU, for each process
HEADROOM = 1.2  # of the memory that a run of the same kind was measured to take
USABLE = 0.95  # of a GPU's memory


@dataclass(frozen=True)
class Place:
    """Room that a run has taken.

    Attributes:
        gpus: numbers of the GPUs; empty on the CPU.
        need: bytes of each that it is expected to take.
        environment: for its process.
    """

    gpus: tuple[int, ...]
    need: float
    environment: Mapping[str, str] = field(hash=False, default_factory=dict)


class Devices:
    """Hands out room for runs.

    Args:
        gpu_memory: bytes of each GPU; none for a CPU.
        per_gpu: how many runs share a GPU; 0 for as many as its memory has room for, as measured: a kind of
            run that was not measured yet has a GPU for itself.
        gpus_per_run: how many GPUs a run takes (`torchrun`).
        workers: how many runs there are at once on a CPU.
        names: of the GPUs, for CUDA_VISIBLE_DEVICES.
    """

    def __init__(
        self,
        gpu_memory: Sequence[float] = (),
        per_gpu: int = 1,
        gpus_per_run: int = 1,
        workers: int = 1,
        names: Sequence[str] = (),
    ) -> None:
        if gpu_memory and gpus_per_run > len(gpu_memory):
            raise UserError(f"--gpus-per-job is {gpus_per_run}; there are {len(gpu_memory)} GPUs.")
        self.gpu_memory = list(gpu_memory)
        self.per_gpu = per_gpu
        self.gpus_per_run = gpus_per_run
        self.workers = workers
        self.names = list(names) or [str(number) for number in range(len(gpu_memory))]
        self.taken: list[Place] = []
        self.measured: dict[tuple, float] = {}  # bytes by kind of run

    @property
    def most(self) -> int:
        """How many runs there are at once, as far as it is known before."""
        if not self.gpu_memory:
            return self.workers
        return max(1, len(self.gpu_memory) * max(1, self.per_gpu) // self.gpus_per_run)

    def take(self, kind: tuple) -> Place | None:
        """Room for a run of this kind; None if there is none now."""
        if not self.gpu_memory:
            if len(self.taken) >= self.workers:
                return None
            environment = {}
            if self.workers > 1 and "OMP_NUM_THREADS" not in os.environ:  # a single run decides by itself
                environment["OMP_NUM_THREADS"] = str(max(1, cores() // self.workers // self.gpus_per_run))
            return self._place((), 0.0, environment)
        free = [gpu for gpu in self._emptiest_first() if self._has_room(gpu, kind)]
        if len(free) < self.gpus_per_run:
            return None
        gpus = tuple(sorted(free[: self.gpus_per_run]))
        visible = ",".join(self.names[gpu] for gpu in gpus)
        return self._place(gpus, self._need(gpus[0], kind), {"CUDA_VISIBLE_DEVICES": visible})

    def free(self, place: Place) -> None:
        self.taken.remove(place)

    def learn(self, kind: tuple, result: Mapping[str, Any]) -> None:
        """Remembers what a finished run took of a GPU."""
        peak = result.get("peak_memory_bytes", {}).get("device")
        if peak:
            need = peak * HEADROOM + CONTEXT
            self.measured[kind] = max(need, self.measured.get(kind, 0.0))

    def _place(self, gpus: tuple[int, ...], need: float, environment: Mapping[str, str]) -> Place:
        self.taken.append(Place(gpus, need, environment))
        return self.taken[-1]

    def _on(self, gpu: int) -> list[Place]:
        return [place for place in self.taken if gpu in place.gpus]

    def _emptiest_first(self) -> list[int]:
        return sorted(range(len(self.gpu_memory)), key=lambda gpu: len(self._on(gpu)))

    def _need(self, gpu: int, kind: tuple) -> float:
        return self.measured.get(kind, self.gpu_memory[gpu] * USABLE)

    def _has_room(self, gpu: int, kind: tuple) -> bool:
        there = self._on(gpu)
        if self.per_gpu:
            return len(there) < self.per_gpu
        need = self._need(gpu, kind) + sum(place.need for place in there)
        return need <= self.gpu_memory[gpu] * USABLE


def devices(per_gpu: int = 1, gpus_per_run: int = 1, workers: int = 0) -> Devices:
    """Those of this machine. CUDA_VISIBLE_DEVICES says which GPUs may be used.

    Args:
        workers: runs at once on the CPU; 0 for one a core, up to 8.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and not workers:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        memory = [torch.cuda.get_device_properties(number).total_memory for number in range(count)]
        return Devices(memory, per_gpu, gpus_per_run, names=visible[:count])
    return Devices(workers=workers or min(8, cores()), gpus_per_run=gpus_per_run)


def cores() -> int:
    """How many cores this process may use; in a job of Slurm, those of the job."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(os.environ.get("SLURM_CPUS_PER_TASK", there)))
