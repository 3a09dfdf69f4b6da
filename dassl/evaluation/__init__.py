"""Evaluators by name."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
from .finite import FiniteScores
from .predictions import Predictions

__all__ = [
    "EVALUATOR_REGISTRY",
    "Classification",
    "EvaluatorBase",
    "FiniteScores",
    "Predictions",
    "build_evaluator",
]
