"""The papers' way of computing CLIP with prompts and adapters, to measure beside ours: OpenAI's code.

Each class's sentence runs through the text encoder by itself with its 77 tokens, once per image where prompts
are made of the image; every block computes all positions; blocks are their modules, one after the other. It
uses OpenAI's parameter names, `Prompts` and `Adapters` alone, and nothing of how `prompted_clip` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompted_clip import Adapters, BlockAdapter, PromptedCLIP, Prompts, SharedPrefixText
from prompted_clip.adapters import replaced_tensors

# Puts tokens into `(batch length width)`: inserted as new positions, or in the place of those there.
Put = Callable[[Tensor, Tensor, bool], Tensor]


def compute_as_reference(model: PromptedCLIP) -> None:
    """Makes `model` compute as the papers' code does."""
    clip_model: Any = model.clip_model
    if isinstance(clip_model.visual.conv1, nn.Conv2d) and hasattr(clip_model.visual, "class_embedding"):
        clip_model.encode_image = partial(encode_image, clip_model)
        clip_model.visual.hidden_states = partial(hidden_states, clip_model.visual)
    for module in model.modules():
        if isinstance(module, SharedPrefixText):
            text: Any = module
            text.encode = partial(encode_sentences, text)


def encode_image(
    clip_model: Any, image: Tensor, prompts: Prompts | None = None, adapters: Adapters | None = None
) -> Tensor:
    """`(batch 3 height width)` → `(batch feature)`."""
    visual, adapters = clip_model.visual, adapters or Adapters()
    with replaced_tensors(clip_model, adapters.tensors):
        x = image.to(visual.conv1.weight.dtype)
        x = hidden_states(visual, x, prompts, adapters.blocks)
        return visual.ln_post(x[:, 0]) @ visual.proj.to(x.dtype)


def hidden_states(
    visual: Any,
    x: Tensor,
    prompts: Prompts | None = None,
    adapters: Sequence[BlockAdapter | None] = (),
    positions: Any = None,
) -> Tensor:
    """`(batch 3 height width)` → `(batch position width)`; prompts stand behind the patches."""
    prompts = prompts or Prompts()
    x = visual.conv1(x).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
    patches = x.shape[1]

    def put(x: Tensor, tokens: Tensor, new: bool) -> Tensor:
        tokens = tokens.to(x.dtype).expand(len(x), -1, -1)
        if not new:
            tokens = blended(tokens, x[:, patches : patches + tokens.shape[1]], prompts.blend)
        return torch.cat([x[:, :patches], tokens, x[:, patches + (not new) * tokens.shape[1] :]], dim=1)

    if (tokens := prompts.embedded()) is not None:
        x = put(x, tokens, True)
    x = run_blocks(visual.transformer.resblocks, visual.ln_pre(x), prompts, adapters, put)
    return x if positions is None else x[:, positions]


def encode_sentences(
    text: SharedPrefixText,
    clip_model: Any,
    prompts: Prompts | None = None,
    adapters: Adapters | None = None,
    whole_sentences: bool = True,
) -> Tensor:
    """`(class feature)`, or `(image class feature)` where each image has prompts of its own."""
    prompts, adapters = prompts or Prompts(), adapters or Adapters()
    if prompts.tokens is None or prompts.tokens.dim() == 2 or prompts.class_specific:
        return encode_text(clip_model, text.tokens, text.slots, prompts, adapters)
    return torch.stack(
        [encode_sentences(text, clip_model, Prompts(own, prompts.deep), adapters) for own in prompts.tokens]
    )


def encode_text(clip_model: Any, ids: Tensor, slots: Tensor, prompts: Prompts, adapters: Adapters) -> Tensor:
    """Token ids `(class length)` → `(class feature)`; prompts overwrite the words at `slots`, `(class n)`."""

    def put(x: Tensor, tokens: Tensor, new: bool) -> Tensor:
        tokens = tokens.to(x.dtype).expand(len(x), -1, -1)
        if new:
            return torch.cat([x[:, :1], tokens, x[:, 1:]], dim=1)
        index = torch.arange(1, 1 + tokens.shape[1], device=x.device).expand(len(x), -1)
        index = (index if prompts.inserts() else slots)[..., None].expand_as(tokens)
        return x.scatter(1, index, blended(tokens, x.gather(1, index), prompts.blend))

    with replaced_tensors(clip_model, adapters.tensors):
        x = clip_model.token_embedding(ids).to(clip_model.dtype)
        if (tokens := prompts.embedded()) is not None:
            x = put(x, tokens, False)
        x = x + clip_model.positional_embedding.to(x.dtype)
        x = run_blocks(clip_model.transformer.resblocks, x, prompts, adapters.blocks, put, causal=True)
        eot = ids.argmax(dim=-1) + prompts.inserted()  # it has the highest id
        x = clip_model.ln_final(x)[torch.arange(len(x), device=x.device), eot]
        return x @ clip_model.text_projection.to(x.dtype)


def run_blocks(
    blocks: Any,
    x: Tensor,
    prompts: Prompts,
    adapters: Sequence[BlockAdapter | None],
    put: Put,
    causal: bool = False,
) -> Tensor:
    """OpenAI's blocks on `(batch length width)`, with what is put in before each, and beside it."""
    for k, block in enumerate(blocks):
        tokens = prompts.before(k)
        if tokens is not None and (k > 0 or prompts.inserts()):
            x = put(x, tokens, prompts.inserts(k))
        mask = None
        if causal:
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=x.device, dtype=x.dtype).triu(1)
        adapter = adapters[k] if k < len(adapters) else None
        x = run_block(block, x, adapter or BlockAdapter(), mask)
    return x


def run_block(block: Any, x: Tensor, adapter: BlockAdapter, mask: Tensor | None) -> Tensor:
    normed = block.ln_1(x)
    if adapter.is_in_attention():
        h = x + adapted_attention(block.attn, normed, adapter, mask)
    else:
        y = normed.transpose(0, 1)
        h = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0].transpose(0, 1)
    normed_2 = block.ln_2(h)
    out = h + block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(normed_2)))
    out = out if adapter.mlp is None else out + adapter.mlp(normed_2)
    return out if adapter.block is None else out + adapter.block(x, normed)


def adapted_attention(attn: Any, x: Tensor, adapter: BlockAdapter, mask: Tensor | None) -> Tensor:
    """Attention with something added to its queries, keys, values or output: `(batch length width)`."""
    parts = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    added = (adapter.query, adapter.key, adapter.value)
    parts = tuple(part if add is None else part + add(x) for part, add in zip(parts, added, strict=True))
    q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)
    joined = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    out = attn.out_proj(joined)
    return out if adapter.out is None else out + adapter.out(joined)


def blended(new: Tensor, old: Tensor, blend: float | Tensor) -> Tensor:
    return blend * new + (1 - blend) * old if isinstance(blend, Tensor) or blend != 1 else new
