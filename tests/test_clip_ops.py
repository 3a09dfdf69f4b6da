"""Ways of computing that are taken instead of torch's own choice give torch's numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error
from torch import Tensor

from prompted_clip import ops
from prompted_clip.model import ResidualAttentionBlock
from prompted_clip.norm import LayerNorm

ROUNDING = 1e-6  # of a sum in float32


@pytest.fixture(params=[True, False])
def onednn(request, monkeypatch) -> bool:
    """Whether oneDNN is taken, on any processor."""
    if request.param and ops.ONEDNN_LINEAR is None:
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(ops, "_ONEDNN_IS_FASTER", request.param)
    return request.param


@pytest.mark.parametrize(("vendor", "is_amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_maker_of_the_processor_is_known(vendor, is_amd, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\n")
    monkeypatch.setattr(ops, "CPU", tmp_path / "cpuinfo")
    assert ops._is_amd() is is_amd
    monkeypatch.setattr(ops, "CPU", tmp_path / "none")  # as on Windows
    monkeypatch.setattr(ops.platform, "processor", lambda: f"Family 6 Model 1 Stepping 0, {vendor}")
    assert ops._is_amd() is is_amd


def transposed(weight: Tensor) -> Tensor:
    """The same numbers, lying in memory as a transpose."""
    return weight.t().contiguous().t()


@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (88, 24), (3, 5, 24)])
@pytest.mark.parametrize("lying", [Tensor.contiguous, transposed])
@pytest.mark.parametrize("biased", [True, False])
def test_products(shape, lying, biased, onednn):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(40, 24), torch.randn(40) if biased else None
    right = x.double() @ weight.double().t() + (bias.double() if biased else 0)
    ours = ops.linear(x, lying(weight), bias)
    assert ours.shape == right.shape
    assert ours.dtype == torch.float32
    assert not len(right) or relative_error(ours.double(), right) <= ROUNDING


def test_a_product_takes_part_of_a_tensor(onednn):
    x, weight = torch.randn(6, 48), torch.randn(72, 24)
    right = x[::2, 24:].double() @ weight[24:48].double().t()
    assert relative_error(ops.linear(x[::2, 24:], weight[24:48]).double(), right) <= ROUNDING


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs(dtype, onednn):
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((5, 24), (40, 24), (40,)))
    assert torch.equal(ops.linear(x, weight, bias), F.linear(x, weight, bias))


def test_a_block_in_float32_is_as_near_float64_as_torchs(onednn):
    torch.manual_seed(0)
    block = ResidualAttentionBlock(64, 4).requires_grad_(False)
    x = torch.randn(3, 7, 64, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    output = block(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    right = block.double()(exact)
    (expected,) = torch.autograd.grad(right.square().sum(), exact)
    assert relative_error(output.double(), right) <= 2 * ROUNDING
    assert relative_error(gradient.double(), expected) <= 2 * ROUNDING


@pytest.mark.parametrize("dtype", ops.HALF)
@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_half_precision_is_rounded_once(dtype, masked):
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 9, 8).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.full((9, 9), -torch.inf).triu(1) if masked else None
    exact = [each.detach().double().requires_grad_() for each in parts]
    ours = ops.attention(*parts, None if mask is None else mask.to(dtype))
    right = F.scaled_dot_product_attention(*exact, None if mask is None else mask.double())
    assert ours.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert bool(((ours.double() - right).abs() <= 0.51 * eps * right.abs() + 1e-6).all())
    gradients = torch.autograd.grad(ours, parts, torch.ones_like(ours))
    expected = torch.autograd.grad(right, exact, torch.ones_like(right))
    for gradient, each in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        assert relative_error(gradient.double(), each) <= eps


@pytest.mark.parametrize("dtype", ops.HALF)
def test_a_norm_in_half_precision_is_rounded_once(dtype):
    """Its own weights may be in half precision, too."""
    torch.manual_seed(0)
    norm, x = LayerNorm(48), (3 * torch.randn(20, 48) + 1).to(dtype)
    for weights in (torch.float32, dtype):
        norm.to(weights)
        right = F.layer_norm(x.double(), (48,), norm.weight.double(), norm.bias.double())
        ours = norm(x)
        assert ours.dtype == dtype
        eps = torch.finfo(dtype).eps
        assert bool(((ours.double() - right).abs() <= 0.51 * eps * right.abs() + 1e-6).all())
