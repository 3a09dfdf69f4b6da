"""Means over datasets and seeds, and what is missing of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, pstdev

from .data import Run

MOST_MISSING = 4  # that a line names


@dataclass(frozen=True)
class Mean:
    """An accuracy in percent, averaged over datasets.

    Attributes:
        value: the mean over the datasets of their means over the seeds; None without a run.
        by_seed: the mean over the datasets, of each seed that has all of them.
        missing: planned runs without a result.
    """

    value: float | None
    by_seed: dict[int, float]
    missing: tuple[Run, ...] = ()

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, as `parse_test_res.py` takes it; 0 for one seed."""
        return pstdev(self.by_seed.values()) if self.by_seed else 0.0


def mean_over_datasets(runs: Sequence[Run]) -> Mean:
    """The mean of runs that differ in dataset and seed only."""
    accuracies: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        if run.accuracy is not None:
            accuracies[run.dataset][run.seed] = run.accuracy
    missing = tuple(run for run in runs if run.accuracy is None)
    if not accuracies:
        return Mean(None, {}, missing)
    value = mean(mean(each.values()) for each in accuracies.values())
    seeds = {run.seed for run in runs}
    datasets = {run.dataset for run in runs}
    by_seed = {
        seed: mean(accuracies[name][seed] for name in datasets)
        for seed in sorted(seeds)
        if all(seed in accuracies.get(name, ()) for name in datasets)
    }
    return Mean(value, by_seed, missing)


def harmonic(base: Mean, new: Mean) -> Mean:
    """HM of averaged base and new accuracies, as published averages are."""
    missing = (*base.missing, *new.missing)
    if base.value is None or new.value is None:
        return Mean(None, {}, missing)
    seeds = base.by_seed.keys() & new.by_seed.keys()
    by_seed = {seed: harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in sorted(seeds)}
    return Mean(harmonic_mean(base.value, new.value), by_seed, missing)


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base and new else 0.0


def missing_lines(runs: Sequence[Run]) -> list[str]:
    """One line that says how many planned runs have no result, and names the first of them."""
    missing = [run for run in runs if run.result is None]
    if not missing:
        return []
    named = [str(run.folder) for run in missing[:MOST_MISSING]]
    more = f" and {len(missing) - MOST_MISSING} more" if len(missing) > MOST_MISSING else ""
    return [f"{len(missing)} of {len(runs)} planned runs have no result yet: {', '.join(named)}{more}"]


def missing_footnote(runs: Sequence[Run]) -> str:
    missing = sum(run.result is None for run in runs)
    return f"{missing} of {len(runs)} planned runs are missing; hollow points lack some." if missing else ""
