"""How far probabilities can be trusted: calibration error, temperature scaling, conformal sets.

Guo et al., On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599;
Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, https://arxiv.org/abs/2107.07511.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import UserError

BINS = 15  # as in Guo et al.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
STEPS = 40  # halvings: 400 ** (1 / 2**40) is 1 to eleven digits
MOST_SCORES = 2000  # that are kept of the validation images
DIGITS = 10**6  # to which scores are rounded up


class Bin(NamedTuple):
    """The images of a range of confidences: how many, and their mean confidence and accuracy in percent."""

    images: int
    confidence: float | None
    accuracy: float | None


# --- reliability ------------------------------------------------------------------------------------------


def reliability_bins(confidences: Tensor, hits: Tensor, bins: int = BINS) -> list[Bin]:
    """Images by their confidence, in bins ((m − 1) / bins, m / bins].

    Args:
        confidences: `(image)`, of the predicted class, 0 to 1.
        hits: `(image)`, whether it is the true one.
    """
    confidences, hits = confidences.double(), hits.double()
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    places = torch.bucketize(confidences, inner)
    found = []
    for place in range(bins):
        chosen = places == place
        count = int(chosen.sum())
        means = (100 * each[chosen].mean().item() if count else None for each in (confidences, hits))
        found.append(Bin(count, *means))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ over bins of count / n · |accuracy − confidence|, in percent (Guo et al., equation 3)."""
    total = sum(each.images for each in bins)
    gaps = (
        each.images * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    )
    return sum(gaps) / total


