"""OpenAI's API over `prompted_clip`: the same objects under the import paths that older code knows.

Not installed, since the name is that of OpenAI's own package. New code imports `prompted_clip`.
"""

from typing import Any

import prompted_clip
from prompted_clip import Prompts, SharedPrefixText, load_model, pixel_statistics

from . import model, simple_tokenizer
from .clip import _MODELS, _download, available_models, build_model, load, tokenize

__all__ = [
    "_MODELS",
    "Prompts",
    "SharedPrefixText",
    "_download",
    "available_models",
    "build_model",
    "load",
    "load_model",
    "model",
    "pixel_statistics",
    "simple_tokenizer",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    return getattr(prompted_clip, name)  # names of an earlier version
