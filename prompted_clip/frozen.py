"""A frozen block's forward and backward pass, written out, with no pass over memory that is not needed.

Autograd would come to the same gradients; but not knowing that weights are frozen, it keeps more than the
gradients of the input need, fills with zeros what a slice has left out, and adds up in passes of their own
what a matrix product could add to. Here the backward pass of a block is its matrix products and little else:
on a CPU there is less memory to move, on a GPU there are fewer kernels to launch.

Attention itself stays torch's: `project` is what comes before it, `finish` what comes behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # of an attention's output

from .kernels import linear
from .norm import LayerNorm
from .perceptron import STEEPNESS, Perceptron, autocasts, folds, is_just
from .prompting import behind

if TYPE_CHECKING:
    from .transformer import ResidualAttentionBlock

_twice = False


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within, blocks are computed so that gradients have gradients, for methods of second order."""
    global _twice
    before, _twice = _twice, True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _twice = before


class Projected(NamedTuple):
    """What attention needs, and what its result is added to.

    Attributes:
        residual: `(batch rows width)`.
        queries: `(batch head rows head_width)`.
        keys, values: `(batch head length head_width)`.
    """

    residual: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


def written_out(block: ResidualAttentionBlock, *inputs: Tensor | None) -> bool:
    """Whether `block` may be computed here: no weight gets a gradient, and it is what CLIP made of it.

    Not where someone has hooked or replaced a part, or has torch cast what is multiplied.
    """
    attn, mlp = block.attn, block.mlp
    given = next(each for each in inputs if each is not None)
    if _twice or not (
        is_just(nn.MultiheadAttention, attn)
        and is_just(NonDynamicallyQuantizableLinear, attn.out_proj)
        and is_just(Perceptron, mlp)
        and mlp.is_quick_gelu()
        and all(is_just(LayerNorm, norm) for norm in (block.ln_1, block.ln_2))
    ):
        return False
    weights = (attn.in_proj_weight, attn.out_proj.weight, mlp[0].weight, mlp[2].weight)
    others = (attn.in_proj_bias, attn.out_proj.bias, mlp[0].bias, mlp[2].bias)
    norms = (block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias)
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in (*weights, *others, *norms))
    return (
        not learns
        and all(weight.dtype == given.dtype for weight in weights)
        and not autocasts(given.device.type)
        and not torch._C._are_functorch_transforms_active()
    )


def wants_gradients(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)


def project(
    block: ResidualAttentionBlock, x: Tensor, tokens: Tensor | None = None, rows: int | None = None
) -> Projected:
    """The first norm, and queries, keys and values.

    Args:
        x: `(batch length width)`.
        tokens: stand behind `x`; `(n width)`, or `(batch n width)` where each sample has its own.
        rows: how many of all tokens, from the first on, are wanted; None for all.
    """
    if wants_gradients(x, tokens):
        return Projected(*_Project.apply(x, tokens, block, rows))
    return _projected(x, tokens, block, rows)[0]


def finish(block: ResidualAttentionBlock, residual: Tensor, attended: Tensor) -> Tensor:
    """All that follows the attention: `(batch rows width)`.

    Args:
        residual: `(batch rows width)`.
        attended: `(batch head rows head_width)`.
    """
    if wants_gradients(residual, attended):
        return _Finish.apply(residual, attended, block)
    return _finished(residual, attended, block)[0]


def _projected(
    x: Tensor, tokens: Tensor | None, block: ResidualAttentionBlock, rows: int | None
) -> tuple[Projected, tuple[Tensor, ...]]:
    """And what the backward pass needs."""
    whole = x if tokens is None else behind(x, tokens)
    length, width = x.shape[1:]
    rows = whole.shape[1] if rows is None else rows
    normed, *statistics = _norm(block.ln_1, whole)
    each = linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).split(width, dim=-1)
    queries, keys, values = (block.by_head(part) for part in each)
    residual = x if rows == length else whole[:, :rows]
    return Projected(residual, queries[:, :, :rows], keys, values), (whole, *statistics)


def _finished(
    residual: Tensor, attended: Tensor, block: ResidualAttentionBlock, keep: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """And what the backward pass needs, if it is to be kept."""
    c_fc, _, c_proj = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(block.mlp))
    width = residual.shape[-1]
    flat = _without_heads(attended).reshape(-1, width)
    x = linear(flat, block.attn.out_proj.weight, block.attn.out_proj.bias)
    x += residual.reshape(-1, width)
    # QuickGELU(h) = SiLU(1.702 h) / 1.702: one factor is the norm's, the other the last product's.
    scale = STEEPNESS if folds(x) else None
    normed, *statistics = _norm(block.ln_2, x, scale)
    if scale is not None:
        hidden = linear(normed, c_fc.weight, scale * c_fc.bias)
        out = linear(F.silu(hidden, inplace=not keep), c_proj.weight, scale * c_proj.bias)
        torch.add(x, out, alpha=1 / scale, out=out)
    else:  # rounded where OpenAI's is
        hidden = F.linear(normed, c_fc.weight, c_fc.bias)
        out = F.linear(hidden * torch.sigmoid(STEEPNESS * hidden), c_proj.weight, c_proj.bias)
        out += x
    return out.view(residual.shape), (x, *statistics, hidden) if keep else ()


