"""The tokens that a method puts into CLIP's encoders, and the operations that put them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class Prompts:
    """Learned tokens of one encoder.

    `tokens` enter before block `first_block` and `deep[k]` overwrites them before block `k + 1`; blocks are
    counted from 0. In text, tokens stand after SOS: those of block 0 overwrite words and get their positional
    embedding, those of a later block are inserted and lengthen the sequence. In images, tokens stand after
    the patches; those of block 0 pass `ln_pre`. With `insert`, those of block 0 enter as those of a later
    block do. Deep prompts beyond the encoder's blocks are not used.

    Attributes:
        tokens: `(n width)`, or `(batch n width)` where each sample has its own; None for no tokens.
        deep: each `(n width)` or `(batch n width)`; None leaves what is there.
        first_block: the block before which `tokens` enter.
        blend: β of overwriting, β · new + (1 − β) · old; 1 replaces.
        class_specific: whether tokens with three axes are each class's own, `(class n width)`, in text.
        insert: whether tokens are inserted right before block 0, past the embeddings and `ln_pre`, if that is
            their first block.

    Raises:
        ValueError: deep prompts are to overwrite tokens that have not entered yet.
    """

    tokens: Tensor | None = None
    deep: Sequence[Tensor | None] = ()
    first_block: int = 0
    blend: float | Tensor = 1.0
    class_specific: bool = False
    insert: bool = False

    def __post_init__(self) -> None:
        early = [k for k, tokens in enumerate(self.deep[: self.first_block]) if tokens is not None]
        if early or (self.first_block and self.tokens is None):
            given = f"deep[{early[0]}] is given" if early else "tokens is None"
            raise UserError(
                f"Prompts(first_block={self.first_block}): {given}; tokens must enter before they are "
                f"overwritten: give tokens, and None for deep[0] to deep[{self.first_block - 1}]."
            )

    def before(self, block: int) -> Tensor | None:
        """The tokens that enter before a block, counted from 0; None for none."""
        if block == self.first_block:
            return self.tokens
        return self.deep[block - 1] if self.first_block < block <= len(self.deep) else None

    def check_blocks(self, blocks: int) -> None:
        """Raises a `ValueError` if the tokens would enter after the last of so many blocks."""
        if self.first_block >= blocks:
            raise UserError(
                f"Prompts(first_block={self.first_block}): this encoder has {blocks} blocks, counted from 0; "
                f"allowed is up to {blocks - 1}."
            )

    def inserts(self, block: int | None = None) -> bool:
        """Whether tokens are inserted, rather than overwrite words; before that block, if one is named."""
        inserts = self.tokens is not None and (self.insert or self.first_block > 0)
        return inserts and block in (None, self.first_block)

    def embedded(self) -> Tensor | None:
        """The tokens that stand among the embeddings; None for none."""
        return None if self.inserts() else self.before(0)

    def inserted(self) -> int:
        """By how many tokens a sentence is lengthened."""
        return self.tokens.shape[-2] if self.tokens is not None and self.inserts() else 0

    def are_of_classes(self, tokens: Tensor) -> bool:
        """Whether such tokens are each class's own."""
        return self.class_specific and tokens.dim() == 3

    def enter(self, block: int, x: Tensor, start: int) -> Tensor:
        """Puts the tokens of a block that are not embedded into `x`, `(batch length width)`, at `start`."""
        tokens = self.before(block)
        if tokens is None or (block == 0 and not self.inserts()):
            return x
        if self.inserts(block):
            return insert_tokens(x, tokens, start)
        return replace_tokens(x, tokens, start, self.blend)


def replace_tokens(x: Tensor, tokens: Tensor, start: int, blend: float | Tensor = 1.0) -> Tensor:
    """Overwrites the `n` tokens of `x` from `start` on; the rest of `x` is untouched.

    Learned tokens are kept in float32: they are cast to the dtype of `x` here, where they enter.

    Args:
        x: `(batch length width)`.
        tokens: `(n width)`, or `(batch n width)` where each sample has its own.
        blend: β of β · tokens + (1 − β) · x.
    """
    end = start + tokens.shape[-2]
    tokens = blended(tokens, x[:, start:end], blend)
    return torch.cat([x[:, :start], tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, end:]], dim=1)


def insert_tokens(x: Tensor, tokens: Tensor, start: int) -> Tensor:
    """Inserts tokens into `x` before position `start`, which is its length to append them.

    Args:
        x: `(batch length width)`.
        tokens: `(n width)`, or `(batch n width)` where each sample has its own.
    """
    return torch.cat([x[:, :start], tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, start:]], dim=1)


def overwrite_slots(x: Tensor, tokens: Tensor, slots: Tensor, blend: float | Tensor = 1.0) -> Tensor:
    """As `replace_tokens`, but each sample has its own positions for the tokens: `slots`, `(batch n)`."""
    index = slots[:, :, None].expand(-1, -1, x.shape[2])
    new = blended(tokens.expand(x.shape[0], -1, -1), x.gather(1, index), blend)
    return x.scatter(1, index, new.to(x.dtype))


def blended(new: Tensor, old: Tensor, blend: float | Tensor) -> Tensor:
    """β · new + (1 − β) · old, where β is `blend`; `new` itself for a β of 1."""
    if not isinstance(blend, Tensor) and blend == 1:
        return new
    return blend * new + (1 - blend) * old.to(new.dtype)
