"""The form of what a checkpoint holds beside its tensors, checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from prompted_clip.errors import NotFiniteError, UserError
from prompted_clip.tensor_files import misfit, not_finite, unusual

from .rng import restore_rng_state, rng_state

MOST_EPOCHS = 10**9
# What a step reads of each tensor's state; that of other optimizers is what it is.
READ_BY_STEP = {
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.RAdam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.RMSprop: ("step", "square_avg"),
}
TENSORS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg")


def check_parts(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuses a checkpoint that has a part of another kind than checkpoints have.

    Raises:
        ValueError: names the file and the part.
    """
    epoch, state = checkpoint.get("epoch"), checkpoint.get("state_dict", {})
    if epoch is not None and not (is_whole(epoch) and 0 <= epoch <= MOST_EPOCHS):
        raise _wrong(path, "epoch", epoch, "the number of epochs done")
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise _wrong(path, "state_dict", state, "a dictionary of tensors by name")
    for key in ("optimizer", "scheduler", "scaler", "rng", "identity"):
        if not isinstance(checkpoint.get(key), (Mapping, type(None))):
            raise _wrong(path, key, checkpoint[key], "a dictionary")
    others = checkpoint.get("rng_of_others", [])
    if not isinstance(others, (list, tuple)) or not all(isinstance(each, Mapping) for each in others):
        raise _wrong(path, "rng_of_others", others, "a list of dictionaries")
    for key in ("val_result", "best_result"):
        value = number_in(checkpoint.get(key))
        none_yet = value is None or (key == "best_result" and value == -math.inf)
        if not (none_yet or is_number(value)):
            raise _wrong(path, key, value, "a finite number")


def check_random_states(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuses random states that cannot be restored; the present one stays.

    Raises:
        ValueError: names the file and the part.
    """
    present, others = rng_state(), checkpoint.get("rng_of_others", ())
    states = {"rng": checkpoint.get("rng"), **{f"rng_of_others.{k}": each for k, each in enumerate(others)}}
    for name, state in states.items():
        try:
            if state is not None:
                restore_rng_state(state)
        except Exception as error:  # each generator has errors of its own
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} cannot be continued: its {name} is of no generators ({reason})."
            ) from error
        finally:
            restore_rng_state(present)


def check_optimizer_form(saved: Mapping[str, Any], path: str) -> None:
    """Refuses an optimizer's state that is not of torch's form.

    Raises:
        ValueError: names the file and the part.
    """
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(states, Mapping):
        raise UserError(f"{path} cannot be continued: its optimizer has no param_groups and state.")
    for index, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            raise UserError(f"{path} cannot be continued: optimizer.param_groups.{index} has no params.")
        if not all(is_whole(each) for each in group["params"]):
            raise UserError(f"{path} cannot be continued: optimizer.param_groups.{index} has no numbers.")


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], path: str) -> None:
    """Refuses the state of an optimizer with these groups where a step could not use it.

    Raises:
        ValueError: names the file and the part.
    """
    groups, states = saved["param_groups"], saved["state"]
    for here, there in zip(optimizer.param_groups, groups, strict=True):
        own = {key: value for key, value in here.items() if key != "params"}
        if fault := differing(there, own, "optimizer.param_groups"):
            raise UserError(f"{path} cannot be continued: {fault}.")
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    by_number = dict(zip(numbers, tensors, strict=False))
    read = next((names for kind, names in READ_BY_STEP.items() if isinstance(optimizer, kind)), ())
    for number, state in states.items():
        where = f"optimizer.state.{str(number)[:40]}"
        if number not in by_number or not isinstance(state, Mapping):
            raise UserError(f"{path} cannot be continued: {where} is not of one of its tensors.")
        if fault := _state_fault(state, by_number[number], read):
            raise UserError(f"{path} cannot be continued: {where}{fault}.")


def _state_fault(state: Mapping[Any, Any], tensor: Tensor, read: tuple[str, ...]) -> str:
    if missing := [name for name in read if state and name not in state]:
        return f" has no {missing[0]}"
    for name, value in state.items():
        if name in TENSORS and not isinstance(value, Tensor) and (value is not None or name in read):
            return f".{name} is no tensor"
        value = number_in(value)
        if isinstance(value, Tensor):
            if value.shape != tensor.shape:
                return f".{name} is {tuple(value.shape)}, and its tensor {tuple(tensor.shape)}"
            finite = not misfit(value, tensor) and not not_finite({name: value})
        else:
            plain = value is None or isinstance(value, (bool, str))
            finite = is_number(value) or (plain and name not in read)
        if not finite:
            return f".{name} is not of finite numbers"
    return ""


def check_schedule_form(own: Mapping[str, Any], saved: Mapping[str, Any], scheduler: Any, path: str) -> None:
    """Refuses a schedule's state that is not of the form of this run's.

    Raises:
        ValueError: names the file and the part.
    """
    fault = differing(saved, own, "scheduler")
    counts = [(key, saved[key]) for key in ("last_epoch", "_step_count") if key in saved]
    if not fault and "last_epoch" not in saved:
        fault = "scheduler has no last_epoch"
    for key, value in counts:
        if not fault and not (is_whole(value) and 0 <= value <= MOST_EPOCHS):
            fault = f"scheduler.{key} is {_shown(value)}"
    # torch makes attributes of all that it finds.
    foreign = [
        key for key in saved if key not in own and (not isinstance(key, str) or hasattr(scheduler, key))
    ]
    if not fault and foreign:
        fault = f"scheduler.{str(foreign[0])[:40]} is no part of a schedule's state"
    if fault:
        raise UserError(f"{path} cannot be continued: {fault}.")


def check_scaler(own: Mapping[str, Any], saved: Mapping[str, Any], path: str) -> None:
    """Refuses a loss scaler's state that is not of the form of this run's; an empty one is not restored."""
    missing = [key for key in own if key not in saved] if saved else []
    fault = f"scaler has no {missing[0]}" if missing else differing(saved, own, "scaler")
    if not fault and saved and any(number_in(saved[key]) < 0 for key in own if is_number(own[key])):
        fault = "scaler has a number below 0"
    if not fault and saved and not number_in(saved.get("scale", 1)):
        fault = "scaler.scale is 0"
    if fault:
        raise UserError(f"{path} cannot be continued: {fault}.")


def check_numbers(state: Mapping[str, Any], learned: Mapping[str, Any], what: str) -> None:
    """Refuses NaN in any tensor, and infinities in those that a model learns; a mask may have these.

    Args:
        learned: the model's parameters by name.
        what: names the file or the model in the message.

    Raises:
        FloatingPointError: names the tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) or not not_finite({name: value}):
            continue
        if name in learned or bool(value.isnan().any()):
            raise NotFiniteError(
                f"{what}: {name} has a NaN or an infinity. The training diverged (a smaller OPTIM.LR or "
                "another PREC may help), or the file is damaged."
            )


