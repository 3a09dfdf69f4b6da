"""Weights by name, and sentences as numbers."""

import os

import torch

from .model import CLIP, build_model
from .simple_tokenizer import SimpleTokenizer as _Tokenizer

__all__ = ["_MODELS", "_download", "build_model", "tokenize"]

_MODELS = {"Tiny-B/4": "tiny-b-4.pt"}
_tokenizer = _Tokenizer()


def _download(url, root="weights"):
    """There is nothing to fetch: the weights are random, and are drawn the first time."""
    path = os.path.join(root, url)
    if not os.path.exists(path):
        os.makedirs(root, exist_ok=True)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        torch.save(CLIP(16, 12, 20, 64, 24).state_dict(), path)
        torch.set_rng_state(state)
    return path


def tokenize(texts, context_length=20):
    """`(text context_length)`."""
    texts = [texts] if isinstance(texts, str) else texts
    sot, eot = _tokenizer.encoder["<|startoftext|>"], _tokenizer.encoder["<|endoftext|>"]
    result = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(result, texts, strict=True):
        tokens = [sot, *_tokenizer.encode(text), eot]
        row[: len(tokens)] = torch.tensor(tokens)
    return result
