"""Distances between two sets of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prompted_clip.errors import UserError


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """All distances between the rows of two matrices.

    Args:
        input1: `(m width)`.
        input2: `(n width)`.
        metric: "euclidean" (squared) or "cosine".

    Returns:
        `(m n)`.

    Raises:
        ValueError: unknown metric, or shapes that do not fit.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.shape[1] != input2.shape[1]:
        raise UserError(
            "distances need two matrices of equal width;"
            f" their shapes are {tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise UserError(f'unknown metric "{metric}"; choose "euclidean" or "cosine"')


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances `(m n)` between `(m width)` and `(n width)`."""
    squares = input1.pow(2).sum(1, keepdim=True) + input2.pow(2).sum(1)
    return torch.addmm(squares, input1, input2.t(), alpha=-2)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """One minus the cosine, `(m n)`, between `(m width)` and `(n width)`."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
