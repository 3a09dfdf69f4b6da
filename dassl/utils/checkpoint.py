"""Checkpoints: written whole or not at all, read without running anything in them."""

from __future__ import annotations

import copy
import io
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.tensor_files import without_wrappers

from .checkpoint_parts import (
    check_numbers,
    check_optimizer_form,
    check_optimizer_state,
    check_parts,
    check_schedule_form,
)
from .safe_load import Placeholder, safe_load
from .tools import atomic_open

__all__ = ["load_checkpoint", "resume_from_checkpoint", "save_checkpoint"]

# What torch's versions and schedulers add to an optimizer's groups; the other keys tell its kind.
ADDED = {
    *("initial_lr", "param_names", "foreach", "maximize", "capturable", "differentiable", "fused"),
    "decoupled_weight_decay",
}
# What decides a schedule's learning rates, other than how far it is.
CONSTANTS = (
    *("base_lrs", "T_max", "eta_min", "step_size", "gamma", "milestones"),
    *("warmup_epoch", "cons_lr", "min_lr"),
)
WAY_OUT = "Use the settings it was trained with, or another OUTPUT_DIR."


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Writes a checkpoint, and its name into the file `checkpoint` beside it.

    Args:
        state: has "state_dict" and "epoch" (epochs done), and whatever else is to be saved.
        save_dir: its folder.
        is_best: writes it to `model-best.pth.tar` too.
        remove_module_from_keys: takes the prefix "module." from the keys of the state dict.
        model_name: name of the file; `model.pth.tar-<epoch>` if empty.
    """
    content = _without_numpy_scalars(dict(state))
    if remove_module_from_keys:
        content["state_dict"] = strip_module(content["state_dict"])
    name = model_name or f"model.pth.tar-{content['epoch']}"
    fpath = os.path.join(save_dir, name)
    save_whole(content, fpath)
    print(f"Checkpoint saved to {fpath}")
    point_to(save_dir, name)
    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        with open(fpath, "rb") as source, atomic_open(best, "wb") as file:
            shutil.copyfileobj(source, file)
        print(f'Best checkpoint saved to "{best}"')


def save_whole(content: Any, fpath: str) -> None:
    """`torch.save`, by way of memory: torch's own writer hides why it could not write."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_open(fpath, "wb") as file:
        file.write(buffer.getbuffer())


def point_to(save_dir: str, name: str) -> None:
    """Has the file `checkpoint` of a folder name its latest one."""
    pointer = os.path.join(save_dir, "checkpoint")
    if not os.path.isfile(pointer) or os.path.basename(_latest(save_dir)) != name:
        with atomic_open(pointer) as file:
            file.write(f"{name}\n")


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Reads a checkpoint, its tensors onto the CPU. Nothing in the file is run.

    Objects of classes that are not plain data become `Placeholder`s: dictionaries of their attributes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no path is given, or the file is damaged or not a checkpoint.
    """
    if not fpath:
        raise UserError("load_checkpoint() is given no path of a checkpoint")
    if not os.path.isfile(fpath):
        raise MissingFileError(f"checkpoint {fpath} does not exist")
    checkpoint = safe_load(fpath)
    if isinstance(checkpoint, Placeholder):
        raise UserError(f"{fpath} holds {checkpoint!r}, not a checkpoint; save the state dict of the object")
    if not isinstance(checkpoint, dict):
        raise UserError(f"{fpath} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Loads a checkpoint into a model, and into its optimizer and schedule, where it has their states.

    Args:
        fdir: a folder whose file `checkpoint` names the latest one, or a checkpoint.

    Returns:
        The number of epochs done, which is the index of the next one.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged or does not fit; model and optimizer are as they were.
    """
    fpath = _latest(fdir) if os.path.isdir(fdir) else fdir
    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    parts: list[tuple[str, Any, str]] = [
        ("state_dict", model, "model weights"),
        ("optimizer", optimizer, "optimizer"),
        ("scheduler", scheduler, "scheduler"),
    ]
    earlier: list[tuple[Any, Any]] = []
    check_parts(checkpoint, fpath)
    try:
        epoch = int(checkpoint["epoch"])
        check_numbers(checkpoint["state_dict"], dict(model.named_parameters()), fpath)
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            check_optimizer(optimizer, checkpoint["optimizer"], "the run", fpath)
        if scheduler is not None and checkpoint.get("scheduler") is not None:
            check_scheduler(scheduler, checkpoint["scheduler"], "the run", fpath)
        for key, part, label in parts:
            if part is None or (part is not model and checkpoint.get(key) is None):
                continue
            earlier.append((part, copy.deepcopy(part.state_dict())))
            part.load_state_dict(checkpoint[key])
            print(f"Loaded {label}")
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        for part, state in earlier:
            part.load_state_dict(state)
        reason = " ".join(str(error).split())
        named = reason.startswith(fpath)
        raise UserError(reason if named else f"checkpoint {fpath} does not fit: {reason}") from error
    print(f"Previous epoch: {epoch}")
    return epoch


