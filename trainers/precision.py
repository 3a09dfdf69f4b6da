"""The precision of a run. The only place that casts a model or opens an autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from prompted_clip.model import convert_weights

PRECISIONS = ("fp32", "fp16", "bf16", "amp")


class Precision:
    """`fp32`, `fp16`, `bf16` or `amp`, on any device.

    fp32: all in float32. fp16, bf16: CLIP's matrices are stored and multiplied in that type, its norms
    compute in float32. amp: float32 weights under torch's autocast, to float16 with loss scaling on a GPU, to
    bfloat16 on a CPU. What is learned is float32 in each.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        scaled = name == "amp" and torch.get_autocast_dtype(device.type) == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def cast(self, clip_model: nn.Module) -> None:
        """Casts CLIP's weights, in float32, to the type that they are stored in."""
        if self.name == "fp16":
            convert_weights(clip_model, torch.float16)
        elif self.name == "bf16":
            convert_weights(clip_model, torch.bfloat16)

    def autocast(self) -> AbstractContextManager[None]:
        """The autocast context of a forward pass."""
        return torch.autocast(self.device.type, enabled=self.name == "amp")
