"""Evaluators by name."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .confidences import Confidences, HeldOut
from .evaluator import Classification, EvaluatorBase
from .finite import FiniteScores
from .predictions import FirstClasses, Prediction, Predictions, read_predictions, write_predictions

__all__ = [
    "EVALUATOR_REGISTRY",
    "Classification",
    "Confidences",
    "EvaluatorBase",
    "FiniteScores",
    "FirstClasses",
    "HeldOut",
    "Prediction",
    "Predictions",
    "build_evaluator",
    "read_predictions",
    "write_predictions",
]
