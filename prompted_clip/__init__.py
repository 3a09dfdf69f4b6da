"""CLIP (Radford et al. 2021, arXiv 2103.00020) whose encoders take prompts and adapters; learners.

Names are imported when they are used, so that `prompted_clip.errors` needs no torch.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Adapters, BlockAdapter
    from .factory import available_models, build_model, load, load_model, pixel_statistics, tokenize
    from .model import CLIP
    from .ops import allow_double_backward
    from .prompt_learner import (
        FrozenText,
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
    "FrozenText",
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
MODULES = (
    "adapters",
    "factory",
    "model",
    "ops",
    "prompt_learner",
    "prompted_clip",
    "prompting",
    "shared_prefix",
)


def __getattr__(name: str) -> Any:
    if name == "Sentences":
        warnings.warn("Sentences is SharedPrefixText now", DeprecationWarning, stacklevel=2)
        name = "SharedPrefixText"
    if name in __all__:
        for module in (importlib.import_module(f".{each}", __name__) for each in MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
