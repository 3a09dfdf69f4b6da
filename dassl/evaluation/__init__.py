"""Evaluators by name."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
from .predictions import Predictions

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "Predictions", "build_evaluator"]
