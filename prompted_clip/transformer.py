"""CLIP's transformer, of both encoders: blocks that are called, and one loop over them.

Modules take OpenAI's layout, `(length batch width)`. Inside a block it is `(batch length width)`: a
transposed view at each call, no copy. A part of a block that someone has hooked, replaced, subclassed or
parametrized is called in OpenAI's layout; where the attention is CLIP's own, its projections are fused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .adapters import BlockAdapter
from .errors import UserError
from .mlp import MLP, QuickGELU, can_use_silu
from .norm import LayerNorm
from .ops import add_to, attention, differentiable_once, is_unmodified, linear

Activation = Callable[[], nn.Module]
Positions = Sequence[int] | Tensor


class Attend(Protocol):
    """How positions attend to each other: `(batch head length head_width)` each → the same of `positions`."""

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, positions: Positions | None, /
    ) -> Tensor: ...


# Called before each block with its number and the tokens, `(batch length width)`; returns what the block
# gets, and how it attends: None for the block's own mask.
EnterBlock = Callable[[int, Tensor], tuple[Tensor, Attend | None]]


def take(x: Tensor, positions: Positions | None, dim: int = 1) -> Tensor:
    """The positions of `x` along an axis; all if None."""
    if positions is None:
        return x
    if isinstance(positions, Tensor):
        return x.index_select(dim, positions)
    parts = [x.narrow(dim, position, 1) for position in positions]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


class ResidualAttentionBlock(nn.Module):
    """Attention, then an MLP, each after a layer norm and around a residual.

    Args:
        attn_mask: `(length length)`, added to the attention logits; longer than any input, or causal.
        mlp_width: width of the MLP's hidden layer; OpenAI's is 4 · d_model.
    """

    attn_mask: Tensor | None

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
        self.mlp = MLP(
            OrderedDict(c_fc=nn.Linear(d_model, hidden), gelu=activation(), c_proj=nn.Linear(hidden, d_model))
        )
        self.ln_2 = LayerNorm(d_model, eps=eps)
        self.register_buffer("attn_mask", attn_mask, persistent=False)

    def forward(
        self,
        x: Tensor,
        *,
        attend: Attend | None = None,
        adapter: BlockAdapter | None = None,
        positions: Positions | None = None,
    ) -> Tensor:
        """Every position of `x`, or some: `(length batch width)` → `(position batch width)`.

        Args:
            attend: how positions attend, in place of the block's own mask.
            adapter: what a method adds.
            positions: those to return; None for all.

        Raises:
            ValueError: an adapter is to be added inside an attention that was hooked or replaced.
        """
        adapter = adapter or BlockAdapter()
        x = x.transpose(0, 1)
        residual = take(x, positions)
        normed = _call(self.ln_1, self.norm_is_unmodified(self.ln_1), x)
        normed_1 = None if adapter.block is None else take(normed, positions)
        if self.attention_is_unmodified():
            if attend is None and positions is not None and self.can_absorb(normed, adapter, positions):
                joined = self.absorbed_heads(normed, adapter, positions)
            else:
                heads = self.project(normed, adapter, positions if attend is None else None)
                del normed  # early, for the reason that `add_to` tells
                joined = self.joined_heads(heads, attend, positions)
            h = self.project_out(joined, residual, adapter)
        elif adapter.is_in_attention():
            raise UserError(
                f"An adapter of query, key, value or out cannot enter this block's attention, a "
                f"{type(self.attn).__name__} that was hooked or replaced. Remove the hook, or the adapter."
            )
        else:
            each = normed.transpose(0, 1)
            mask = self.mask(each.shape[0], each)
            attended = self.attn(each, each, each, need_weights=False, attn_mask=mask)[0]
            h = residual + take(attended.transpose(0, 1), positions)
        normed_2 = _call(self.ln_2, self.norm_is_unmodified(self.ln_2), h)
        unmodified = self.mlp_is_unmodified()
        out = _call(self.mlp, unmodified, normed_2)
        out = add_to(out, h) if unmodified and not _has_any_global_hook() else h + out
        if adapter.mlp is not None:
            out = out + adapter.mlp(normed_2)
        if adapter.block is not None:
            assert normed_1 is not None
            out = out + adapter.block(residual, normed_1)
        return out.transpose(0, 1)

    def project(
        self, normed: Tensor, adapter: BlockAdapter, asking: Positions | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of some positions, keys and values: `(batch head length head_width)` each.

        Args:
            normed: `(batch length width)`.
            asking: those that need queries; None for all.
        """
        attn = self.attn
        weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
        asked = take(normed, asking)
        if asked is normed:
            queries, keys, values = linear(normed, weight, bias).chunk(3, dim=-1)
        else:
            queries = linear(asked, weight[:width], bias[:width])
            keys, values = linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        if adapter.query is not None:
            queries = queries + adapter.query(asked)
        if adapter.key is not None:
            keys = keys + adapter.key(normed)
        if adapter.value is not None:
            values = values + adapter.value(normed)
        q, k, v = (
            each.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for each in (queries, keys, values)
        )
        return q, k, v

    def joined_heads(
        self, heads: tuple[Tensor, Tensor, Tensor], attend: Attend | None, positions: Positions | None
    ) -> Tensor:
        """What the heads attend to, `(batch position width)`; `heads` as `project` returns them."""
        queries, keys, values = heads
        if attend is None:
            mask = self.mask(keys.shape[2], keys)
            attended = attention(
                queries, keys, values, None if mask is None else take(mask, positions, dim=0)
            )
        else:
            attended = attend(queries, keys, values, positions)
        return attended.transpose(1, 2).flatten(2)

    def project_out(self, joined: Tensor, residual: Tensor, adapter: BlockAdapter) -> Tensor:
        """The attention's output, added to the residual: `(batch position width)` each."""
        out = linear(joined, self.attn.out_proj.weight, self.attn.out_proj.bias)
        if adapter.out is not None:
            out = out + adapter.out(joined)
        return add_to(out, residual)

    def can_absorb(self, normed: Tensor, adapter: BlockAdapter, positions: Positions) -> bool:
        """Whether a single position asks, and nothing would be rounded elsewhere than OpenAI's."""
        return len(positions) == 1 and adapter.key is None and adapter.value is None and can_use_silu(normed)

    def absorbed_heads(self, normed: Tensor, adapter: BlockAdapter, positions: Positions) -> Tensor:
        """As `joined_heads`, of one position: `(batch length width)` → `(batch 1 width)`.

        Keys and values need not be computed for one query: the key weights are absorbed into the query, which
        asks the input itself, and the value weights apply to the mean of the input that it attends to. The
        keys' bias adds the same to all logits, and changes nothing. Saves 1.3 % of a MaPLe step's operations.
        """
        attn, asking = self.attn, take(normed, positions)[:, 0]
        width = attn.embed_dim
        query, key, value = attn.in_proj_weight.view(3, attn.num_heads, -1, width)
        asked = linear(asking, query.flatten(0, 1), attn.in_proj_bias[:width])
        if adapter.query is not None:
            asked = asked + adapter.query(asking)
        asked = asked.unflatten(-1, (attn.num_heads, -1)).transpose(0, 1)  # (head batch head_width)
        scale = asked.shape[-1] ** -0.5
        logits = scale * (asked @ key).transpose(0, 1) @ normed.transpose(1, 2)  # (batch head length)
        mask = self.mask(normed.shape[1], normed)
        mean = (logits if mask is None else logits + take(mask, positions, dim=0)).softmax(dim=-1) @ normed
        attended = (mean.transpose(0, 1) @ value.transpose(1, 2)).transpose(0, 1).flatten(1)
        return (attended + attn.in_proj_bias[2 * width :])[:, None]

    def mask(self, length: int, like: Tensor) -> Tensor | None:
        """The additive mask of so many positions, `(length length)`, in the dtype of `like`."""
        if self.attn_mask is None:
            return None
        if length > len(self.attn_mask):  # tokens were inserted
            return torch.full((length, length), -torch.inf, device=like.device, dtype=like.dtype).triu(1)
        return self.attn_mask[:length, :length].to(device=like.device, dtype=like.dtype)

    # --- what was modified from outside -------------------------------------------------------------------

    def is_unmodified(self) -> bool:
        """Whether the block and its parts are CLIP's own: no hook, no replacement, no subclass."""
        return (
            is_unmodified(self, ResidualAttentionBlock)
            and self.attention_is_unmodified()
            and self.norm_is_unmodified(self.ln_1)
            and self.norm_is_unmodified(self.ln_2)
            and self.mlp_is_unmodified()
        )

    def attention_is_unmodified(self) -> bool:
        out_proj = self.attn.out_proj if is_unmodified(self.attn, nn.MultiheadAttention) else None
        # Torch makes it of a subclass of its own; a parametrization changes what `weight` returns alone.
        return (
            out_proj is not None
            and type(out_proj).forward is nn.Linear.forward
            and is_unmodified(out_proj, type(out_proj))
        )

    def norm_is_unmodified(self, norm: nn.Module) -> bool:
        return is_unmodified(norm, LayerNorm)

    def mlp_is_unmodified(self) -> bool:
        return is_unmodified(self.mlp, MLP) and self.mlp.parts_are_unmodified()