def check_optimizer(optimizer: Optimizer, saved_state: Mapping[str, Any], name: str, path: str) -> None:
    """Raises a ValueError unless a saved state is of this kind, with as many tensors in each group."""
    check_optimizer_form(saved_state, path)
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in saved_state["param_groups"]]
    if here != there:
        raise UserError(
            f"{path} cannot be continued: its optimizer has groups of {there} tensors, {name}'s of {here}."
        )
    for ours, saved in zip(optimizer.param_groups, saved_state["param_groups"], strict=True):
        kinds = [sorted({*group} - {*ADDED, "params"}, key=str) for group in (saved, ours)]
        # All that tells Adam, AMSGrad and AdamW apart.
        flags = {"amsgrad", "decoupled_weight_decay"} & {*saved} & {*ours}
        what = ""
        if kinds[0] != kinds[1]:
            what = "has {}, {}'s {}".format(", ".join(map(str, kinds[0])), name, ", ".join(kinds[1]))
        elif wrong := [flag for flag in sorted(flags) if saved[flag] != ours[flag]]:
            what = f"has {wrong[0]} {saved[wrong[0]]}, {name}'s {ours[wrong[0]]}"
        if what:
            raise UserError(f"{path} cannot be continued: its optimizer {what} (OPTIM.NAME). {WAY_OUT}")
    check_optimizer_state(optimizer, saved_state, path)


def check_scheduler(scheduler: LRScheduler, saved_state: Mapping[str, Any], name: str, path: str) -> None:
    """Raises a ValueError that lists what differs, unless a saved schedule has the constants of this one.

    Both have a `successor` or none has, whose constants count too. `saved_state` may be upstream's.
    """
    check_schedule_form(scheduler.state_dict(), saved_state, scheduler, path)
    here, there = _constants(scheduler.state_dict()), _constants(saved_state)
    if ("successor" in saved_state) != ("successor" in scheduler.state_dict()):
        what = "has a warm-up" if "successor" in saved_state else "has no warm-up"
        faults = [f"its schedule {what}, unlike {name}'s (OPTIM.WARMUP_EPOCH)"]
    else:
        faults = [
            f"{key} was {there.get(key, 'not set')}, is {here.get(key, 'not set')}"
            for key in {**here, **there}
            if here.get(key) != there.get(key)
        ]
    if faults:
        raise UserError(f"{path} cannot be continued by {name}: {'; '.join(faults)}. {WAY_OUT}")


def _constants(state: Mapping[str, Any]) -> dict[str, Any]:
    constants = {key: state[key] for key in CONSTANTS if key in state}
    if isinstance(state.get("successor"), Mapping):
        of_successor = _constants(state["successor"])
        constants |= {f"successor.{key}": value for key, value in of_successor.items()}
    return constants


def strip_module(state_dict: Mapping[str, Any], wanted: Iterable[str] = ()) -> Mapping[str, Any]:
    """The state dict without what DataParallel and torch.compile add to its keys.

    Args:
        wanted: keys that are kept as they are.

    Raises:
        ValueError: a tensor is there with and without such a prefix.
    """
    wanted = set(wanted)
    names = {key: key if key in wanted else without_wrappers(key) for key in state_dict}
    if all(key == name for key, name in names.items()):
        return state_dict
    stripped = OrderedDict((names[key], value) for key, value in state_dict.items())
    if len(stripped) < len(names):
        raise UserError("the state dict has a tensor twice, with and without a prefix such as module.")
    return stripped


def _latest(folder: str) -> str:
    pointer = os.path.join(folder, "checkpoint")
    if not os.path.isfile(pointer):
        raise MissingFileError(f"{folder} has no file named checkpoint, which says what is the latest one")
    with open(pointer, encoding="utf-8", errors="replace") as file:
        return os.path.join(folder, file.readline().strip())


def _without_numpy_scalars(value: Any) -> Any:
    """Numpy's numbers as Python's, which `weights_only` reads."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _without_numpy_scalars(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_numpy_scalars(entry) for entry in value)
    return value