def differing(saved: Any, like: Any, where: str) -> str:
    """Where a saved value is not of the form of one that is used here; "" where it is.

    Dictionaries are compared in the keys that both have, lists one by one; a number may be another number.
    """
    saved, like = number_in(saved), number_in(like)
    if isinstance(like, Mapping):
        if not isinstance(saved, Mapping):
            return f"{where} is {_shown(saved)}, not a dictionary"
        faults = (differing(saved[key], like[key], f"{where}.{key}") for key in like if key in saved)
        return next(filter(None, faults), "")
    if isinstance(like, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(like):
            return f"{where} is {_shown(saved)}, not a list of {len(like)}"
        faults = (differing(a, b, f"{where}.{k}") for k, (a, b) in enumerate(zip(saved, like, strict=True)))
        return next(filter(None, faults), "")
    if isinstance(like, Tensor):
        fault = misfit(saved, like)
        if not fault and saved.numel() != like.numel():
            fault = f"has {saved.numel()} numbers, and not {like.numel()}"
        return f"{where} {fault}" if fault else ""
    if isinstance(like, bool) or like is None:
        plain = saved is None or isinstance(saved, (bool, int, float, str))
        return "" if plain else f"{where} is {_shown(saved)}"
    if isinstance(like, (int, float)) and not is_number(saved):
        return f"{where} is {_shown(saved)}, not a finite number"
    if isinstance(like, str) and not isinstance(saved, str):
        return f"{where} is {_shown(saved)}, not a text"
    return ""


def number_in(value: Any) -> Any:
    """The number in a tensor of one; any other value as it is."""
    if isinstance(value, Tensor) and not unusual(value) and value.numel() == 1 and not value.is_complex():
        return value.item()
    return value


def is_number(value: Any) -> bool:
    """Whether it is a number that is finite, also as a float."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(value: Any) -> bool:
    """Whether it is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A few words for a value, however large it is."""
    if isinstance(value, (bool, float, type(None))) or (is_whole(value) and abs(value) < 1 << 64):
        return repr(value)
    return f"{value[:40]!r}" if isinstance(value, str) else f"a {type(value).__name__}"


def _wrong(path: str, key: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"{path} is no checkpoint that can be used: its {key} is {_shown(value)}, not {expected}."
    )