class _Project(torch.autograd.Function):
    """In the backward pass, what stands before the tokens costs nothing where nothing learned is in it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tokens: Tensor | None, block: ResidualAttentionBlock, rows: int | None
    ) -> tuple[Tensor, ...]:
        projected, kept = _projected(x, tokens, block, rows)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.block, ctx.length, ctx.rows = block, x.shape[1], projected.residual.shape[1]
        ctx.shared = tokens is not None and tokens.dim() == 2
        if ctx.rows <= ctx.length and not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(projected.residual)
        return tuple(projected)

    @staticmethod
    def backward(
        ctx: Any,
        of_residual: Tensor | None,
        of_queries: Tensor | None,
        of_keys: Tensor | None,
        of_values: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        _check_once()
        whole, mean, rstd = ctx.saved_tensors
        first = 0 if ctx.needs_input_grad[0] else ctx.length  # the first that needs a gradient
        rows = ctx.rows - first
        width = whole.shape[-1]
        whole, mean, rstd = (each[:, first:].contiguous() for each in (whole, mean, rstd))
        parts = [
            _without_heads(part)[:, first:] if part is not None and part.shape[2] > first else None
            for part in (of_queries, of_keys, of_values)
        ]
        # One product of all three is faster than three that are added up.
        packed = torch.cat([_of_length(part, whole) for part in parts], dim=-1)
        gradient = linear(packed.view(-1, 3 * width), ctx.block.attn.in_proj_weight.t())
        gradient = _norm_backward(ctx.block.ln_1, gradient.view(whole.shape), whole, mean, rstd)
        if of_residual is not None and rows > 0:
            gradient[:, :rows] += of_residual[:, first:]

        of_x = gradient[:, : ctx.length] if first == 0 else None
        of_tokens = None
        if ctx.needs_input_grad[1]:
            of_tokens = gradient[:, ctx.length - first :]
            of_tokens = of_tokens.sum(dim=0) if ctx.shared else of_tokens
        return of_x, of_tokens, None, None


class _Finish(torch.autograd.Function):
    """The backward pass needs no more of the perceptron than its hidden layer."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, attended: Tensor, block: ResidualAttentionBlock) -> Tensor:
        out, kept = _finished(residual, attended, block, keep=True)
        ctx.block, ctx.heads = block, attended.shape[1]
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor, None]:
        _check_once()
        x, mean, rstd, hidden = ctx.saved_tensors
        block, shape = ctx.block, of_out.shape
        c_fc, _, c_proj = block.mlp
        of_out = of_out.reshape(x.shape)
        steep = hidden if folds(x) else STEEPNESS * hidden
        of_hidden = linear(of_out, c_proj.weight.t())
        # QuickGELU'(h) = SiLU'(1.702 h): the factors before and behind cancel each other.
        torch.ops.aten.silu_backward.grad_input(of_hidden, steep, grad_input=of_hidden)
        of_x = _norm_backward(block.ln_2, linear(of_hidden, c_fc.weight.t()), x, mean, rstd)
        of_x += of_out
        of_attended = linear(of_x, block.attn.out_proj.weight.t()).view(*shape[:-1], ctx.heads, -1)
        return of_x.view(shape), of_attended.transpose(1, 2), None


def _check_once() -> None:
    """Raises a `RuntimeError` where the gradients computed now are to have gradients themselves."""
    if torch.is_grad_enabled():  # as with create_graph=True
        raise RuntimeError(
            "CLIP's frozen blocks give gradients, but no gradients of gradients (create_graph=True). Compute "
            "the loss within clip.frozen.twice_differentiable(), which costs time and memory."
        )


def _norm(norm: LayerNorm, x: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Normed `x`, times `scale`, and the statistics for the backward pass."""
    wide, weight, bias = norm.widened(x)
    if scale is not None:
        weight, bias = scale * weight, scale * bias
    normed, mean, rstd = torch.native_layer_norm(wide, norm.normalized_shape, weight, bias, norm.eps)
    return normed.to(x.dtype), mean, rstd


def _norm_backward(norm: LayerNorm, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of what was normed, in memory of its own."""
    wide, weight, bias = norm.widened(x)
    of_x, _, _ = torch.ops.aten.native_layer_norm_backward(
        gradient.to(wide.dtype), wide, norm.normalized_shape, mean, rstd, weight, bias, [True, False, False]
    )
    return of_x.to(x.dtype)


def _of_length(part: Tensor | None, whole: Tensor) -> Tensor:
    """Gradients of the first rows, with zeros behind them: of the shape of `whole`."""
    if part is None:
        return torch.zeros_like(whole)
    missing = whole.shape[1] - part.shape[1]
    return F.pad(part, (0, 0, 0, missing)) if missing else part


def _without_heads(x: Tensor) -> Tensor:
    """`(batch head length head_width)` → `(batch length width)`."""
    return x.transpose(1, 2).flatten(2)
