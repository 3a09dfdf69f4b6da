"""Datasets by name."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> Any:
    """Builds the dataset that `cfg.DATASET.NAME` names.

    Raises:
        ValueError: no dataset is registered under that name.
    """
    # Looked up before anything is printed, so that a misspelt name is not first announced as being loaded.
    dataset_class = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset_class(cfg)
