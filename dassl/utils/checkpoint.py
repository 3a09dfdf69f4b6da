"""Checkpoints: written whole or not at all, read without running anything in them."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .foreign_checkpoint import read_foreign_checkpoint
from .inert_pickle import Placeholder
from .tools import atomic_open

__all__ = ["load_checkpoint", "resume_from_checkpoint", "save_checkpoint"]


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Writes a checkpoint, and its name into the file `checkpoint` beside it.

    Args:
        state: has "state_dict" and "epoch" (epochs done), and whatever else is to be kept.
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
    with atomic_open(fpath, "wb") as file:
        torch.save(content, file)
    print(f"Checkpoint saved to {fpath}")
    with atomic_open(os.path.join(save_dir, "checkpoint")) as file:
        file.write(f"{name}\n")
    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        with open(fpath, "rb") as source, atomic_open(best, "wb") as file:
            shutil.copyfileobj(source, file)
        print(f'Best checkpoint saved to "{best}"')


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Reads a checkpoint, its tensors onto the CPU. Nothing in the file is run.

    Objects of classes that are not plain data become `Placeholder`s: dictionaries of their attributes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or not a checkpoint, or it calls a function other than those that
            rebuild tensors and plain containers.
    """
    if not os.path.isfile(fpath):
        raise FileNotFoundError(f"checkpoint {fpath} does not exist")
    checkpoint = _read_plain_data(fpath)
    if checkpoint is None:
        checkpoint = read_foreign_checkpoint(fpath)
    if isinstance(checkpoint, Placeholder):
        raise ValueError(f"{fpath} holds {checkpoint!r}, not a checkpoint; save the state dict of the object")
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{fpath} holds a {type(checkpoint).__name__}, not a checkpoint")
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
    try:
        epoch = int(checkpoint["epoch"])
        for key, part, label in parts:
            if part is None or (part is not model and checkpoint.get(key) is None):
                continue
            own = part.state_dict()
            if key == "scheduler" and "successor" in checkpoint[key] and "successor" not in own:
                raise ValueError("the saved schedule has a warm-up, this one has none (OPTIM.WARMUP_EPOCH)")
            earlier.append((part, copy.deepcopy(own)))
            part.load_state_dict(checkpoint[key])
            print(f"Loaded {label}")
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        for part, state in earlier:
            part.load_state_dict(state)
        raise ValueError(f"checkpoint {fpath} does not fit: {' '.join(str(error).split())}") from error
    print(f"Previous epoch: {epoch}")
    return epoch


def _read_plain_data(fpath: str) -> Any:
    """What torch's own safe reader makes of a file; None if it does not read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the file, the other reader says better
            return torch.load(fpath, map_location="cpu", weights_only=True)
    except Exception:  # more than plain data, or a damaged file
        return None


def strip_module(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict of the module itself, where it was wrapped for several GPUs."""
    if not any(key.startswith("module.") for key in state_dict):
        return state_dict
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def _latest(folder: str) -> str:
    pointer = os.path.join(folder, "checkpoint")
    if not os.path.isfile(pointer):
        raise FileNotFoundError(f"{folder} has no file named checkpoint, which says what is the latest one")
    with open(pointer, encoding="utf-8") as file:
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
