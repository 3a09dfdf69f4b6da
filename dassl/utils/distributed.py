"""A test that is shared out among processes, each of which sees a part of the images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import torch.distributed as dist

__all__ = ["gather", "interleave", "is_shared_out", "this_process"]


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
    shares: list[Any] = [None] * this_process()[1]
    dist.all_gather_object(shares, own)
    return shares


def interleave(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """The order that one process alone would have, from shares that were dealt out one by one."""
    nothing = object()
    return [item for item in chain(*zip_longest(*shares, fillvalue=nothing)) if item is not nothing]
