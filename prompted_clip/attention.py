"""What the CLS token of CLIP's image encoder attends to.

Attention is that of one block, a mean over its heads; or rolled out over the blocks, as in Abnar and Zuidema
(2020, arXiv 2005.00928): each block hands on half of what its input was, and half of what it attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .model import VisionTransformer
from .prompt_learner import at_least_float32


@dataclass
class Attention:
    """Of one image.

    Attributes:
        patches: `(row column)`, the share that goes to each patch.
        cls, prompts: the share that CLS keeps, and what goes to the prompt tokens; all three sum to 1.
    """

    patches: np.ndarray
    cls: float
    prompts: float


@torch.no_grad()
def block_attentions(visual: VisionTransformer, encode: Callable[[], Any]) -> list[Tensor]:
    """The attention of each block, in at least float32: `(batch head length length)`, rows sum to 1.

    Args:
        encode: runs images through `visual`.
    """
    attentions: list[Tensor] = []

    def ask_for_weights(_: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, options | {"need_weights": True, "average_attn_weights": False}

    with ExitStack() as hooks:
        for block in visual.transformer.blocks():
            before = block.attn.register_forward_pre_hook(ask_for_weights, with_kwargs=True)
            after = block.attn.register_forward_hook(
                lambda _, __, output: attentions.append(at_least_float32(output[1]))
            )
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        encode()
    return attentions


def rollout(attentions: Sequence[Tensor], deep: int, slots: int) -> Tensor:
    """What each token of the last block stems from, `(batch length length)`; rows sum to 1.

    Args:
        attentions: of the blocks, each `(batch head length length)`.
        deep: how many blocks after the first get prompts of their own; those stem from no earlier token.
        slots: where the prompt tokens begin.
    """
    size = attentions[0].shape[-1]
    identity = torch.eye(size, device=attentions[0].device)
    source = identity.expand(len(attentions[0]), size, size).clone()
    for k, weights in enumerate(attentions):
        if 0 < k <= deep:
            source[:, slots:] = identity[slots:]
        source = (0.5 * weights.mean(dim=1) + 0.5 * identity) @ source
    return source


def cls_attention(
    visual: VisionTransformer,
    encode: Callable[[], Any],
    block: int | None = None,
    rolled_out: bool = False,
    deep: int = 0,
) -> Attention:
    """Where CLS looks, in one image.

    Args:
        encode: runs the image through `visual`.
        block: counted from 1; None for the last.
        rolled_out: whether attention is rolled out up to that block.
        deep: as of `rollout`.
    """
    attentions = block_attentions(visual, encode)
    side = round((visual.positional_embedding.shape[0] - 1) ** 0.5)
    slots = 1 + side**2
    last = attentions[: block or len(attentions)]
    row = (rollout(last, deep, slots)[0, 0] if rolled_out else last[-1][0, :, 0].mean(dim=0)).cpu()
    return Attention(row[1:slots].reshape(side, side).numpy(), float(row[0]), float(row[slots:].sum()))
