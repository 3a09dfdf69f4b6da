"""The checkpoints in the folders of a run's models, and whether one fits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.tensor_files import misfit

BEST = "model-best.pth.tar"
SHOWN = 8  # keys in the message about a checkpoint that does not fit


def file_of_epoch(epoch: int) -> str:
    return f"model.pth.tar-{epoch}"


def saved_epochs(folders: Sequence[str]) -> list[int]:
    """The epochs of which every one of the folders holds a checkpoint, in ascending order.

    A run that is killed while it saves several models leaves an epoch that only some of them have.
    """
    common: set[int] | None = None
    for folder in folders:
        names = os.listdir(folder) if os.path.isdir(folder) else []
        epochs = {int(match[1]) for name in names if (match := re.fullmatch(r"model\.pth\.tar-(\d+)", name))}
        common = epochs if common is None else common & epochs
    return sorted(common or ())


def has_best(folders: Sequence[str]) -> bool:
    return bool(folders) and all(os.path.isfile(os.path.join(folder, BEST)) for folder in folders)


def remove_all_but_newest(folders: Sequence[str], count: int) -> None:
    """Removes the checkpoints of all epochs but the newest `count`; the best one stays.

    Also what a run that was killed in between has left in some of the folders.
    """
    kept = saved_epochs(folders)[-count:]
    for folder in folders:
        for epoch in saved_epochs([folder]):
            if kept and epoch < kept[0]:
                os.unlink(os.path.join(folder, file_of_epoch(epoch)))


def file_to_resume(folders: Sequence[str]) -> str | None:
    """Name of the newest checkpoint that every one of the folders has."""
    epochs = saved_epochs(folders)
    if epochs:
        return file_of_epoch(epochs[-1])
    return BEST if has_best(folders) else None


def file_to_load(folders: Sequence[str], epoch: int | None = None) -> str:
    """Name of the checkpoint of an epoch; without one, of the best or else of the newest.

    Raises:
        FileNotFoundError: one of the folders does not have it.
    """
    if epoch is not None:
        name = file_of_epoch(epoch)
    elif has_best(folders) or not saved_epochs(folders):
        name = BEST
    else:
        name = file_of_epoch(saved_epochs(folders)[-1])
    for folder in folders:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            epochs = ", ".join(map(str, saved_epochs([folder])))
            there = f"epochs there: {epochs}" if epochs else "no epoch is saved there"
            above = os.path.dirname(folder)
            is_inside = not os.path.isdir(folder) and (saved_epochs([above]) or has_best([above]))
            hint = f" {above} holds a model: give the run's folder above it." if is_inside else ""
            raise MissingFileError(f"No model at {path} ({there}).{hint}")
    return name


def check_state(wanted: Mapping[str, Any], saved: Mapping[str, Any], name: str, path: str) -> None:
    """Raises a ValueError that lists the differences, unless names, shapes and kinds are the same."""
    faults = [f"missing {key}" for key in wanted if key not in saved]
    faults += [f"unexpected {key}" for key in saved if key not in wanted]
    for key in wanted:
        here, there = (tuple(getattr(state.get(key), "shape", ())) for state in (wanted, saved))
        if key in saved and here != there:
            faults.append(f"{key} of shape {there} instead of {here}")
        elif key in saved and isinstance(wanted[key], Tensor) and (fault := misfit(saved[key], wanted[key])):
            faults.append(f"{key} {fault}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{path} does not fit {name}: {'; '.join(faults[:SHOWN])}{more}.")
