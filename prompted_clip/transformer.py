"""CLIP's transformer, of both encoders: blocks that compute no more than what is asked for.

The layout at the public seams is OpenAI's, `(length batch width)`. Inside it is `(batch length width)`, and a
transformer can be asked for one position only: it then computes nothing that does not reach it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import frozen
from .frozen import Projected, written_out
from .kernels import attention
from .norm import LayerNorm
from .perceptron import Perceptron, QuickGELU, folds
from .prompting import behind, enter

Activation = Callable[[], nn.Module]


class ResidualAttentionBlock(nn.Module):
    """Attention, then a two-layer perceptron, each behind a layer norm and around a residual.

    Args:
        attn_mask: `(length length)`, added to the attention logits; longer than any input.
        mlp_width: width of the perceptron's hidden layer; OpenAI's is 4 · d_model.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = QuickGELU,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model, eps=eps)
        hidden = mlp_width or 4 * d_model
        self.mlp = Perceptron(
            OrderedDict(c_fc=nn.Linear(d_model, hidden), gelu=activation(), c_proj=nn.Linear(hidden, d_model))
        )
        self.ln_2 = LayerNorm(d_model, eps=eps)
        self.attn_mask = attn_mask

    def forward(self, x: Tensor) -> Tensor:
        """Every position of `x`, `(length batch width)`."""
        return self.run(x.transpose(0, 1)).transpose(0, 1)

    def run(
        self, x: Tensor, tokens: Tensor | None = None, rows: int | None = None, at: int | None = None
    ) -> Tensor:
        """What `x` becomes in some of its positions: `(batch rows width)`.

        Args:
            x: `(batch length width)`.
            tokens: stand behind `x`, in its type; `(n width)`, or `(batch n width)`.
            rows: how many positions, from the first on, are wanted; None for all.
            at: the only position wanted.
        """
        if at is not None:
            return self.run_at(x if tokens is None else behind(x, tokens), at)
        projected = self.project(x, tokens, rows)
        mask = self.mask(projected.keys.shape[2], x)
        if mask is not None and rows is not None:
            mask = mask[:rows]
        attended = attention(*projected[1:], mask)
        return self.finish(projected.residual, attended)

    def run_at(self, x: Tensor, position: int) -> Tensor:
        """What `x`, `(batch length width)`, becomes in one position: `(batch 1 width)`.

        Of one query, keys and values need not be computed: it asks the input itself, through the key weights,
        and the value weights apply to the mean of the input that it attends to.
        """
        normed = self.ln_1(x)
        one = slice(position, position + 1)
        mask = self.mask(x.shape[1], x)
        mask = None if mask is None else mask[one]
        queries = self.queries(normed[:, one])
        if folds(x):
            attended = self.attend_inputs(queries[:, :, 0], normed, mask)[:, :, None]
        else:  # rounded where OpenAI's is
            attended = attention(queries, *self.keys_values(normed), mask)
        return self.finish(x[:, one], attended)

    def attend_inputs(self, queries: Tensor, normed: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one query a sample: `(batch head head_width)`.

        The bias of the keys adds the same to all logits of a query, and changes nothing.

        Args:
            queries: `(batch head head_width)`.
            normed: `(batch length width)`.
            mask: added to the logits, `(1 length)`.
        """
        heads, width = queries.shape[1], normed.shape[-1]
        _, key, value = self.attn.in_proj_weight.view(3, heads, -1, width)
        asked = (queries.transpose(0, 1) @ key).transpose(0, 1)  # (batch head width)
        logits = queries.shape[-1] ** -0.5 * asked @ normed.transpose(1, 2)
        mean = (logits if mask is None else logits + mask).softmax(dim=-1) @ normed  # (batch head width)
        attended = mean.transpose(0, 1) @ value.transpose(1, 2)  # (head batch head_width)
        return attended.transpose(0, 1) + self.attn.in_proj_bias[2 * width :].view(heads, -1)

    def project(self, x: Tensor, tokens: Tensor | None = None, rows: int | None = None) -> Projected:
        """All that comes before the attention; arguments as of `run`."""
        if written_out(self, x, tokens):
            return frozen.project(self, x, tokens, rows)
        x = x if tokens is None else behind(x, tokens)
        normed = self.ln_1(x)
        if rows is None or rows == x.shape[1]:
            each = F.linear(normed, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, dim=-1)
            return Projected(x, *(self.by_head(part) for part in each))
        return Projected(x[:, :rows], self.queries(normed[:, :rows]), *self.keys_values(normed))

    def queries(self, normed: Tensor) -> Tensor:
        """`(batch length width)` → `(batch head length head_width)`."""
        width = self.attn.embed_dim
        weight, bias = self.attn.in_proj_weight[:width], self.attn.in_proj_bias[:width]
        # In one piece: else half precision would round before the bias and behind it.
        return self.by_head(F.linear(normed.contiguous(), weight, bias))

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch length width)` → keys and values, each `(batch head length head_width)`."""
        width = self.attn.embed_dim
        weight, bias = self.attn.in_proj_weight[width:], self.attn.in_proj_bias[width:]
        keys, values = F.linear(normed, weight, bias).split(width, dim=-1)
        return self.by_head(keys), self.by_head(values)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """All that follows the attention.

        Args:
            x: the block's input, `(batch length width)`.
            attended: `(batch head length head_width)`.
        """
        if written_out(self, x, attended):
            return frozen.finish(self, x, attended)
        x = x + self.attn.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))

    def mask(self, length: int, like: Tensor) -> Tensor | None:
        """The additive mask of so many positions, `(length length)`, in the type and place of `like`."""
        if self.attn_mask is None:
            return None
        # Kept where it was used last, as OpenAI's block does: a copy per call would wait for the device.
        with torch.inference_mode(False):  # a tensor made in inference mode would be of no use in training
            self.attn_mask = self.attn_mask.to(device=like.device, dtype=like.dtype)
        return self.attn_mask[:length, :length]

    def by_head(self, x: Tensor) -> Tensor:
        """`(batch length width)` → `(batch head length head_width)`."""
        return x.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = QuickGELU,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *[
                ResidualAttentionBlock(
                    width, heads, attn_mask, mlp_width=mlp_width, activation=activation, eps=eps
                )
                for _ in range(layers)
            ]
        )

    def blocks(self) -> list[ResidualAttentionBlock]:
        return cast("list[ResidualAttentionBlock]", list(self.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        """Every position of `x`, `(length batch width)`."""
        return self.run(x.transpose(0, 1)).transpose(0, 1)

    def run(
        self,
        x: Tensor,
        deep: Sequence[Tensor] = (),
        start: int = 1,
        position: int | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The blocks, with deep prompts on the way.

        Args:
            x: `(batch length width)`.
            deep: `deep[k]` overwrites the tokens from `start` on before block `k + 1`; each `(n width)` or
                `(batch n width)`. What exceeds the blocks is not used.
            position: the only position wanted, and nothing is computed then that does not reach it; None for
                every position of each block.
            tokens: stand behind `x` before the first block; `(n width)` or `(batch n width)`.

        Returns:
            `(batch length width)`, or `(batch 1 width)` for one position.
        """
        if position is None and tokens is not None:
            x, tokens = behind(x, tokens), None
        last = len(self.resblocks) - 1
        for k, block in enumerate(self.blocks()):
            if 0 < k <= len(deep):
                x, tokens = enter(x, deep[k - 1], start)
            if position is None:
                x = block.run(x, tokens)
            elif k == last:
                x = block.run(x, tokens, at=position)
            else:
                length = x.shape[1] + (0 if tokens is None else tokens.shape[-2])
                # The next block's prompts may stand where this block's end.
                ends = k < len(deep) and length <= start + deep[k].shape[-2]
                x = block.run(x, tokens, start if ends else None)
            tokens = None
        return x
