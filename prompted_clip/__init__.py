"""CLIP (Radford et al. 2021, arXiv 2103.00020) whose encoders take prompts, and what learns them."""

from .factory import available_models, build_model, load, load_model, pixel_statistics, tokenize
from .model import CLIP
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
from .sentences import Sentences

__all__ = [
    "CLIP",
    "IndependentPromptLearner",
    "PromptLearner",
    "PromptedCLIP",
    "Prompts",
    "Sentences",
    "TemplateEnsemble",
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