# --- temperature ------------------------------------------------------------------------------------------


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits have to be divided by for the least NLL, between 0.05 and 20 (Guo et al., section 4.2).

    The NLL is convex in 1 / temperature: where its slope changes its sign is found by halving, in float64.

    Args:
        logits: `(image class)`. A class that is masked may have minus infinity.
        labels: `(image)`.

    Raises:
        ValueError: there are no images, or the logit of a true class is not finite.
    """
    logits, labels = logits.double(), labels.long()
    true = logits.gather(1, labels[:, None])[:, 0]
    wrong = ~true.isfinite() | logits.isnan().any(dim=1) | logits.isposinf().any(dim=1)
    if not len(labels) or wrong.any():
        raise UserError(
            f"a temperature takes finite logits; of {len(labels):,} images, {int(wrong.sum()):,} have others"
        )

    def slope(inverse: float) -> float:
        probabilities = (logits * inverse).softmax(dim=1)
        expected = torch.where(probabilities > 0, probabilities * logits, 0.0).sum(dim=1)
        return (expected - true).mean().item()

    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if slope(low) >= 0:
        return MOST_TEMPERATURE
    if slope(high) <= 0:
        return LEAST_TEMPERATURE
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def is_at_bound(temperature: float) -> bool:
    """Whether the best temperature may lie beyond those that are searched."""
    return temperature in (LEAST_TEMPERATURE, MOST_TEMPERATURE)


# --- conformal sets ---------------------------------------------------------------------------------------


def conformal_scores(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> list[float]:
    """1 − probability of the true class of each image, sorted, and rounded up to 6 decimals.

    Of more than 2,000 as many are kept, evenly spaced, each the larger of those that it stands for: sets
    become no smaller.

    Args:
        logits: `(image class)`.
        labels: `(image)`.
    """
    probabilities = (logits.double() / temperature).softmax(dim=1)
    true = probabilities.gather(1, labels.long()[:, None])[:, 0]
    found = sorted(min(1.0, math.ceil(score * DIGITS) / DIGITS) for score in (1 - true).tolist())
    if len(found) <= MOST_SCORES:
        return found
    return [found[-(-rank * len(found) // MOST_SCORES) - 1] for rank in range(1, MOST_SCORES + 1)]


def conformal_threshold(scores: Sequence[float], coverage: float) -> float:
    """The largest 1 − probability of a class in a set: the ⌈(n + 1) · coverage⌉-th smallest of n scores.

    With it, the sets of new images hold their classes in at least the share `coverage`, on average, if images
    and scores are of one distribution (Angelopoulos and Bates, section 1.1).

    Args:
        scores: sorted, of `conformal_scores`.

    Returns:
        Infinity, for sets of all classes, where there are too few scores for the coverage.
    """
    rank = math.ceil((len(scores) + 1) * Fraction(str(coverage)))
    return scores[rank - 1] if rank <= len(scores) else math.inf


def in_set(probabilities: Sequence[float], threshold: float) -> int:
    """How many classes are in the set, of probabilities that are sorted, the best first."""
    margin = 1 / DIGITS  # float32, and the rounding of scores, must not leave out what lies on the threshold
    return sum(1 - each <= threshold + margin for each in probabilities)


def threshold_of(calibration: Mapping[str, Any] | None, coverage: float) -> float:
    """The threshold of a model's calibration.

    Raises:
        ValueError: it has none, or the coverage is no share.
    """
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)) or not 0 < coverage < 1:
        raise UserError(f"coverage is {coverage!r}; allowed are numbers between 0 and 1, such as 0.9.")
    if calibration is None:
        raise UserError(
            "coverage takes a model that was calibrated on validation images of its own classes. Train it by "
            "fit(...) on photos that have some, or by train.py with TEST.CALIBRATE True. Of other class "
            "names than theirs, nothing tells how often the model is right."
        )
    return conformal_threshold(calibration["conformal_scores"], coverage)


def too_few_scores(calibration: Mapping[str, Any], coverage: float) -> str:
    """Why sets of this coverage hold all classes; "" where there are images enough for smaller ones."""
    count = len(calibration["conformal_scores"])
    if conformal_threshold(calibration["conformal_scores"], coverage) < math.inf:
        return ""
    return (
        f"coverage {coverage:g} takes more validation images than the {count:,} of this model: each set "
        f"holds all classes. The most that they allow is {math.floor(1e4 * count / (count + 1)) / 1e4:g}."
    )


# --- as it is written into files --------------------------------------------------------------------------


def checked(calibration: Any, where: str) -> dict[str, Any] | None:
    """What a file holds as `calibration`; None where no temperature was fitted.

    Raises:
        ValueError: a number of it is missing, or cannot be meant; names `where`.
    """
    if calibration is None or (isinstance(calibration, dict) and "temperature" not in calibration):
        return None
    fault = "is no object"
    if isinstance(calibration, dict):
        fault = _fault(calibration)
    if fault:
        raise UserError(f"{where}: `calibration` {fault}. Set it to null, or train the model again.")
    return calibration


def _fault(calibration: Mapping[str, Any]) -> str:
    temperature, scores = calibration.get("temperature"), calibration.get("conformal_scores")
    images = calibration.get("images")
    if not _is_number(temperature, LEAST_TEMPERATURE, MOST_TEMPERATURE):
        return f"has the temperature {str(temperature)[:80]}"
    if not isinstance(scores, list) or not 0 < len(scores) <= MOST_SCORES:
        return f"has no list of 1 to {MOST_SCORES:,} conformal_scores"
    if not all(_is_number(each, 0, 1) for each in scores) or scores != sorted(scores):
        return "has conformal_scores that are not sorted, or not between 0 and 1"
    if not _is_number(images, len(scores), math.inf) or not isinstance(images, int):
        return f"has {len(scores)} conformal_scores of {str(images)[:80]} images"
    return ""


def checked_bins(bins: Any, where: str) -> list[Bin]:
    """Reliability bins of a file.

    Raises:
        ValueError: they are none; names `where`.
    """
    try:
        found = [Bin(*each) for each in bins]
    except TypeError:
        found = []
    for count, *means in found:
        empty = count == 0 and means == [None, None]
        if not _is_number(count, 0, 2**63) or not (empty or all(_is_number(each, 0, 100) for each in means)):
            found = []
            break
    if not sum(each.images for each in found):
        raise UserError(f"{where}: it holds no bins of count, confidence and accuracy.")
    return found


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
