"""Optimizers by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dassl.config import key_or_default
from dassl.utils.tools import check_availability
from prompted_clip.errors import UserError

from .radam import RAdam

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: Any, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """Builds the optimizer that `optim_cfg` (the node `cfg.OPTIM`) names.

    Args:
        model: a module, parameters, or groups of parameters.
        optim_cfg: NAME, LR, WEIGHT_DECAY and the like.
        param_groups: what is optimized instead of all of `model`; may have learning rates of its own.

    Raises:
        ValueError: unknown optimizer, or no parameters. Where all of them are frozen, there is a warning.
    """
    name = optim_cfg.NAME
    check_availability(name, AVAI_OPTIMS, "OPTIM.NAME")
    if param_groups is not None and optim_cfg.STAGED_LR:
        warnings.warn(
            "OPTIM.STAGED_LR is ignored: the parameter groups are given by the caller", stacklevel=2
        )
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            param_groups = _staged_groups(model, optim_cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    groups = list(param_groups)
    _check_learnable(groups)

    try:
        return _build(model, groups, optim_cfg)
    except ValueError as error:  # of torch, of settings that do not go together
        raise UserError(f"OPTIM.NAME {name}: {error}") from error


def _build(model: nn.Module | Iterable[Any], groups: list[Any], optim_cfg: Any) -> Optimizer:
    name = optim_cfg.NAME
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    adam = {
        **common,
        "betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2),
        "eps": key_or_default(optim_cfg, "OPTIM.EPS"),
    }
    if name == "adam":
        return torch.optim.Adam(groups, **adam)
    if name == "amsgrad":
        return torch.optim.Adam(groups, **adam, amsgrad=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, **adam)
    if name == "radam":
        return RAdam(groups, **adam)
    if name == "rmsprop":
        return torch.optim.RMSprop(
            groups, **common, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA
        )
    fused = True if _can_be_fused(model, groups) and not optim_cfg.SGD_DAMPNING else None
    optimizer = torch.optim.SGD(
        groups,
        **common,
        momentum=optim_cfg.MOMENTUM,
        dampening=optim_cfg.SGD_DAMPNING,
        nesterov=optim_cfg.SGD_NESTEROV,
        fused=fused,
    )

    def keep_fused(loaded: Optimizer) -> None:
        # How a step is computed belongs to the device here, and not to the one that saved the state.
        for group in loaded.param_groups:
            group["fused"] = fused
        if fused:
            _begin_momentum(loaded)

    optimizer.register_load_state_dict_post_hook(keep_fused)
    keep_fused(optimizer)
    return optimizer


def _begin_momentum(optimizer: Optimizer) -> None:
    """Momentum from 0, which without dampening is that of torch's first step.

    The fused kernel takes memory for it that is not set to anything, and sets it in its first step; where a
    loss scaler skips that one, it would go on from whatever was there.
    """
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        for tensor in group["params"]:
            state = optimizer.state[tensor]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(tensor, requires_grad=False)


def _can_be_fused(model: Any, groups: Iterable[Any]) -> bool:
    """Whether torch has one kernel for the whole step: of float tensors on a GPU, with dense gradients."""
    if not isinstance(model, nn.Module) or any(getattr(part, "sparse", False) for part in model.modules()):
        return False
    tensors = [t for group in groups for t in (group["params"] if isinstance(group, dict) else [group])]
    tensors = [t[1] if isinstance(t, tuple) else t for t in tensors]
    return all(t.is_cuda and t.is_floating_point() for t in tensors)


def _staged_groups(model: Any, optim_cfg: Any) -> list[dict[str, Any]]:
    """Two groups: the NEW_LAYERS (children of the model) at LR, all others at LR * BASE_LR_MULT."""
    if isinstance(model, nn.DataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise UserError("OPTIM.STAGED_LR needs a module, since NEW_LAYERS are names of its children")
    new_layers = [optim_cfg.NEW_LAYERS] if isinstance(optim_cfg.NEW_LAYERS, str) else optim_cfg.NEW_LAYERS
    children = dict(model.named_children())
    for layer in new_layers:
        if layer not in children:
            raise UserError(f"OPTIM.NEW_LAYERS names {layer!r}; the model's layers are {', '.join(children)}")
    base = [p for name, child in children.items() if name not in new_layers for p in child.parameters()]
    new = [p for name, child in children.items() if name in new_layers for p in child.parameters()]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


def _check_learnable(groups: list[Any]) -> None:
    parameters = []
    for group in groups:
        if isinstance(group, dict):
            held = group["params"]
            held = [held] if isinstance(held, torch.Tensor) else list(held)
            group["params"] = held  # an iterator can be read only once
        else:
            held = [group[1] if isinstance(group, tuple) else group]  # (name, parameter) or parameter
        parameters += held
    if not parameters:
        raise UserError("there is nothing to optimize: the model has no parameters")
    if not any(parameter.requires_grad for parameter in parameters):
        # No error: a trainer may build all optimizers first, and let the models learn one after the other.
        warnings.warn(
            f"an optimizer has nothing to learn: all {len(parameters)} parameters are frozen"
            " (requires_grad=False)",
            stacklevel=3,
        )
