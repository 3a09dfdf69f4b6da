"""Running averages of what training prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prompted_clip.errors import NotFiniteError

__all__ = ["AverageMeter", "DeferredMetrics", "MetricMeter"]


class AverageMeter:
    """Keeps the last value of a quantity and its average.

    Args:
        ema: average exponentially (0.9 old, 0.1 new) instead of evenly.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Takes in a value that stands for `n` samples."""
        self.val = val.item() if isinstance(val, Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = self.avg * 0.9 + self.val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """Averages by name. As text, with the last values: `loss 1.4142 (1.4530) acc 25.0000 (31.2500)`."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | Tensor] | None) -> None:
        """Takes in one value per name; nothing if there is none.

        Raises:
            TypeError: `input_dict` is not a mapping.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(
                f"MetricMeter.update() takes a dictionary of values, not {type(input_dict).__name__}"
            )
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())


class DeferredMetrics:
    """Metrics and losses of steps that stay on the GPU until they are read, all with one sync.

    What is a number, or on the CPU, is there at once, and needs no sync.
    """

    _most_losses = 1000  # so that a training loop that reads no metrics cannot pile them up

    def __init__(self) -> None:
        self._metrics: list[tuple[Any, Any]] = []
        self._losses: list[tuple[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._metrics)

    def add(self, key: Any, metrics: Any) -> bool:
        """Adds a step's metrics, a mapping or None. Returns whether they can be read without a sync."""
        waits = isinstance(metrics, Mapping) and any(is_on_gpu(value) for value in metrics.values())
        if waits:  # copies, as what computed them may compute the next ones in their place
            metrics = {name: _copy(value) for name, value in metrics.items()}
        self._metrics.append((key, metrics))
        return not waits

    def add_loss(self, step: str, loss: Tensor) -> None:
        """Adds a loss that has to be finite; on the CPU, it is checked at once."""
        self._losses.append((step, loss.detach().flatten()))
        if not is_on_gpu(loss) or len(self._losses) >= self._most_losses:
            self.check_losses()

    def check_losses(self) -> None:
        """Raises a FloatingPointError that names the first step whose loss is not finite. Forgets them."""
        losses, self._losses = self._losses, []
        if not losses:
            return
        device = losses[0][1].device
        finite = torch.isfinite(torch.cat([loss.to(device) for _, loss in losses])).tolist()
        steps = [step for step, loss in losses for _ in range(len(loss))]
        if not all(finite):
            raise NotFiniteError(f"Loss is infinite or NaN! ({steps[finite.index(False)]})")

    def flush(self) -> list[tuple[Any, Any]]:
        """Each key with its metrics, in order, as numbers where they were on a GPU. Forgets them.

        Raises:
            FloatingPointError: a loss was not finite.
        """
        self.check_losses()
        added, self._metrics = self._metrics, []
        mappings = [metrics for _, metrics in added if isinstance(metrics, Mapping)]
        waiting = [value for metrics in mappings for value in metrics.values() if is_on_gpu(value)]
        if not waiting:
            return added
        numbers = iter(torch.stack([value.to(waiting[0].device) for value in waiting]).tolist())
        return [
            (key, {name: next(numbers) if is_on_gpu(value) else value for name, value in metrics.items()})
            if isinstance(metrics, Mapping)
            else (key, metrics)
            for key, metrics in added
        ]


def is_on_gpu(value: Any) -> bool:
    """Whether reading this number needs a sync."""
    return isinstance(value, Tensor) and value.is_cuda and value.dim() == 0 and value.is_floating_point()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
