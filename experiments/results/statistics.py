"""The numbers of tables: means over seeds and datasets, deviations, harmonic means, the noise of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev, stdev

from scipy import stats

ROUNDING = 0.005  # percent: published accuracies have two decimals


@dataclass(frozen=True)
class Value:
    """An accuracy in percent, of one method.

    Attributes:
        mean: None if nothing is known, or if too much is missing for an average.
        by_seed: what it is for each seed alone; its deviation is taken from there.
        wanted: how many seeds there should be.
        state: what became of the seeds that are missing.
        lacking: what is missing of an average, in words.
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
    def deviation(self) -> float | None:
        """Standard deviation of the population, as `parse_test_res.py` has it; None below two seeds."""
        return pstdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


def over_seeds(by_seed: Mapping[int, float], wanted: int, state: str = "") -> Value:
    return Value(fmean(by_seed.values()) if by_seed else None, dict(by_seed), wanted, state)


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0


def harmonic(base: Value, new: Value) -> Value:
    """The harmonic mean of two means; of the seeds that both have."""
    if base.lacking or new.lacking or base.mean is None or new.mean is None:
        return Value(
            None, {}, max(base.wanted, new.wanted), base.state or new.state, base.lacking or new.lacking
        )
    seeds = sorted(set(base.by_seed) & set(new.by_seed))
    by_seed = {seed: harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in seeds}
    means = (base.mean, new.mean)
    if not base.is_complete or not new.is_complete:
        if not seeds:
            return Value(None, {}, max(base.wanted, new.wanted), base.state or new.state)
        means = (fmean(base.by_seed[seed] for seed in seeds), fmean(new.by_seed[seed] for seed in seeds))
    state = base.state or new.state
    return Value(harmonic_mean(*means), by_seed, max(base.wanted, new.wanted), state)


def over_datasets(values: Sequence[Value | None]) -> Value:
    """The mean over datasets, only if all of them are there with all of their seeds.

    For each seed it is the mean over the datasets, too; its deviation is that of these means.
    """
    complete = [value for value in values if value is not None and value.is_complete]
    if len(complete) < len(values) or not values:
        return Value(None, lacking=f"{len(complete)}/{len(values)} datasets")
    shared = set.intersection(*(set(value.by_seed) for value in complete))
    by_seed = {seed: fmean(value.by_seed[seed] for value in complete) for seed in sorted(shared)}
    mean = fmean(value.mean for value in complete if value.mean is not None)
    return Value(mean, by_seed, max(value.wanted for value in complete))


def noise(value: Value) -> float | None:
    """How far two means of `n` seeds each lie apart at most by chance, in 95 of 100 cases, in percent.

    t(0.975, n - 1) · s · sqrt(2 / n), with s the sample deviation of our seeds. The published mean has noise
    of its own, which is taken to be as large as ours: hence the 2.

    Returns:
        None for less than two seeds.
    """
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
