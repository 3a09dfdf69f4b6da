"""Scores have to be finite: the largest of a row with a NaN would be the NaN, and its class the answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prompted_clip.errors import NotFiniteError


class FiniteScores:
    """Looks at each batch's scores; on a GPU, at those of all batches with one sync.

    A class may have a score of minus infinity, as where it is masked: what has to be finite is the largest
    score of each image.

    Args:
        what: whose batches they are, in the message.
        hint: what the reason may be.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = what
        self.hint = hint
        self._flags: list[Tensor] = []
        self._done = 0

    def add(self, scores: Any) -> None:
        """Adds a batch's `(batch class)`; what is no tensor of floats is not looked at.

        Raises:
            FloatingPointError: names the batch.
        """
        if isinstance(scores, Tensor) and scores.is_floating_point() and scores.numel():
            largest = scores.detach().flatten(1).amax(dim=1) if scores.dim() > 1 else scores.detach()
            self._flags.append(largest.isfinite().all())
        else:
            self._flags.append(torch.tensor(True))
        if not self._flags[-1].is_cuda:
            self.check()

    def check(self) -> None:
        """Raises a FloatingPointError for the first batch whose scores are not finite."""
        if not self._flags:
            return
        device = self._flags[-1].device
        finite = torch.stack([flag.to(device) for flag in self._flags]).tolist()
        done, self._done, self._flags = self._done, self._done + len(finite), []
        if not all(finite):
            raise NotFiniteError(
                f"Batch {done + finite.index(False) + 1} of {self.what} has scores that are NaN or infinite: "
                f"nothing is scored.{self.hint}"
            )
