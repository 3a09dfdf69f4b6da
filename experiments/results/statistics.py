"""Statistics of accuracies: means over seeds and datasets, standard deviations, harmonic means, noise.

The only place where these are computed: tables, figures and `parse_test_res.py` take them from here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev, stdev

import numpy as np

from experiments.results.hits import hits_of

ROUNDING = 0.005  # percent: published accuracies have two decimals
PARTIAL = "partial"  # state of a value that lacks seeds which others have
TEN = 10  # seeds of a dataset that asks for more than the others have
NORMAL = 1.959964  # 0.975 quantile of the standard normal distribution


@dataclass(frozen=True)
class Term:
    """The accuracy on one set of test images, as a part of a value.

    Attributes:
        weight: points by which the value changes with a point of this accuracy.
        accuracy: percent, the mean over the seeds.
        images: how many; None if unknown.
        predictions: the file of each seed's predictions; empty where one lacks them.
    """

    weight: float
    accuracy: float
    images: int | None = None
    predictions: Mapping[int, Path] = field(default_factory=dict)


Terms = Mapping[tuple[str, str], Term]  # by dataset and role


@dataclass(frozen=True)
class Value:
    """A mean accuracy in percent, of one method.

    Attributes:
        mean: None if nothing is known, or if too much is missing for an average.
        by_seed: the accuracy of each seed alone; `std` is taken over these.
        wanted: how many seeds there should be.
        state: why seeds are missing; "" if none is.
        lacking: which part of an average is missing, in words.
        terms: the accuracies that it is made of; empty for another metric.
    """

    mean: float | None
    by_seed: Mapping[int, float] = field(default_factory=dict)
    wanted: int = 0
    state: str = ""
    lacking: str = ""
    terms: Terms = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_complete(self) -> bool:
        return self.mean is not None and not self.state and not self.lacking

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds; None below two seeds."""
        return population_std(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def seed_error(self) -> float | None:
        """Standard error of the mean over the seeds, s / sqrt(n); None below two seeds."""
        n = len(self.by_seed)
        return stdev(self.by_seed.values()) / n**0.5 if n > 1 else None

    @property
    def image_error(self) -> float | None:
        """Standard error over the test images: binomial, sqrt(p (1 - p) / n), also of HM and averages.

        It does not fall with more seeds, which are tested on the same images.
        """
        if not self.terms or any(not term.images for term in self.terms.values()):
            return None
        variances = (
            term.weight**2 * term.accuracy * (100 - term.accuracy) / (term.images or 1)
            for term in self.terms.values()
        )
        return math.sqrt(sum(variances))


def mean(values: Collection[float]) -> float:
    return fmean(values)


def population_std(values: Collection[float]) -> float:
    """As `numpy.std`, and so as Dassl's `parse_test_res.py`, has it."""
    return _pstdev(tuple(values))


_pstdev = functools.lru_cache(maxsize=100_000)(pstdev)  # exact, so slow; tables and figures ask again


def over_seeds(
    by_seed: Mapping[int, float], wanted: int, state: str = "", terms: Terms | None = None
) -> Value:
    return Value(mean(by_seed.values()) if by_seed else None, dict(by_seed), wanted, state, "", terms or {})


def _scaled(terms: Terms, weight: float) -> dict[tuple[str, str], Term]:
    return {key: replace(term, weight=weight * term.weight) for key, term in terms.items()}


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0


def harmonic(base: Value, new: Value) -> Value:
    """The harmonic mean of two means, over the seeds that both have."""
    wanted, state = max(base.wanted, new.wanted), base.state or new.state
    lacking = base.lacking or new.lacking
    seeds = sorted(set(base.by_seed) & set(new.by_seed))
    if lacking or not seeds:
        return Value(None, {}, wanted, state, lacking)
    if len(seeds) < max(len(base.by_seed), len(new.by_seed)):
        state = state or PARTIAL
    by_seed = {seed: harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in seeds}
    b, n = (mean([half.by_seed[seed] for seed in seeds]) for half in (base, new))
    terms: Terms = {}
    if base.terms and new.terms and b + n > 0:  # by the derivatives of 2bn / (b + n)
        terms = {
            **_scaled(base.terms, 2 * n**2 / (b + n) ** 2),
            **_scaled(new.terms, 2 * b**2 / (b + n) ** 2),
        }
    return Value(harmonic_mean(b, n), by_seed, wanted, state, "", terms)


def over_datasets(values: Sequence[Value | None]) -> Value:
    """The mean over datasets, only if all of them have a result of each seed that one of them has.

    Datasets with TEN seeds or more give the seeds that the others have. `by_seed` holds the mean over the
    datasets for each seed, so that `std` is over these means.
    """
    several = [set(value.by_seed) for value in values if value]
    seeds = sorted(set().union(*([each for each in several if len(each) < TEN] or several)))
    complete = [value for value in values if value and value.is_complete and {*seeds} <= {*value.by_seed}]
    if len(complete) < len(values) or not values:
        return Value(None, lacking=f"{len(complete)}/{len(values)} datasets")
    by_seed = {seed: mean([value.by_seed[seed] for value in complete]) for seed in seeds}
    terms: dict[tuple[str, str], Term] = {}
    if all(value.terms for value in complete):
        for value in complete:
            terms |= _scaled(value.terms, 1 / len(complete))
    return over_seeds(by_seed, len(seeds), terms=terms)


@dataclass(frozen=True)
class Paired:
    """The difference of two methods on the same seeds and test images.

    Attributes:
        points: percentage points.
        half_width: of its 95 % interval; None where one seed without predictions cannot tell.
    """

    points: float
    half_width: float | None

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval, and it does not hold 0."""
        return self.half_width is not None and abs(self.points) > self.half_width


def paired(ours: Value, theirs: Value) -> Paired | None:
    """Ours less theirs, with its 95 % interval; None where they share no seed.

    Two things may go otherwise the next time. The seeds: t(0.975, n - 1) · s / sqrt(n), with s the sample
    deviation of the differences of n seeds (Student's paired t). The test images: 1.96 · s / sqrt(n), with s
    the deviation of the differences of n images, each a mean over the seeds; of one seed this is the interval
    of McNemar's setting (Agresti, Categorical Data Analysis, 11.1.1). The half-width of both together is the
    root of the sum of their squares (Zou and Donner 2008, doi 10.1002/sim.3095). What is not known, of one
    seed or without predictions, is left out.
    """
    if ours.mean is None or theirs.mean is None:
        return None
    seeds = sorted(set(ours.by_seed) & set(theirs.by_seed))
    constant = next((each for each in (ours, theirs) if set(each.by_seed) == {0}), None)  # zero-shot
    if not seeds and constant is not None:
        seeds = sorted((theirs if constant is ours else ours).by_seed)
    if not seeds:
        return None
    differences = [_at(ours, seed) - _at(theirs, seed) for seed in seeds]
    widths = [_t(len(seeds)) * stdev(differences) / len(seeds) ** 0.5] if len(seeds) > 1 else []
    over_images = _image_deviation(ours, theirs)
    if over_images is not None:
        widths.append(NORMAL * over_images)
    return Paired(ours.mean - theirs.mean, math.hypot(*widths) if widths else None)


def _at(value: Value, seed: int) -> float:
    return value.by_seed.get(seed, value.by_seed.get(0, math.nan))


def _image_deviation(ours: Value, theirs: Value) -> float | None:
    """The standard error of a difference over the test images; None where predictions lack or do not fit."""
    if not ours.terms or ours.terms.keys() != theirs.terms.keys():
        return None
    variance = 0.0
    for key in ours.terms:
        hits = [_mean_hits(value.terms[key]) for value in (ours, theirs)]
        if hits[0] is None or hits[1] is None or hits[0][0] != hits[1][0]:
            return None
        each = hits[0][1] - hits[1][1]
        variance += float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0
    return math.sqrt(variance)


def _mean_hits(term: Term) -> tuple[str, np.ndarray] | None:
    """Which images, and of each the percent of seeds that hit it, times the weight."""
    found = [hits_of(path) for path in term.predictions.values()]
    if not found or any(each is None or each[0] != found[0][0] for each in found):  # type: ignore[index]
        return None
    return found[0][0], 100 * term.weight * np.mean([each[1] for each in found if each], axis=0)  # type: ignore[index]


@functools.cache
def _t(n: int) -> float:
    """The 0.975 quantile of Student's t for n values."""
    from scipy.special import stdtrit  # here, since it takes a while to import

    return float(stdtrit(n - 1, 0.975))


def noise(value: Value) -> float | None:
    """How far two means of `n` seeds each lie apart at most by chance, in 95 of 100 cases, in percent.

    t(0.975, n - 1) · s · sqrt(2 / n), with s the sample standard deviation of our seeds. The published mean
    has noise of its own, which is taken to be as large as ours: hence the 2.

    Returns:
        None for less than two seeds.
    """
    n = len(value.by_seed)
    if n < 2:
        return None
    return _t(n) * stdev(value.by_seed.values()) * (2 / n) ** 0.5


def is_within_noise(value: Value, published: float) -> bool | None:
    """Whether the difference to a published value can be chance; None if one seed cannot tell."""
    bound = noise(value)
    if bound is None or value.mean is None:
        return None
    return abs(value.mean - published) <= bound + ROUNDING
