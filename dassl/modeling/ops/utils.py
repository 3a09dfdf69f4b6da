"""Small functions for semi-supervised training and domain adaptation, under upstream's names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Probabilities `(batch class)` to the power of `temperature`, each row again of sum 1."""
    sharpened = p**temperature
    return sharpened / sharpened.sum(1, keepdim=True)


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """One-hot vectors `(batch class)` of labels `(batch)`, in float32 on the CPU."""
    return F.one_hot(label.detach().cpu().long(), num_classes).float()


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in reverse order along their first dimension."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in the same random order along their first dimension."""
    order = torch.randperm(len(data))
    return data[order], label[order]


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """A weight that rises as exp(-5 (1 - t)²), with t from 0 to 1 over `rampup_length` steps."""
    return math.exp(-5 * (1 - linear_rampup(current, rampup_length)) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """A weight that rises evenly from 0 to 1 over `rampup_length` steps."""
    return min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Moves the parameters of `ema_model` to `alpha` of themselves and `1 - alpha` of `model`'s."""
    for average, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(parameter, alpha=1 - alpha)
