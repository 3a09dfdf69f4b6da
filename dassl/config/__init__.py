"""The configuration: defaults, files with `_BASE_`, and clear errors."""

from __future__ import annotations

from functools import cache
from typing import Any

from yacs.config import CfgNode

from .defaults import default_config
from .node import Config

__all__ = ["Config", "clean_cfg", "get_cfg_default", "key_or_default"]


def get_cfg_default() -> Config:
    """A fresh configuration that holds every key of the engine at its default."""
    return default_config()


def key_or_default(node: Any, key: str) -> Any:
    """The value of a key that upstream's Dassl does not have; our default where the node lacks it.

    A foreign project brings a configuration of upstream's keys, so the engine reads all keys of its own here.

    Args:
        node: the section that holds the key, such as `cfg.TRAIN`.
        key: its full name, such as "TRAIN.CHECKPOINTS_KEPT".
    """
    *sections, name = key.split(".")
    default = _defaults()
    for section in sections:
        default = default[section]
    return getattr(node, name, default[name])


_defaults = cache(default_config)


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Removes the sections of all other trainers from `cfg.TRAINER`, so that a printed config is short.

    Args:
        cfg: the configuration; changed in place.
        trainer: name of the trainer whose section (its name, in capitals or as it is) stays.
    """
    for key in list(cfg.TRAINER.keys()):
        if key != "NAME" and key.upper() != trainer.upper():
            del cfg.TRAINER[key]
