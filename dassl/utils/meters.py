"""Running averages of what training prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["AverageMeter", "MetricMeter", "UnreadFigures"]


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


class UnreadFigures:
    """What steps gave to be logged, kept as it is until all of it is read: a GPU is waited for once, then.

    Figures that are numbers, or on the CPU, are there at once, so that nothing need wait for them.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: Any, figures: Any) -> bool:
        """Keeps a step's figures, a mapping or None. Returns whether they can be read without waiting."""
        waits = False
        if isinstance(figures, Mapping) and any(is_on_gpu(value) for value in figures.values()):
            waits = True
            # Copies, as what computed them may compute the next ones in their place.
            figures = {name: _copy(value) for name, value in figures.items()}
        self._kept.append((key, figures))
        return not waits

    def read(self) -> list[tuple[Any, Any]]:
        """Each key with its figures, in order; those that were on a GPU are numbers now. Forgets them."""
        kept, self._kept = self._kept, []
        mappings = [figures for _, figures in kept if isinstance(figures, Mapping)]
        waiting = [value for figures in mappings for value in figures.values() if is_on_gpu(value)]
        if not waiting:
            return kept
        numbers = iter(torch.stack([value.to(waiting[0].device) for value in waiting]).tolist())
        return [
            (key, {name: next(numbers) if is_on_gpu(value) else value for name, value in figures.items()})
            if isinstance(figures, Mapping)
            else (key, figures)
            for key, figures in kept
        ]


def is_on_gpu(value: Any) -> bool:
    """Whether it is a number that the host would have to wait for."""
    return isinstance(value, Tensor) and value.is_cuda and value.dim() == 0 and value.is_floating_point()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