def _call(module: nn.Module, unmodified: bool, x: Tensor) -> Tensor:
    """Calls a part of a block on `(batch length width)`; a modified one in OpenAI's layout."""
    return module(x) if unmodified else module(x.transpose(0, 1)).transpose(0, 1)


class Transformer(nn.Module):
    """The blocks of an encoder; constructor and names are OpenAI's."""

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

    def forward(
        self,
        x: Tensor,
        enter: EnterBlock | None = None,
        adapters: Sequence[BlockAdapter | None] = (),
        positions: Positions | None = None,
        blocks: range | None = None,
    ) -> Tensor:
        """Runs the blocks: `(length batch width)` → `(position batch width)`.

        Args:
            enter: puts in what a method adds to the tokens before each block, and says how they attend.
            adapters: of each block; see `Adapters.blocks`.
            positions: those to return, after the last block; None for all.
            blocks: the numbers of those to run; None for all.

        Raises:
            ValueError: there are more adapters than blocks.
        """
        last = len(self.resblocks) - 1
        if len(adapters) > last + 1:
            raise UserError(
                f"Adapters.blocks holds {len(adapters)} adapters; this encoder has {last + 1} blocks."
            )
        x = x.transpose(0, 1)
        for k, block in enumerate(self.resblocks):
            if blocks is not None and k not in blocks:
                continue
            # Given only where there is something to give: what stands in a block's place need not take it.
            options: dict[str, Any] = {}
            if enter is not None:
                x, attend = enter(k, x)
                if attend is not None:
                    options["attend"] = attend
            if k < len(adapters) and adapters[k] is not None:
                options["adapter"] = adapters[k]
            if k == last and positions is not None:
                options["positions"] = positions
            x = block(x.transpose(0, 1), **options).transpose(0, 1)
        return differentiable_once(x).transpose(0, 1)

    def is_unmodified(self) -> bool:
        """Whether nothing in it was hooked, replaced, subclassed or parametrized.

        Only then may it be asked for some positions, or given tokens that are no whole sequences: whoever
        hooks or replaces a module expects `(length batch width)` at every position.
        """
        return is_unmodified(self, Transformer) and all(
            isinstance(block, ResidualAttentionBlock) and block.is_unmodified() for block in self.resblocks
        )
