"""Evaluators by name."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .confidences import Confidences, HeldOut
from .evaluator import Classification, EvaluatorBase
from .finite import FiniteScores
from .predictions import Predictions

__all__ = [
    "EVALUATOR_REGISTRY",
    "Classification",
    "Confidences",
    "EvaluatorBase",
    "FiniteScores",
    "HeldOut",
    "Predictions",
    "build_evaluator",
]
