"""OpenAI's `clip.simple_tokenizer`, handed on from `prompted_clip`."""

from prompted_clip.simple_tokenizer import SimpleTokenizer, default_tokenizer

__all__ = ["SimpleTokenizer", "default_tokenizer"]
