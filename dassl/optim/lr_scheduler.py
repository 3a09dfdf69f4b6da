"""Learning-rate schedules by name, with warm-up. They are stepped once per epoch, or once per iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from dassl.config import key_or_default
from dassl.utils.tools import check_availability
from prompted_clip.errors import UserError

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
AVAI_WARMUPS = ["constant", "linear"]
SCHEDULE_BY = ("epoch", "iteration")


class _WarmupScheduler(LRScheduler):
    """Runs `warmup_epoch` epochs of its own, then hands over to `successor`."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self) -> list[Any]:
        """The learning rate of each group in the epochs before `warmup_epoch`."""
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return self.warmup_lr()

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Plain data only; the successor's state is nested under "successor"."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a state, this class's or upstream's, and puts the optimizer to its learning rate.

        Raises:
            ValueError: the state is that of a schedule without warm-up.
        """
        if not isinstance(state_dict.get("successor"), Mapping):
            raise UserError(
                "the saved schedule has no warm-up, but OPTIM.WARMUP_EPOCH is set; use the same settings"
            )
        # Upstream keeps the live successor in the state, with an optimizer inside. Only its attributes are
        # taken: the object itself would step that other optimizer and leave the real one's rate frozen.
        self.successor.load_state_dict(_known(state_dict["successor"], self.successor.state_dict()))
        super().load_state_dict(_known(state_dict, super().state_dict(), but="successor"))
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def _known(state: Mapping[str, Any], own: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    return {key: state[key] for key in own if key in state and key != but}


class ConstantWarmupScheduler(_WarmupScheduler):
    """`cons_lr` for `warmup_epoch` epochs, then `successor`."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,  # of upstream; torch has it no more
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[Any]:
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """`min_lr` in the first epoch, then the epoch's share of the learning rate, then `successor`."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,  # of upstream; torch has it no more
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[Any]:
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


class PhasedCosine(LRScheduler):
    """A cosine from the learning rate to `lr_min` in each phase of a training, one after the other.

    Args:
        phases: steps of each phase.
    """

    def __init__(
        self, optimizer: Optimizer, phases: Sequence[int], lr_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.phases = list(phases)
        self.lr_min = lr_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        step, length = self.last_epoch, self.phases[-1]
        for length in self.phases:
            if step < length:
                break
            step -= length
        else:
            step = length
        share = (1 + math.cos(math.pi * step / max(length, 1))) / 2
        return [self.lr_min + (lr - self.lr_min) * share for lr in self.base_lrs]


def build_lr_scheduler(
    optimizer: Optimizer, optim_cfg: Any, phases: Sequence[int] | None = None
) -> LRScheduler:
    """Builds the schedule that `optim_cfg` (the node `cfg.OPTIM`) names.

    Args:
        phases: length of each phase of the training, in steps of the schedule: epochs, or iterations with
            `SCHEDULE_BY`. None for one phase of MAX_EPOCH epochs.

    Raises:
        ValueError: unknown schedule or warm-up, or settings that do not go together.
    """
    check_availability(optim_cfg.LR_SCHEDULER, AVAI_SCHEDS, "OPTIM.LR_SCHEDULER")
    by, lr_min = (key_or_default(optim_cfg, f"OPTIM.{key}") for key in ("SCHEDULE_BY", "LR_MIN"))
    check_availability(by, SCHEDULE_BY, "OPTIM.SCHEDULE_BY")
    if by == "iteration" or len(phases or ()) > 1:
        why = "OPTIM.SCHEDULE_BY is iteration" if by == "iteration" else "The training has several phases"
        if optim_cfg.LR_SCHEDULER != "cosine" or optim_cfg.WARMUP_EPOCH > 0:
            raise UserError(
                f"{why}, which goes with OPTIM.LR_SCHEDULER cosine and OPTIM.WARMUP_EPOCH 0; here they are "
                f"{optim_cfg.LR_SCHEDULER} and {optim_cfg.WARMUP_EPOCH}."
            )
        if phases is None:
            raise UserError(
                f"{why}, but this trainer does not say how many it takes: it calls build_lr_scheduler "
                "without phases. Choose epoch."
            )
        return PhasedCosine(optimizer, phases, lr_min)
    epochs = optim_cfg.MAX_EPOCH if phases is None else phases[0]
    if optim_cfg.WARMUP_EPOCH > 0:
        check_availability(optim_cfg.WARMUP_TYPE, AVAI_WARMUPS, "OPTIM.WARMUP_TYPE")

    scheduler: LRScheduler
    steps = [optim_cfg.STEPSIZE] if isinstance(optim_cfg.STEPSIZE, int) else list(optim_cfg.STEPSIZE or ())
    if optim_cfg.LR_SCHEDULER == "single_step":
        if not steps:
            raise UserError("OPTIM.STEPSIZE is empty; single_step needs one number of epochs, as in (10,)")
        scheduler = StepLR(optimizer, steps[-1] if steps[-1] > 0 else epochs, optim_cfg.GAMMA)
    elif optim_cfg.LR_SCHEDULER == "multi_step":
        scheduler = MultiStepLR(optimizer, steps, optim_cfg.GAMMA)
    else:
        # A float, as upstream's, is what torch computes with.
        scheduler = CosineAnnealingLR(optimizer, float(epochs), lr_min)  # type: ignore[arg-type]

    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if 0 < epochs <= optim_cfg.WARMUP_EPOCH:
        print(
            f"Warning: OPTIM.WARMUP_EPOCH is {optim_cfg.WARMUP_EPOCH} and OPTIM.MAX_EPOCH "
            f"{epochs}: all epochs are warm-up, and none has the learning rate OPTIM.LR"
        )
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)
