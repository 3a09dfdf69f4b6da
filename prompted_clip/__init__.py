"""CLIP (Radford et al. 2021, arXiv 2103.00020) whose encoders take prompts and adapters; learners."""

import warnings
from typing import Any

from .adapters import Adapters, BlockAdapter
from .factory import available_models, build_model, load, load_model, pixel_statistics, tokenize
from .model import CLIP
from .ops import allow_double_backward
from .prompt_learner import (
    IndependentPromptLearner,
    PromptLearner,
    TemplateEnsemble,
    class_sentences,
    initial_context,
    noise,
    tokenize_classes,
)
from .prompted_clip import PromptedCLIP
from .prompting import Prompts
from .shared_prefix import SharedPrefixText

__all__ = [
    "CLIP",
    "Adapters",
    "BlockAdapter",
    "IndependentPromptLearner",
    "PromptLearner",
    "PromptedCLIP",
    "Prompts",
    "SharedPrefixText",
    "TemplateEnsemble",
    "allow_double_backward",
    "available_models",
    "build_model",
    "class_sentences",
    "initial_context",
    "load",
    "load_model",
    "noise",
    "pixel_statistics",
    "tokenize",
    "tokenize_classes",
]


def __getattr__(name: str) -> Any:
    if name == "Sentences":
        warnings.warn("Sentences is SharedPrefixText now", DeprecationWarning, stacklevel=2)
        return SharedPrefixText
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
