"""The configuration: defaults, files with `_BASE_`, and clear errors."""

from __future__ import annotations

from yacs.config import CfgNode

from .defaults import default_config
from .node import Config

__all__ = ["Config", "clean_cfg", "get_cfg_default"]


def get_cfg_default() -> Config:
    """A fresh configuration that holds every key of the engine at its default."""
    return default_config()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Removes the sections of all other trainers from `cfg.TRAINER`, so that a printed config is short.

    Args:
        cfg: the configuration; changed in place.
        trainer: name of the trainer whose section (its name, in capitals or as it is) stays.
    """
    for key in list(cfg.TRAINER.keys()):
        if key != "NAME" and key.upper() != trainer.upper():
            del cfg.TRAINER[key]
