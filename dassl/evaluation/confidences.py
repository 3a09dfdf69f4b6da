"""How sure a model was of each image, and how often it was right: what result.json has as `calibration`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dassl.utils.distributed import gather, interleave, is_sharded
from prompted_clip.calibration import (
    conformal_scores,
    expected_calibration_error,
    fit_temperature,
    is_at_bound,
    reliability_bins,
)
from prompted_clip.errors import UserError


def is_scored(scores: Any, labels: Any) -> bool:
    """Whether these are logits `(batch class)` and labels `(batch)`."""
    return (
        isinstance(scores, Tensor)
        and isinstance(labels, Tensor)
        and scores.dim() == 2
        and labels.shape == scores.shape[:1]
        and scores.shape[1] > 0
        and scores.is_floating_point()
        and not labels.is_floating_point()
    )


class Confidences:
    """Collects the confidence, hit and NLL of each image of a split; all stays on its device until the end.

    Args:
        cfg: reads `DATALOADER.TEST.SAMPLER`.
        temperature: these are also collected of logits that are divided by it.
    """

    def __init__(self, cfg: Any, temperature: float | None = None) -> None:
        self.cfg = cfg
        self.temperatures = [1.0] if temperature is None else [1.0, temperature]
        self._batches: list[Tensor] = []  # (3 or 5, batch)
        self._known = True

    def add(self, scores: Any, labels: Any) -> None:
        """Adds a batch: logits `(batch class)` and labels `(batch)`. Of anything else nothing is told."""
        self._known = self._known and is_scored(scores, labels)
        if not self._known:
            return
        scores = scores.detach() if scores.dtype == torch.float64 else scores.detach().float()
        labels = labels.detach().long()
        there = (labels >= 0) & (labels < scores.shape[1])  # a class without a logit is never right
        rows = [(scores.max(1)[1] == labels).to(scores)]
        for temperature in self.temperatures:
            each = (scores / temperature).log_softmax(dim=1)
            true = each.gather(1, labels.clamp(0, scores.shape[1] - 1)[:, None])[:, 0]
            rows += [each.amax(dim=1).exp(), torch.where(there, -true, math.inf)]
        self._batches.append(torch.stack(rows))

    def result(self) -> dict[str, Any] | None:
        """`ece` and bins in percent, and `nll`; with a temperature also `..._after`. None if not known.

        All processes have to call it.
        """
        known = self._known and bool(self._batches)
        images = torch.cat(self._batches, dim=1).double().cpu().T.tolist() if known else []
        if is_sharded(self.cfg):
            shards = gather(images if self._known else None)
            if None in shards:
                return None
            images = interleave(shards)
        if not images:
            return None
        hits, *rest = torch.tensor(images, dtype=torch.float64).T.contiguous()
        found: dict[str, Any] = {}
        for suffix, confidences, nll in zip(("", "_after"), rest[::2], rest[1::2], strict=False):
            bins = reliability_bins(confidences, hits)
            mean = nll.mean().item()
            found |= {
                f"ece{suffix}": expected_calibration_error(bins),
                f"bins{suffix}": [list(each) for each in bins],
                f"nll{suffix}": mean if math.isfinite(mean) else None,
            }
        return found


class HeldOut:
    """Collects the logits of validation images, for `temperature`; they stay on their device until then."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._known = True

    def add(self, scores: Any, labels: Any) -> None:
        """Adds a batch: logits `(batch class)` and labels `(batch)`."""
        self._known = self._known and is_scored(scores, labels)
        if self._known:
            self._batches.append((scores.detach(), labels.detach()))

    def fit(self) -> dict[str, Any]:
        """`temperature`, how many `images` it is of, and `conformal_scores`; or a `note` why there is none.

        All processes have to call it.
        """
        own = [(scores.float().cpu(), labels.cpu()) for scores, labels in self._batches]
        shards: list[Any] = [own if self._known else None]
        if is_sharded(self.cfg):
            shards = gather(shards[0])
        if None in shards:
            return {"note": "not fitted: the trainer gives no logits (batch class)"}
        batches = [each for shard in shards for each in shard]
        if not batches:
            return {"note": "not fitted: there are no val images"}
        logits, labels = (torch.cat(each) for each in zip(*batches, strict=True))
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            return {"note": "not fitted: val images have labels without a logit"}
        try:
            temperature = fit_temperature(logits, labels)
        except UserError as error:
            return {"note": f"not fitted: {error}"}
        found = {
            "temperature": temperature,
            "fitted_on": "val",
            "images": len(labels),
            "conformal_scores": conformal_scores(logits, labels, temperature),
        }
        if is_at_bound(temperature):
            found["note"] = (
                "the temperature is at the bound of what is searched: too few val images, or too easy"
            )
        return found
