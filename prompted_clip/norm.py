"""CLIP's layer norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import HALF


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in at least float32, and gives back the type that it was given."""

    def forward(self, x: Tensor) -> Tensor:
        wide, weight, bias = self.widened(x)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input, weight and bias for a norm that computes in at least float32."""
        if x.dtype not in HALF:
            return x, self.weight.to(x.dtype), self.bias.to(x.dtype)
        wide = x if x.device.type == "cpu" else x.float()  # a CPU's norm widens what it reads
        return wide, self.weight.float(), self.bias.float()
