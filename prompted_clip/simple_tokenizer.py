"""OpenAI's byte-pair tokenizer, on top of open_clip's, which ships the vocabulary.

The two differ in the names of the special tokens only; OpenAI's are kept, so that a text which spells them
out gets the published ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import open_clip.tokenizer
import regex

SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


class SimpleTokenizer(open_clip.tokenizer.SimpleTokenizer):
    """OpenAI's tokenizer: `encode(text)` → ids, `decode(ids)` → text, `encoder` and `decoder`.

    Args:
        bpe_path: a file of merges; by default the published one.
    """

    def __init__(self, bpe_path: str | None = None) -> None:
        super().__init__(bpe_path or open_clip.tokenizer.default_bpe())
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
