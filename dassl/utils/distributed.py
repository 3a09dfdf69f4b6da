"""Communication between the processes of torch.distributed; without it, all of this is for one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_reduce_mean",
    "barrier",
    "broadcast",
    "broadcast_tensors",
    "gather",
    "get_rank",
    "get_world_size",
    "interleave",
    "is_rank_zero",
    "is_sharded",
    "rank_zero_first",
]


def get_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def get_world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this is the process that prints and writes for all."""
    return get_rank() == 0


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_sharded(cfg: Any) -> bool:
    """Whether there are several processes, and each tests its own shard (`DistributedEvalSampler`)."""
    return get_world_size() > 1 and cfg.DATALOADER.TEST.SAMPLER == "DistributedEvalSampler"


def gather(own: Any) -> list[Any]:
    """The objects of all processes by rank, anything that can be pickled. All processes have to call it."""
    shards: list[Any] = [own]
    if get_world_size() > 1:
        shards *= get_world_size()
        dist.all_gather_object(shards, own)
    return shards


def barrier() -> None:
    """Returns when all processes are here."""
    gather(None)


def broadcast(own: Any) -> Any:
    """The object of rank zero, anything that can be pickled. All processes have to call it."""
    box = [own]
    if get_world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def broadcast_tensors(tensors: Mapping[str, Any]) -> None:
    """Overwrites each process's tensors by those of rank zero; what is no tensor stays."""
    if get_world_size() > 1:
        for tensor in tensors.values():
            if isinstance(tensor, Tensor):
                dist.broadcast(tensor.detach(), 0)


def all_reduce_mean(values: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each number over the processes, all of which have the same names."""
    means = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    if get_world_size() > 1:
        dist.all_reduce(means)
    return dict(zip(values, (means / get_world_size()).tolist(), strict=True))


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Rank zero runs the block first, then the others.

    So the others read the files that rank zero writes, and only rank zero meets a mistake of the user's: the
    others end with it.
    """
    if not is_rank_zero():
        barrier()
    yield
    if is_rank_zero():
        barrier()


def interleave(shards: Sequence[Sequence[Any]]) -> list[Any]:
    """The order that one process alone would have, of shards that were dealt out one by one."""
    nothing = object()
    return [item for item in chain(*zip_longest(*shards, fillvalue=nothing)) if item is not nothing]
