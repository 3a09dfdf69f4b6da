"""Former names of what `dassl.engine.ddp` and `dassl.utils.distributed` have."""

from __future__ import annotations

from dassl.engine.ddp import Losses
from dassl.engine.ddp import wrap_ddp as of_all_processes
from dassl.utils.distributed import get_world_size as processes
from dassl.utils.distributed import is_rank_zero as is_first_process

__all__ = ["Losses", "is_first_process", "of_all_processes", "processes"]
