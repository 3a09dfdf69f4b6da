"""How far apart two correct computations may lie."""

from __future__ import annotations

import torch

ROUNDINGS = 10  # in series in a block: inputs and outputs of four products, attention, the sums
UNITS = {"fp16": 2.0**-11, "bf16": 2.0**-8, "amp": 2.0**-8}  # amp is bfloat16 on a CPU


def half_precision_error(precision: str, model: torch.nn.Module) -> float:
    """What rounding may do to logits of a CLIP, relative to the largest one.

    Each rounding moves a number by at most one unit roundoff, and they are independent: n of them in series
    come to about sqrt(n) units, as a random walk does. Four times that is allowed, because the largest of
    many logits is looked at, layers amplify what they get, and processors add in different orders.
    """
    blocks = model.transformer.layers + model.visual.transformer.layers
    return 4 * (ROUNDINGS * blocks) ** 0.5 * UNITS[precision]
