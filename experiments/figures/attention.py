"""What the CLS token of CLIP's image encoder attends to, with a run's prompts and without.

Attention is that of one block, a mean over its heads; or rolled out over the blocks, as in Abnar and Zuidema
(2020, arXiv 2005.00928): each block hands on half of what its input was, and half of what it attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor, nn

from dassl.utils import read_image
from experiments.load_run import eval_transform, labels_of, load_trainer
from prompted_clip.errors import UserError
from prompted_clip.model import VisionTransformer
from prompted_clip.prompting import Prompts

from .style import NamedFigure, finish, panels, styled, wrapped

# From clear to a strong colour: the picture is seen where attention is low.
OVERLAY = LinearSegmentedColormap.from_list("attention", ["#D55E0000", "#D55E00F2"])
UNIT = (0, 1, 0, 1)  # so that image and patches lie on each other


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
def block_attentions(
    visual: VisionTransformer, images: Tensor, prompts: Prompts | None = None
) -> list[Tensor]:
    """The attention of each block, in float32: `(batch head length length)`, rows sum to 1.

    Args:
        images: `(batch 3 height width)`.
        prompts: enter as in `VisionTransformer.forward`, behind the patches.
    """
    attentions: list[Tensor] = []

    def ask_for_weights(_: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, options | {"need_weights": True, "average_attn_weights": False}

    with ExitStack() as hooks:
        for block in visual.transformer.blocks():
            before = block.attn.register_forward_pre_hook(ask_for_weights, with_kwargs=True)
            after = block.attn.register_forward_hook(lambda _, __, output: attentions.append(output[1]))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        visual(images, prompts)
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
    visual: VisionTransformer, image: Tensor, prompts: Prompts | None, block: int | None, rolled_out: bool
) -> Attention:
    """Where CLS looks.

    Args:
        image: `(3 height width)`.
        block: counted from 1; None for the last.
    """
    attentions = block_attentions(visual, image[None], prompts)
    side = round((visual.positional_embedding.shape[0] - 1) ** 0.5)
    slots = 1 + side**2
    last = attentions[: block or len(attentions)]
    if rolled_out:
        row = rollout(last, len(prompts.deep) if prompts else 0, slots)[0, 0]
    else:
        row = last[-1][0, :, 0].mean(dim=0)
    row = row.cpu()
    return Attention(row[1:slots].reshape(side, side).numpy(), float(row[0]), float(row[slots:].sum()))


@dataclass
class ImageAttention:
    """The attention of CLS on an image.

    Attributes:
        pixels: as the model sees it, `(height width 3)` from 0 to 1.
        prompted: None if the run puts no tokens into the image encoder.
    """

    name: str
    pixels: np.ndarray
    plain: Attention
    prompted: Attention | None


def look_at(
    folder: Path, images: Sequence[Path], block: int | None = None, rolled_out: bool = False, root: str = ""
) -> list[ImageAttention]:
    """The attention on each image, of a run and of plain CLIP.

    Raises:
        FileNotFoundError: no run, no checkpoint, no image.
        ValueError: an image cannot be read, the encoder is a ResNet, or there is no such block.
    """
    pictures = [read_image(str(path)) for path in images]
    trainer = load_trainer(folder, root)
    model: Any = getattr(trainer, "model", None)
    visual = getattr(getattr(model, "clip_model", None), "visual", None)
    if not isinstance(visual, VisionTransformer):
        raise UserError(
            f"{folder}: the image encoder of {trainer.cfg.MODEL.BACKBONE.NAME} is no ViT; attention of CLS "
            "over patches is drawn of ViTs only."
        )
    blocks = visual.transformer.layers
    if block is not None and not 1 <= block <= blocks:
        raise UserError(f"--block {block}: this image encoder has blocks 1 to {blocks}.")
    visual.float()
    with torch.no_grad():
        prompts = model.prompt_learner.image_prompts()
    transform = eval_transform(trainer)
    mean, std = (np.array(trainer.cfg.INPUT[key]) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    found = []
    for path, picture in zip(images, pictures, strict=True):
        tensor: Tensor = transform(picture)
        pixels = tensor.permute(1, 2, 0).numpy()
        if "normalize" in trainer.cfg.INPUT.TRANSFORMS:
            pixels = pixels * std + mean
        on_device = tensor.to(trainer.device)
        plain = cls_attention(visual, on_device, None, block, rolled_out)
        prompted = None if prompts is None else cls_attention(visual, on_device, prompts, block, rolled_out)
        found.append(
            ImageAttention(
                f"{path.resolve().parent.name}\n{path.name}", np.clip(pixels, 0, 1), plain, prompted
            )
        )
    return found


@styled
def draw_attention(
    seen: Sequence[ImageAttention], folder: Path, block: int | None, rolled_out: bool
) -> NamedFigure:
    """A row an image: the image, plain CLIP's attention, and that with the run's prompts, on one scale."""
    (label,) = labels_of([folder])
    columns = 3 if seen[0].prompted else 2
    figure, axes = panels(columns, len(seen), 2.2 * columns + 0.8, 2.4)
    for row, each in zip(axes, seen, strict=True):
        maps = [each.plain, *([each.prompted] if each.prompted else [])]
        most = max(attention.patches.max() for attention in maps)
        row[0].imshow(each.pixels)
        row[0].set_title(each.name)
        for axis, attention, name in zip(row[1:], maps, ("plain CLIP", wrapped(label, 2.2)), strict=False):
            axis.imshow(each.pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1, extent=UNIT)
            percent = 100 * attention.patches
            shown = axis.imshow(percent, cmap=OVERLAY, vmin=0, vmax=100 * most, extent=UNIT)
            tokens = f", prompts {100 * attention.prompts:.1f} %" if attention is each.prompted else ""
            axis.set_title(f"{name}\npatches {100 * attention.patches.sum():.1f} %{tokens}")
        bar = figure.colorbar(shown, ax=row[-1], shrink=0.8)
        bar.set_label("attention (% per patch)")
    for axis in axes.flat:
        axis.set_axis_off()
    where = f"block {block}" if block else "the last block"
    kind = f"rolled out up to {where}" if rolled_out else f"in {where}, mean over the heads"
    caption = f"Attention of the CLS token {kind}; what is not on patches or prompts, CLS keeps for itself."
    notes = []
    if seen[0].prompted is None:
        notes = [f"{label} puts no tokens into the image encoder: its attention is that of plain CLIP."]
    finish(figure, [caption, *notes])
    return NamedFigure("attention", f"Attention of CLS, {label}", caption, figure, notes)
