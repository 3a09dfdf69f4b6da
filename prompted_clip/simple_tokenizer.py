"""OpenAI's byte-pair tokenizer, on top of open_clip's, which ships the vocabulary.

The two differ in the names of the special tokens only; OpenAI's are kept, so that a text which spells them
out gets the published ids.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import regex
import torch
from torch import Tensor


def _tokenizer_of_open_clip() -> ModuleType:
    """open_clip's file, without the package around it, which imports timm and torchvision for seconds."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("prompted_clip.open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


open_clip_tokenizer = _tokenizer_of_open_clip()

SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


class SimpleTokenizer(open_clip_tokenizer.SimpleTokenizer):  # type: ignore[name-defined]
    """OpenAI's tokenizer: `encode(text)` → ids, `decode(ids)` → text, `encoder` and `decoder`.

    Args:
        bpe_path: a file of merges; by default the published one.
    """

    def __init__(self, bpe_path: str | None = None) -> None:
        super().__init__(bpe_path or open_clip_tokenizer.default_bpe())
        pattern = self.pat.pattern  # type: ignore[has-type]
        for theirs, ours in SPECIAL_TOKENS.items():
            self.encoder[ours] = self.encoder.pop(theirs)
            self.decoder[self.encoder[ours]] = ours
            self.cache[ours] = self.cache.pop(theirs).replace(theirs, ours)
            pattern = pattern.replace(theirs, regex.escape(ours))
        self.pat = regex.compile(pattern, regex.IGNORECASE)


@lru_cache
def default_tokenizer() -> SimpleTokenizer:
    """The tokenizer with the published vocabulary, built once."""
    return SimpleTokenizer()


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Sentences → token ids `(sentence length)`, int32, between SOS and EOT, then zeros.

    Raises:
        RuntimeError: a sentence is too long and `truncate` is not set (OpenAI's error).
    """
    tokenizer = default_tokenizer()
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    texts = [texts] if isinstance(texts, str) else texts
    result = torch.zeros(len(texts), context_length, dtype=torch.int)
    for row, text in zip(result, texts, strict=True):
        tokens = [start, *tokenizer.encode(text), end]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], end]
        row[: len(tokens)] = torch.tensor(tokens)
    return result


def words_with(missing: set[int], tokens: Sequence[int]) -> list[str]:
    """The words of `tokens`, of which each is one or several, that hold a `missing` one; each word once."""
    tokenizer = default_tokenizer()
    found: dict[str, None] = {}
    word: list[int] = []
    for token in tokens:
        word.append(token)
        if tokenizer.decoder[token].endswith(("</w>", "|>")):
            if not missing.isdisjoint(word):
                found[tokenizer.decode(word).strip()] = None
            word = []
    return list(found)
