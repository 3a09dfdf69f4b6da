"""RAdam (https://arxiv.org/abs/1908.03265) with Dassl's arguments."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from prompted_clip.errors import UserError

__all__ = ["RAdam"]


class RAdam(torch.optim.RAdam):
    """torch's RAdam with decoupled weight decay, which is what Dassl's own has always done.

    Args:
        degenerated_to_sgd: only True: in the first steps, where the variance cannot be estimated, it is SGD.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        if not degenerated_to_sgd:
            raise UserError("RAdam(degenerated_to_sgd=False) is not available; leave it at True")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)
