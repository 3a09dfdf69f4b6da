"""What a prompt-learning method learns, and the sentences that it learns them in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import clip
from clip.model import CLIP

MAX_CONTEXT_WORDS = 4  # longer contexts start from noise, as published


class PromptLearner(nn.Module):
    """All that a method learns, and nothing else; frozen sentences, and no prompts, unless a method says so.

    Args:
        sentences: one for each class.
        prompts: how many positions behind SOS belong to learned tokens.

    Raises:
        ValueError: a sentence is too long for the text encoder; names the class.
    """

    # Whether text prompts are made of the image features (CoCoOp), so that each image has its own.
    conditional = False
    # Whether the learned tensors belong to these very classes.
    class_specific = False

    def __init__(
        self, clip_model: CLIP, classnames: Sequence[str], sentences: Sequence[str], prompts: int = 0
    ) -> None:
        super().__init__()
        self.sentences = clip.Sentences(tokenize_sentences(clip_model, classnames, sentences), prompts)
        # What this learner is for, kept in its state dict: plain names, numbers and lists of them.
        self.identity: dict = {}
        self.loaded_identity: dict = {}

    def text_prompts(self, image_features: Tensor | None = None) -> clip.Prompts | None:
        """Prompts of the text encoder; `image_features`, `(batch feature)`, for a conditional learner."""
        return None

    def image_prompts(self) -> clip.Prompts | None:
        """Prompts of the image encoder."""
        return None

    def get_extra_state(self) -> dict:
        return self.identity

    def set_extra_state(self, state: dict) -> None:
        """Keeps what the loaded checkpoint was for; the trainer compares it."""
        self.loaded_identity = state


def initial_context(clip_model: CLIP, n_ctx: int, ctx_init: str) -> tuple[Tensor, str]:
    """The context vectors to start from, `(n_ctx width)`, and the words that stand before a class name.

    The words of `ctx_init` are used if there are some and `n_ctx` is at most 4: the vectors are the
    embeddings of its first `n_ctx` tokens, and the sentence keeps all of it. N_CTX=2 learns "a photo"; "of a"
    stays text, as published. Otherwise the vectors are drawn from N(0, 0.02) and the words are "X X ...".

    Source: `MultiModalPromptLearner.__init__` in the reference's `trainers/maple.py`.
    """
    if ctx_init and n_ctx <= MAX_CONTEXT_WORDS:
        words = ctx_init.replace("_", " ")
        tokens = clip.tokenize(words, clip_model.context_length, truncate=True)[0]
        given = int(tokens.argmax()) - 1
        if given < n_ctx:
            print(
                f'Warning: "{words}" has {given} tokens, the context {n_ctx}: as in the reference, the '
                "learned tokens overwrite the first tokens of the class names"
            )
        return clip_model.embed_words(tokens[1 : 1 + n_ctx]).float(), words
    vectors = torch.empty(n_ctx, clip_model.transformer.width)
    nn.init.normal_(vectors, std=0.02)
    return vectors, " ".join(["X"] * n_ctx)


def sentences_after(words: str, classnames: Sequence[str]) -> list[str]:
    """`"a photo of a"` → `"a photo of a german shorthaired."` for each class."""
    return [f"{words} {name.replace('_', ' ')}." for name in classnames]


def tokenize_sentences(clip_model: CLIP, classnames: Sequence[str], sentences: Sequence[str]) -> Tensor:
    """Token ids, `(class length)`.

    Raises:
        ValueError: a sentence is longer than the text encoder takes; names the class.
    """
    rows = []
    for name, sentence in zip(classnames, sentences, strict=True):
        try:
            rows.append(clip.tokenize(sentence, clip_model.context_length))
        except RuntimeError as error:
            raise ValueError(
                f"The sentence of class {name!r} is longer than the {clip_model.context_length} tokens that "
                f'the text encoder takes: "{sentence}". Shorten the class name, or the context before it.'
            ) from error
    tokens = torch.cat(rows)
    clip_model.check_words(tokens)
    return tokens
