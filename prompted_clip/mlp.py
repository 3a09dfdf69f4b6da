"""The MLP of a transformer's block, and its activation, QuickGELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import autocast_enabled, is_unmodified, linear

QUICK_GELU_ALPHA = 1.702


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the activation of OpenAI's models."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(QUICK_GELU_ALPHA * x)


class MLP(nn.Sequential):
    """`c_fc`, an activation and `c_proj`, with QuickGELU fused where that is exact.

    QuickGELU(x) = SiLU(1.702 x) / 1.702. The two factors are applied where tensors are narrow, before the
    first linear layer and after the second, so that the hidden layer is read once instead of three times,
    and twice instead of seven times in the backward pass; the weights stay as they are. In float32 and
    float64 alone: half precision would round elsewhere than OpenAI's. Layers that were replaced, hooked or
    parametrized are called as a `Sequential` calls them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(... width)` → `(... width)`."""
        if not can_use_silu(x) or not self.is_quick_gelu():
            return super().forward(x)
        c_fc, _, c_proj = self
        assert isinstance(c_fc, nn.Linear)
        assert isinstance(c_proj, nn.Linear)
        if not c_fc.weight.dtype == c_proj.weight.dtype == x.dtype:
            return super().forward(x)
        hidden = F.silu(linear(QUICK_GELU_ALPHA * x, c_fc.weight, QUICK_GELU_ALPHA * c_fc.bias))
        out = linear(hidden, c_proj.weight, QUICK_GELU_ALPHA * c_proj.bias)
        # In place for the reason that `add_to` tells; no view that an autograd function returns may be.
        return out / QUICK_GELU_ALPHA if out._is_view() else out.div_(QUICK_GELU_ALPHA)

    def parts_are_unmodified(self) -> bool:
        """Whether this is an activation between two linear layers, none of them hooked or replaced."""
        return (
            len(self) == 3
            and (is_unmodified(self[1], QuickGELU) or is_unmodified(self[1], nn.GELU))
            and all(is_unmodified(self[k], nn.Linear) for k in (0, 2))
        )

    def is_quick_gelu(self) -> bool:
        """Whether this is QuickGELU between two linear layers with biases, all unmodified."""
        return (
            self.parts_are_unmodified()
            and isinstance(self[1], QuickGELU)
            and self[0].bias is not None
            and self[2].bias is not None
        )


def can_use_silu(x: Tensor) -> bool:
    """Whether QuickGELU of such an input may be computed as SiLU."""
    return x.dtype in (torch.float32, torch.float64) and not autocast_enabled(x.device.type)
