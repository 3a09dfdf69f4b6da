"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prompted_clip.errors import UserError


def compute_accuracy(
    output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """The share of samples whose label is among the k highest scores.

    Args:
        output: scores `(batch class)`, or a sequence whose first element they are.
        target: labels `(batch)`.
        topk: the values of k.

    Returns:
        One tensor of one element per k, in percent.

    Raises:
        ValueError: k is larger than the number of classes.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(scores, Tensor)
    if max(topk) > scores.shape[1]:
        raise UserError(f"top-{max(topk)} accuracy needs as many classes; the output has {scores.shape[1]}")
    ranked = scores.topk(max(topk), dim=1).indices
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].float().sum().reshape(1) * (100.0 / target.shape[0]) for k in topk]
