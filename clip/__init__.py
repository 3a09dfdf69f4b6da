"""CLIP (Radford et al. 2021, arXiv 2103.00020), with OpenAI's API and encoders that take prompts."""

from .clip import (
    _MODELS,
    _download,
    available_models,
    build_model,
    load,
    load_model,
    pixel_statistics,
    tokenize,
)
from .prompting import Prompts
from .sentences import Sentences

__all__ = [
    "_MODELS",
    "Prompts",
    "Sentences",
    "_download",
    "available_models",
    "build_model",
    "load",
    "load_model",
    "pixel_statistics",
    "tokenize",
]
