"""Running averages of what training prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

__all__ = ["AverageMeter", "MetricMeter"]


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
