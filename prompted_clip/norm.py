"""CLIP's layer norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .ops import HALF


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in at least float32, and returns the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        wide, weight, bias = self.upcast(x)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)

    def upcast(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input, weight and bias, such that a norm of them computes in at least float32."""
        if x.dtype not in HALF:
            return x, self.weight.to(x.dtype), self.bias.to(x.dtype)
        wide = x if x.device.type == "cpu" else x.float()  # a CPU's norm widens what it reads
        return wide, self.weight.float(), self.bias.float()
