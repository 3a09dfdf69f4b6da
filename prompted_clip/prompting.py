"""What a method may put into CLIP's encoders, and the one operation that puts it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Learned tokens of one encoder.

    `tokens` enter before block 0; `deep[k]` overwrites the same slots before block `k + 1`. Text slots follow
    SOS, image slots stand behind the patches. Deep prompts beyond the encoder's blocks are not used.

    Attributes:
        tokens: `(n width)`, or `(batch n width)` where each sample has its own; None for no tokens.
        deep: each `(n width)` or `(batch n width)`.
    """

    tokens: Tensor | None = None
    deep: Sequence[Tensor] = ()


def replace_tokens(x: Tensor, tokens: Tensor, start: int) -> Tensor:
    """Overwrites the `n` tokens of `x` from `start` on; the rest of `x` is untouched.

    Learned tokens are kept in float32: they take the type of `x` here, where they enter.

    Args:
        x: `(batch length width)`.
        tokens: `(n width)`, or `(batch n width)` where each sample has its own.
    """
    tokens = tokens.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :start], tokens, x[:, start + tokens.shape[1] :]], dim=1)


def behind(x: Tensor, tokens: Tensor) -> Tensor:
    """Puts tokens behind those of `x`, in its type.

    Args:
        x: `(batch length width)`.
        tokens: `(n width)`, or `(batch n width)` where each sample has its own.
    """
    return torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1)


def enter(x: Tensor, tokens: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
    """As `replace_tokens`; but tokens that are to end `x` stay apart, and what they follow comes before them.

    Args:
        x: `(batch length width)`, or without the tokens that are to be overwritten.
        tokens: as of `replace_tokens`.
    """
    if x.shape[1] <= start + tokens.shape[-2]:
        return x[:, :start], tokens.to(x.dtype)
    return replace_tokens(x, tokens, start), None
