"""What the CLS token of CLIP's image encoder attends to, with a run's prompts and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from dassl.utils import read_image
from experiments.load_run import eval_transform, labels_of, load_trainer
from prompted_clip.attention import Attention, cls_attention
from prompted_clip.errors import UserError
from prompted_clip.model import VisionTransformer

from .style import NamedFigure, finish, panels, styled, wrapped

# From clear to a strong colour: the picture is seen where attention is low.
OVERLAY = LinearSegmentedColormap.from_list("attention", ["#D55E0000", "#D55E00F2"])
UNIT = (0, 1, 0, 1)  # so that image and patches lie on each other


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
        batch = tensor.to(trainer.device)[None]
        plain = cls_attention(visual, partial(visual, batch), block, rolled_out)
        prompted = None
        if prompts is not None:
            encode = partial(visual, batch, prompts)
            prompted = cls_attention(visual, encode, block, rolled_out, len(prompts.deep))
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
