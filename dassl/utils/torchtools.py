"""Parameters and layers of modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import init

from prompted_clip.errors import UserError
from prompted_clip.tensor_files import misfit

from .checkpoint import load_checkpoint, resume_from_checkpoint, save_checkpoint, strip_module
from .checkpoint_parts import check_numbers, check_parts
from .tools import check_availability

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
]


def open_all_layers(model: nn.Module) -> None:
    """Lets all layers learn, in training mode."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Sequence[str]) -> None:
    """Lets some children of `model` learn, in training mode; freezes all others, in evaluation mode.

    Raises:
        ValueError: the model has no child of that name.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for name in names:
        check_availability(name, children, "open_layers")
    for name, child in children.items():
        child.train(name in names)
        for parameter in child.parameters():
            parameter.requires_grad_(name in names)


def count_num_param(model: nn.Module | None = None, params: Iterable[Any] | None = None) -> int:
    """The number of elements of a module's parameters, or of `params`: parameters or groups of them."""
    if model is not None:
        params = model.parameters()
    if params is None:
        raise UserError("count_num_param() needs a model or params")
    count = 0
    for entry in params:
        held = entry["params"] if isinstance(entry, dict) else entry
        count += sum(p.numel() for p in held) if isinstance(held, (list, tuple)) else held.numel()
    return count


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Loads the layers of a checkpoint whose names and shapes fit, and prints which did not.

    Raises:
        ValueError: none fits, or the file is not a checkpoint.
    """
    checkpoint = load_checkpoint(weight_path)
    check_parts(checkpoint, weight_path)
    own = model.state_dict()
    saved = strip_module(checkpoint.get("state_dict", checkpoint), own)
    fitting = {
        name: value
        for name, value in saved.items()
        if isinstance(value, Tensor)
        and isinstance(own.get(name), Tensor)  # a module's extra state may be anything
        and value.shape == own[name].shape
        and not misfit(value, own[name])
    }
    if not fitting:
        raise UserError(
            f"no layer of {weight_path} fits the model, which expects names like {next(iter(own), '-')!r}"
        )
    check_numbers(fitting, dict(model.named_parameters()), weight_path)
    model.load_state_dict({**own, **fitting})
    print(f'Successfully loaded pretrained weights from "{weight_path}"')
    discarded = [name for name in saved if name not in fitting]
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialises convolutions and linear layers; biases become 0, norms the identity.

    Args:
        init_type: "normal", "xavier", "kaiming" or "orthogonal".
        gain: standard deviation of "normal"; gain of "xavier" and "orthogonal".
    """
    initialisers = {
        "normal": lambda weight: init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: init.xavier_normal_(weight, gain=gain),
        "kaiming": lambda weight: init.kaiming_normal_(weight, a=0, mode="fan_in"),
        "orthogonal": lambda weight: init.orthogonal_(weight, gain=gain),
    }
    check_availability(init_type, initialisers, "init_type")
    for module in model.modules():
        kind = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is not None and ("Conv" in kind or "Linear" in kind):
            initialisers[init_type](weight)
        elif weight is not None and ("BatchNorm" in kind or "InstanceNorm" in kind):
            init.ones_(weight)
        else:
            continue
        if bias is not None:
            init.zeros_(bias)
