"""The papers' way of computing CLIP with prompts, to measure beside ours: OpenAI's code with MaPLe's prompts.

Each class's sentence runs through the text encoder by itself with its 77 tokens, once per image where prompts
are made of the image; every block computes all positions; blocks are their modules, one after the other. It
uses OpenAI's parameter names and `Prompts` alone, and nothing of how `prompted_clip` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prompted_clip import PromptedCLIP, Prompts, SharedPrefixText


def compute_as_reference(model: PromptedCLIP) -> None:
    """Makes `model` compute as the papers' code does."""
    clip_model: Any = model.clip_model
    if isinstance(clip_model.visual.conv1, nn.Conv2d) and hasattr(clip_model.visual, "class_embedding"):
        clip_model.encode_image = partial(encode_image, clip_model)
    for module in model.modules():
        if isinstance(module, SharedPrefixText):
            text: Any = module
            text.encode = partial(encode_sentences, text)


def encode_image(
    clip_model: Any, image: Tensor, prompts: Prompts | None = None, adapters: None = None
) -> Tensor:
    """`(batch 3 height width)` → `(batch feature)`; prompts stand behind the patches."""
    visual, prompts = clip_model.visual, prompts or Prompts()
    x = visual.conv1(image.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
    slots = torch.arange(x.shape[1], x.shape[1] + count(prompts), device=x.device)
    if prompts.tokens is not None:
        x = torch.cat([x, prompts.tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    x = run_blocks(visual.transformer.resblocks, visual.ln_pre(x), prompts.deep, slots.expand(len(x), -1))
    return visual.ln_post(x[:, 0]) @ visual.proj.to(x.dtype)


def encode_sentences(
    text: SharedPrefixText, clip_model: Any, prompts: Prompts | None = None, adapters: None = None
) -> Tensor:
    """`(class feature)`, or `(image class feature)` where each image has prompts of its own."""
    prompts = prompts or Prompts()
    if prompts.tokens is None or prompts.tokens.dim() == 2 or prompts.class_specific:
        return encode_text(clip_model, text.tokens, text.slots, prompts)
    return torch.stack([encode_sentences(text, clip_model, Prompts(own)) for own in prompts.tokens])


def encode_text(clip_model: Any, ids: Tensor, slots: Tensor, prompts: Prompts) -> Tensor:
    """Token ids `(class length)` → `(class feature)`; prompts overwrite the words at `slots`, `(class n)`."""
    x = clip_model.token_embedding(ids).to(clip_model.dtype)
    if prompts.tokens is not None:
        x = overwritten(x, prompts.tokens, slots)
    x = x + clip_model.positional_embedding.to(x.dtype)
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=x.device, dtype=x.dtype).triu(1)
    x = clip_model.ln_final(run_blocks(clip_model.transformer.resblocks, x, prompts.deep, slots, mask))
    eot = ids.argmax(dim=-1)  # it has the highest id
    return x[torch.arange(len(x), device=x.device), eot] @ clip_model.text_projection.to(x.dtype)


def run_blocks(
    blocks: Any, x: Tensor, deep: Sequence[Tensor | None], slots: Tensor, mask: Tensor | None = None
) -> Tensor:
    """OpenAI's blocks on `(batch length width)`; deep prompts overwrite `slots` from the second block on."""
    for k, block in enumerate(blocks):
        if 0 < k <= len(deep) and (tokens := deep[k - 1]) is not None:
            x = overwritten(x, tokens, slots)
        y = block.ln_1(x).transpose(0, 1)
        y = block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + y.transpose(0, 1)
        x = x + block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(block.ln_2(x))))
    return x


def overwritten(x: Tensor, tokens: Tensor, slots: Tensor) -> Tensor:
    """`x` with `tokens`, `(n width)` or `(batch n width)`, at `slots`, `(batch n)`."""
    tokens = tokens.to(x.dtype).expand(len(x), -1, -1)
    return x.scatter(1, slots[..., None].expand_as(tokens), tokens)


def count(prompts: Prompts) -> int:
    return 0 if prompts.tokens is None else prompts.tokens.shape[-2]
