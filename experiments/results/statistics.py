"""Statistics of accuracies: means over seeds and datasets, standard deviations, harmonic means, noise.

The only place where these are computed: tables, figures and `parse_test_res.py` take them from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev, stdev

ROUNDING = 0.005  # percent: published accuracies have two decimals
PARTIAL = "partial"  # state of a value that lacks seeds which others have


@dataclass(frozen=True)
class Value:
    """A mean accuracy in percent, of one method.

    Attributes:
        mean: None if nothing is known, or if too much is missing for an average.
        by_seed: the accuracy of each seed alone; `std` is taken over these.
        wanted: how many seeds there should be.
        state: why seeds are missing; "" if none is.
        lacking: which part of an average is missing, in words.
    """

    mean: float | None
    by_seed: Mapping[int, float] = field(default_factory=dict)
    wanted: int = 0
    state: str = ""
    lacking: str = ""

    @property
    def is_complete(self) -> bool:
        return self.mean is not None and not self.state and not self.lacking

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds; None below two seeds."""
        return population_std(self.by_seed.values()) if len(self.by_seed) > 1 else None


def mean(values: Collection[float]) -> float:
    return fmean(values)


def population_std(values: Collection[float]) -> float:
    """As `numpy.std`, and so as Dassl's `parse_test_res.py`, has it."""
    return pstdev(values)


def over_seeds(by_seed: Mapping[int, float], wanted: int, state: str = "") -> Value:
    return Value(mean(by_seed.values()) if by_seed else None, dict(by_seed), wanted, state)


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
    means = (mean([half.by_seed[seed] for seed in seeds]) for half in (base, new))
    return Value(harmonic_mean(*means), by_seed, wanted, state)


def over_datasets(values: Sequence[Value | None]) -> Value:
    """The mean over datasets, only if all of them have a result of each seed that one of them has.

    `by_seed` holds the mean over the datasets for each seed, so that `std` is over these means.
    """
    seeds = sorted(set().union(*(value.by_seed for value in values if value)))
    complete = [value for value in values if value and value.is_complete and len(value.by_seed) == len(seeds)]
    if len(complete) < len(values) or not values:
        return Value(None, lacking=f"{len(complete)}/{len(values)} datasets")
    by_seed = {seed: mean([value.by_seed[seed] for value in complete]) for seed in seeds}
    return over_seeds(by_seed, max(value.wanted for value in complete))


def noise(value: Value) -> float | None:
    """How far two means of `n` seeds each lie apart at most by chance, in 95 of 100 cases, in percent.

    t(0.975, n - 1) · s · sqrt(2 / n), with s the sample standard deviation of our seeds. The published mean
    has noise of its own, which is taken to be as large as ours: hence the 2.

    Returns:
        None for less than two seeds.
    """
    from scipy import stats  # here, since it takes a second to import

    n = len(value.by_seed)
    if n < 2:
        return None
    return float(stats.t.ppf(0.975, n - 1)) * stdev(value.by_seed.values()) * (2 / n) ** 0.5


def is_within_noise(value: Value, published: float) -> bool | None:
    """Whether the difference to a published value can be chance; None if one seed cannot tell."""
    bound = noise(value)
    if bound is None or value.mean is None:
        return None
    return abs(value.mean - published) <= bound + ROUNDING
