"""The tokenizer: OpenAI's ids for every recorded string, and OpenAI's API around them."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import GOLDEN

import clip
import prompted_clip
from prompted_clip.simple_tokenizer import SimpleTokenizer

RECORDED = json.loads((GOLDEN / "tokenizer.json").read_text())
LIMITS = json.loads((GOLDEN / "tokenizer_limits.json").read_text())
SOS, EOT = RECORDED["sot"], RECORDED["eot"]


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.mark.parametrize("case", RECORDED["strings"], ids=lambda case: ascii(case["text"])[:40])
def test_recorded_ids(case, tokenizer):
    assert tokenizer.encode(case["text"]) == case["ids"]
    row = prompted_clip.tokenize(case["text"])[0].tolist()
    sentence = [SOS, *case["ids"], EOT]
    assert row == sentence + [0] * (RECORDED["context_length"] - len(sentence))


def test_recorded_limits():
    longest = " ".join(["word"] * LIMITS["max_tokens_without_specials"])
    assert prompted_clip.tokenize(longest)[0, -1] == LIMITS["exact75_last"]
    too_long = f"{longest} word"
    with pytest.raises(RuntimeError) as caught:
        prompted_clip.tokenize(too_long)
    assert str(caught.value) == f"Input {too_long} is too long for context length 77"
    assert str(caught.value).startswith(LIMITS["too_long_raises"].removesuffix("..."))
    cut = prompted_clip.tokenize(too_long, truncate=True)[0]
    assert cut[-1] == LIMITS["truncate_true_last"]
    assert torch.equal(cut, prompted_clip.tokenize(longest)[0])


def test_tokenize_many():
    rows = prompted_clip.tokenize(["a cat", "a dog and a cat"])
    assert rows.shape == (2, 77)
    assert rows.dtype == torch.int32
    assert torch.equal(rows[:1], prompted_clip.tokenize("a cat"))
    assert prompted_clip.tokenize([]).shape == (0, 77)
    assert torch.equal(prompted_clip.tokenize("a cat", context_length=4), rows[:1, :4])
    with pytest.raises(RuntimeError, match="Input a cat is too long for context length 3"):
        prompted_clip.tokenize("a cat", context_length=3)
    assert prompted_clip.tokenize("a dog and a cat", 4, truncate=True).tolist() == [[SOS, *rows[1, 1:3], EOT]]


def test_the_highest_id_is_eot():
    """Where a sentence ends is found as the largest id of its row."""
    text = prompted_clip.tokenize("a photo of a cat.")[0]
    assert text.argmax() == 7
    assert max(clip.clip._tokenizer.encoder.values()) == EOT


def test_tokenizer_has_openai_s_attributes(tokenizer):
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert tokenizer.encoder["<|startoftext|>"] == SOS
    assert tokenizer.encoder["<|endoftext|>"] == EOT
    assert tokenizer.decoder[tokenizer.encoder["cat</w>"]] == "cat</w>"
    assert all(tokenizer.decoder[number] == token for token, number in tokenizer.encoder.items())
    assert "<start_of_text>" not in tokenizer.encoder


@pytest.mark.parametrize("text", ["a photo of a cat .", "crème brûlée", "emoji 😀👍", "o ' clock 4 5"])
def test_decode_undoes_encode(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == f"{text} "
    sentence = prompted_clip.tokenize(text)[0]
    ids = sentence[: sentence.argmax() + 1].tolist()
    assert tokenizer.decode(ids) == f"<|startoftext|>{text} <|endoftext|>"


def test_open_clip_s_spelling_of_special_tokens_is_text(tokenizer):
    """OpenAI's tokenizer knows no "<start_of_text>": it is a sequence of words and signs."""
    assert SOS not in tokenizer.encode("<start_of_text> a cat")
    assert len(tokenizer.encode("<start_of_text>")) > 3
    # The pattern is of text, not of a regular expression.
    assert tokenizer.encode("startoftext") == tokenizer.encode("STARTOFTEXT")
    assert EOT not in tokenizer.encode("endoftext")


def test_module_has_one_shared_tokenizer():
    from clip.clip import _tokenizer

    assert _tokenizer is clip.clip._tokenizer
    assert isinstance(_tokenizer, SimpleTokenizer)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prompted_clip.factory.nothing
