"""Accuracy and distances against plain formulas."""

from __future__ import annotations

import pytest
import torch

from dassl.metrics import (
    compute_accuracy,
    compute_distance_matrix,
    cosine_distance,
    euclidean_squared_distance,
)


def test_accuracy_in_percent() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.15, 0.05], [0.3, 0.2, 0.5], [0.2, 0.3, 0.5]])
    labels = torch.tensor([1, 1, 2, 0])
    top1, top2, top3 = compute_accuracy(scores, labels, topk=(1, 2, 3))
    assert top1.shape == (1,)
    assert [top1.item(), top2.item(), top3.item()] == [50, 75, 100]
    assert compute_accuracy((scores, "features"), labels)[0].item() == 50
    assert compute_accuracy([scores], labels)[0].item() == 50
    with pytest.raises(ValueError, match=r"top-5.*3"):
        compute_accuracy(scores, labels, topk=(1, 5))


def test_distances() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    squared = torch.tensor([[((x - y) ** 2).sum() for y in b] for x in a], dtype=torch.float64)
    cosine = torch.tensor([[1 - x @ y / (x.norm() * y.norm()) for y in b] for x in a], dtype=torch.float64)
    assert torch.allclose(euclidean_squared_distance(a, b), squared)
    assert torch.allclose(cosine_distance(a, b), cosine)
    assert torch.equal(compute_distance_matrix(a, b), euclidean_squared_distance(a, b))
    assert torch.equal(compute_distance_matrix(a, b, "cosine"), cosine_distance(a, b))


def test_wrong_shapes_and_metrics_are_errors() -> None:
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="manhattan"):
        compute_distance_matrix(a, a, "manhattan")
    for other in (torch.zeros(2, 4), torch.zeros(3)):
        with pytest.raises(ValueError, match="shapes"):
            compute_distance_matrix(a, other)
