"""What the processes of one job tell each other: to share out a test, or the batches of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "broadcast",
    "broadcast_tensors",
    "first_process_first",
    "gather",
    "interleave",
    "is_shared_out",
    "mean_of_processes",
    "this_process",
    "wait_for_all",
]


def this_process() -> tuple[int, int]:
    """Which process this is, from 0, and of how many; without torch.distributed it is 0 of 1."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_shared_out(cfg: Any) -> bool:
    """Whether there are several processes, and each tests on its own share (`DistributedEvalSampler`)."""
    return this_process()[1] > 1 and cfg.DATALOADER.TEST.SAMPLER == "DistributedEvalSampler"


def gather(own: Any) -> list[Any]:
    """What each process gives, anything that can be pickled, in their order. All of them have to call it."""
    shares: list[Any] = [own]
    if this_process()[1] > 1:
        shares *= this_process()[1]
        dist.all_gather_object(shares, own)
    return shares


def wait_for_all() -> None:
    """Goes on when all processes are here."""
    gather(None)


def broadcast(own: Any) -> Any:
    """What the first process gives, anything that can be pickled. All of them have to call it."""
    box = [own]
    if this_process()[1] > 1:
        dist.broadcast_object_list(box)
    return box[0]


def broadcast_tensors(tensors: Mapping[str, Any]) -> None:
    """Overwrites each process's tensors by the first one's; what is no tensor stays."""
    if this_process()[1] > 1:
        for tensor in tensors.values():
            if isinstance(tensor, Tensor):
                dist.broadcast(tensor.detach(), 0)


def mean_of_processes(values: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each number over the processes, all of which give the same names."""
    means = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    dist.all_reduce(means)
    return dict(zip(values, (means / this_process()[1]).tolist(), strict=True))


@contextmanager
def first_process_first() -> Iterator[None]:
    """What is within runs in the first process; when that is done, in the others.

    So that the others read the files that the first one writes, and that it alone meets a mistake of the
    user's: they end with it.
    """
    is_first = this_process()[0] == 0
    if not is_first:
        wait_for_all()
    yield
    if is_first:
        wait_for_all()


def interleave(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """The order that one process alone would have, from shares that were dealt out one by one."""
    nothing = object()
    return [item for item in chain(*zip_longest(*shares, fillvalue=nothing)) if item is not nothing]
