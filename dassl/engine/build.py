"""Trainers by name."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.engine.ddp import shard_test
from dassl.utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Builds the trainer that `cfg.TRAINER.NAME` names. Of several processes, each will test its own share.

    Raises:
        ValueError: no trainer is registered under that name.
    """
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    cfg = shard_test(cfg, trainer_class)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer_class(cfg)
