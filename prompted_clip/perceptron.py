"""The perceptron of a transformer's block, whose QuickGELU costs no more passes over memory than it must."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEEPNESS = 1.702  # of QuickGELU


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the activation of OpenAI's models."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(STEEPNESS * x)


class Perceptron(nn.Sequential):
    """A `Sequential` of `c_fc`, an activation and `c_proj`, in fewer passes where that is exact.

    QuickGELU(x) = SiLU(1.702 x) / 1.702. The two factors go through the matrix products around it, and only
    SiLU is left to do: one pass over the hidden layer instead of three, two instead of seven in the backward
    pass, and one tensor kept for it instead of two. The weights stay as they are. In float32 and float64
    alone: in half precision the products would be rounded elsewhere than OpenAI's. Parts that someone has
    replaced or hooked are called, as a `Sequential` calls them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(... width)` → `(... width)`."""
        if not (folds(x) and self.is_quick_gelu() and all(self[k].weight.dtype == x.dtype for k in (0, 2))):
            return super().forward(x)
        c_fc, _, c_proj = self
        assert isinstance(c_fc, nn.Linear)
        assert isinstance(c_proj, nn.Linear)
        # The factors stand where tensors are narrow: before the first product, and behind the second.
        hidden = F.linear(STEEPNESS * x, c_fc.weight, STEEPNESS * c_fc.bias)
        return torch.add(c_proj.bias, F.silu(hidden) @ c_proj.weight.t(), alpha=1 / STEEPNESS)

    def is_quick_gelu(self) -> bool:
        """Whether this is QuickGELU between two linear layers, all as torch and OpenAI made them."""
        kinds = (nn.Linear, QuickGELU, nn.Linear)
        return (
            len(self) == len(kinds)
            and all(is_just(kind, part) for kind, part in zip(kinds, self, strict=True))
            and all(part.bias is not None for part in (self[0], self[2]))
        )


def folds(x: Tensor) -> bool:
    """Whether QuickGELU of such an input may be computed as SiLU."""
    return x.dtype in (torch.float32, torch.float64) and not autocasts(x.device.type)


def is_just(kind: type[nn.Module], module: nn.Module) -> bool:
    """Whether calling the module does what its class does, and nothing more."""
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def autocasts(device_type: str) -> bool:
    """Whether torch casts what is multiplied; on "meta", for example, it never does."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
