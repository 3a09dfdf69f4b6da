"""OpenAI's `clip.clip`, handed on from `prompted_clip`."""

from typing import Any

from prompted_clip.factory import (
    _MODELS,
    _download,
    _transform,
    available_models,
    build_model,
    load,
    tokenize,
)
from prompted_clip.simple_tokenizer import default_tokenizer

__all__ = ["_MODELS", "_download", "_transform", "available_models", "build_model", "load", "tokenize"]


def __getattr__(name: str) -> Any:
    if name == "_tokenizer":  # OpenAI's name; not built before it is asked for
        return default_tokenizer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
