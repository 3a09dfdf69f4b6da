"""OpenAI's `clip.model`, handed on from `prompted_clip`."""

from prompted_clip.factory import build_model
from prompted_clip.model import (
    CLIP,
    LayerNorm,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
    convert_weights,
)
from prompted_clip.resnet import AttentionPool2d, Bottleneck, ModifiedResNet

__all__ = [
    "CLIP",
    "AttentionPool2d",
    "Bottleneck",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]
