"""Blocks whose passes are written out: the modules' numbers, and only where nobody would miss the modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import relative_error, tiny_clip
from torch import Tensor, nn

from prompted_clip import Prompts, frozen
from prompted_clip.model import ResidualAttentionBlock

EXACT = 1e-12
LENGTH, WIDTH = 7, 24


@pytest.fixture
def block() -> ResidualAttentionBlock:
    torch.manual_seed(0)
    made = ResidualAttentionBlock(WIDTH, 3).double().requires_grad_(False)
    for tensor in made.parameters():
        tensor.copy_(torch.randn_like(tensor) * tensor.shape[-1] ** -0.5)
    return made


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Which functions were written out."""
    made: list[str] = []
    for name in ("project", "finish"):
        function = getattr(frozen, name)

        def noted(*args: Any, name: str = name, function: Any = function) -> Any:
            made.append(name)
            return function(*args)

        monkeypatch.setattr(frozen, name, noted)
    return made


def learned(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def by_modules(block: ResidualAttentionBlock, *args: Any) -> Tensor:
    with frozen.twice_differentiable():
        return block.run(*args)


def gradients_of(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


@pytest.mark.parametrize("rows", [None, LENGTH, 3])
@pytest.mark.parametrize(
    ("shape", "constant"),
    [(None, False), *((shape, each) for shape in ((2, WIDTH), (4, 2, WIDTH)) for each in (False, True))],
)
def test_written_out_is_what_the_modules_compute(rows, shape, constant, block, calls):
    """Some rows or all; tokens of all samples, of each, or none; behind constants, or behind what learns."""
    x = learned(4, LENGTH, WIDTH).detach().requires_grad_(not constant)
    tokens = None if shape is None else learned(*shape)
    inputs = [each for each in (x, tokens) if each is not None and each.requires_grad]
    ours, right = block.run(x, tokens, rows), by_modules(block, x, tokens, rows)
    assert calls == ["project", "finish"]
    assert relative_error(ours, right) <= EXACT
    for gradient, expected in zip(gradients_of(ours, inputs), gradients_of(right, inputs), strict=True):
        assert gradient.shape == expected.shape
        assert relative_error(gradient, expected) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_as_the_modules_do(dtype, block, calls):
    half = block.to(dtype)
    for norm in (half.ln_1, half.ln_2):
        norm.float()
    x = torch.randn(4, LENGTH, WIDTH).to(dtype).requires_grad_()
    ours = half.run(x)
    hook(half.ln_1)
    right = half.run(x)
    assert calls == ["project", "finish"]
    assert torch.equal(ours, right)
    (gradient,), (expected,) = gradients_of(ours, [x]), gradients_of(right, [x])
    rounding = 8 * torch.finfo(dtype).eps
    assert relative_error(gradient.double(), expected.double()) <= rounding


def test_one_position_asks_the_input(block):
    x = learned(4, LENGTH, WIDTH)
    for position in (0, 3, LENGTH - 1):
        ours, right = block.run(x, at=position), by_modules(block, x)[:, position : position + 1]
        assert relative_error(ours, right) <= EXACT
        assert relative_error(*(gradients_of(each, [x])[0] for each in (ours, right))) <= EXACT


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


CHANGES: dict[str, Callable[[ResidualAttentionBlock], Any]] = {
    "a norm is hooked": lambda block: hook(block.ln_1),
    "attention is hooked": lambda block: hook(block.attn),
    "the perceptron is hooked": lambda block: hook(block.mlp),
    "a layer is hooked": lambda block: hook(block.mlp[0]),
    "a layer has an adapter": lambda block: block.mlp.__setitem__(0, Adapted(block.mlp[0])),
    "another activation": lambda block: block.mlp.__setitem__(1, nn.GELU()),
    "a norm learns": lambda block: block.ln_2.requires_grad_(True),
    "a bias learns": lambda block: block.attn.in_proj_bias.requires_grad_(True),
}


class Adapted(nn.Module):
    """A layer and what is learned beside it, as LoRA does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


@pytest.mark.parametrize("change", CHANGES)
def test_modules_are_called_where_someone_would_miss_them(change, block, calls):
    CHANGES[change](block)
    x = learned(2, LENGTH, WIDTH)
    block.run(x).sum().backward()
    assert calls == []
    assert all(each.grad is not None for each in block.parameters() if each.requires_grad)


def test_what_needs_no_gradients_leaves_its_inputs_alone(block, calls):
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    before = x.clone()
    right = by_modules(block, x)
    with torch.no_grad():
        computed = [block.run(x), block.run(x.clone().requires_grad_())]
    computed.append(block.run(x))
    assert calls == ["project", "finish"] * 3
    assert all(relative_error(each, right) <= EXACT and not each.requires_grad for each in computed)
    assert torch.equal(x, before)
    block.requires_grad_(True)
    assert block.run(x).requires_grad
    with torch.no_grad():
        assert relative_error(block.run(x), right) <= EXACT


def test_autocast_and_transforms_call_the_modules(block, calls):
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block.float().run(x)
    assert torch.func.grad(lambda each: block.run(each).sum())(x).shape == x.shape
    assert calls == []


def test_gradients_of_gradients(block):
    x = learned(2, LENGTH, WIDTH)
    with pytest.raises(RuntimeError, match=r"no gradients of gradients .* within clip\.frozen\.twice_diff"):
        torch.autograd.grad(block.run(x).square().sum(), x, create_graph=True)
    (once,) = torch.autograd.grad(by_modules(block, x).square().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), x)
    assert twice.abs().max() > 0


def test_encoders_write_out_all_blocks_but_the_last(calls):
    """Of which one position is computed; what follows its attention is written out as well."""
    model = tiny_clip(text_layers=3, image_layers=3).requires_grad_(False)
    tokens = torch.randn(2, 128, dtype=torch.float64, requires_grad=True)
    model.encode_image(torch.randn(2, 3, 32, 32, dtype=torch.float64), Prompts(tokens))
    assert calls == [*["project", "finish"] * 2, "finish"]
