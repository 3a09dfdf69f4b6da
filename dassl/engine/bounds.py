"""The numbers of a configuration: all are finite, and the engine's own lie where they can be meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prompted_clip.console import shortened
from prompted_clip.errors import NotFiniteError, UserError

MOST_VALUES = 100_000  # of a whole configuration
LARGEST = 1e6  # learning rates, factors, decays
MANY = 10**7  # epochs, images, pixels
BOUNDS: dict[str, tuple[float, float]] = {
    "SEED": (-(2**62), 2**32 - 1),
    "INPUT.SIZE": (1, MANY),
    "INPUT.PIXEL_MEAN": (-LARGEST, LARGEST),
    "INPUT.PIXEL_STD": (1e-4, LARGEST),
    "INPUT.CROP_PADDING": (0, MANY),
    "INPUT.RRCROP_SCALE": (1e-6, 1),
    "INPUT.CUTOUT_N": (0, MANY),
    "INPUT.CUTOUT_LEN": (0, MANY),
    "INPUT.GN_MEAN": (-LARGEST, LARGEST),
    "INPUT.GN_STD": (0, LARGEST),
    "INPUT.RANDAUGMENT_N": (0, 1000),
    "INPUT.RANDAUGMENT_M": (0, 30),
    "INPUT.COLORJITTER_B": (0, LARGEST),
    "INPUT.COLORJITTER_C": (0, LARGEST),
    "INPUT.COLORJITTER_S": (0, LARGEST),
    "INPUT.COLORJITTER_H": (0, 0.5),
    "INPUT.RGS_P": (0, 1),
    "INPUT.GB_P": (0, 1),
    "INPUT.GB_K": (1, 10_001),
    "DATALOADER.NUM_WORKERS": (0, 1024),
    "DATALOADER.VIEWS": (0, MANY),
    "DATALOADER.VIEWS_GB": (0, LARGEST),
    "DATALOADER.TRAIN_X.BATCH_SIZE": (1, MANY),
    "DATALOADER.TRAIN_U.BATCH_SIZE": (1, MANY),
    "DATALOADER.TEST.BATCH_SIZE": (1, MANY),
    "MODEL.HEAD.DROPOUT": (0, 1),
    "OPTIM.LR": (0, LARGEST),
    "OPTIM.WEIGHT_DECAY": (0, LARGEST),
    "OPTIM.MOMENTUM": (0, 1),
    "OPTIM.SGD_DAMPNING": (0, 1),
    "OPTIM.RMSPROP_ALPHA": (0, 1),
    "OPTIM.ADAM_BETA1": (0, 1),
    "OPTIM.ADAM_BETA2": (0, 1),
    "OPTIM.EPS": (0, 1),
    "OPTIM.BASE_LR_MULT": (0, LARGEST),
    "OPTIM.GAMMA": (0, 10),
    "OPTIM.STEPSIZE": (-MANY, MANY),
    "OPTIM.LR_MIN": (0, LARGEST),
    "OPTIM.MAX_EPOCH": (0, MANY),
    "OPTIM.MAX_ITER": (0, MANY),
    "OPTIM.ITER_PER_SHOT": (0, MANY),
    "OPTIM.WARMUP_EPOCH": (-MANY, MANY),
    "OPTIM.WARMUP_CONS_LR": (0, LARGEST),
    "OPTIM.WARMUP_MIN_LR": (0, LARGEST),
    "TRAIN.CHECKPOINT_FREQ": (-MANY, MANY),
    "TRAIN.CHECKPOINTS_KEPT": (0, MANY),
    "TRAIN.PRINT_FREQ": (1, MANY),
}


def check_numbers(cfg: Mapping[str, Any]) -> None:
    """Refuses numbers that are not finite, wherever they are, and those of the engine that cannot be meant.

    None is judged where it is used.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    for key, value in leaves(cfg):
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise UserError(f"{key} is {_shown(value)}; allowed are whole numbers of 64 bits.")
        if isinstance(value, float) and not math.isfinite(value):
            raise NotFiniteError(f"{key} is {value}; allowed are finite numbers.")
        if key not in BOUNDS or value is None:
            continue
        least, most = BOUNDS[key]
        if not isinstance(value, (int, float)) or not least <= value <= most:
            allowed = f"{_short(least)} or more" if most >= LARGEST and least >= 0 else f"{least} to {most}"
            raise UserError(f"{key} is {_shown(value)}; allowed is {allowed}.")
    scale = cfg["INPUT"]["RRCROP_SCALE"]
    if scale is not None and (len(scale) != 2 or scale[0] > scale[1]):
        raise UserError(f"INPUT.RRCROP_SCALE is {scale}; allowed are two numbers, the smaller one first.")


def leaves(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each value of a configuration with its full key; those of a list have the key of the list."""
    todo: list[tuple[str, Any]] = [("", cfg)]
    count = 0
    while todo:
        key, value = todo.pop()
        count += 1
        if count > MOST_VALUES:
            raise UserError(f"{key} has, with what it refers to, more than {MOST_VALUES:,} values.")
        if isinstance(value, Mapping):
            todo += [(f"{key}.{name}" if key else str(name), each) for name, each in value.items()]
        elif isinstance(value, (list, tuple)):
            todo += [(key, each) for each in value]
        else:
            yield key, value


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 1 << 999:  # Python does not print any number
        return "a number of hundreds of digits"
    return shortened(repr(value), 100)
