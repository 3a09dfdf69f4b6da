"""The registry of evaluators."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: Any, **kwargs: Any) -> Any:
    """Builds the evaluator that `cfg.TEST.EVALUATOR` names; `kwargs` go to it (`lab2cname`)."""
    evaluator_class = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator_class(cfg, **kwargs)
