"""OpenAI's API over `prompted_clip`: the same objects under the import paths that older code knows.

Not installed, since the name is that of OpenAI's own package. New code imports `prompted_clip`.
"""

from prompted_clip import Prompts, Sentences, load_model, pixel_statistics

from . import model, simple_tokenizer
from .clip import _MODELS, _download, available_models, build_model, load, tokenize

__all__ = [
    "_MODELS",
    "Prompts",
    "Sentences",
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
