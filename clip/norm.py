"""CLIP's layer norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in at least float32, and gives back the type that it was given."""

    def forward(self, x: Tensor) -> Tensor:
        wide, weight, bias = self.widened(x)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input, weight and bias in the type that is computed in."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return wide, self.weight.to(wide.dtype), self.bias.to(wide.dtype)
