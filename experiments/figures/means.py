"""Means over datasets and seeds, and what is missing of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from experiments.results.runs import Run
from experiments.results.statistics import harmonic_mean

MOST_MISSING = 4  # that a line names
HOLLOW = ": hollow points lack seeds, and points that lack a dataset are left out"


@dataclass(frozen=True)
class Mean:
    """An accuracy in percent, averaged over datasets.

    Attributes:
        value: the mean over the datasets of their means over the seeds; None if a dataset has no result,
            since a mean over other datasets is another quantity.
        by_seed: the mean over the datasets, of each seed that has all of them.
        missing: wanted runs without a result.
    """

    value: float | None
    by_seed: dict[int, float]
    missing: tuple[Run, ...] = ()

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, as `parse_test_res.py` takes it; 0 for one seed."""
        return pstdev(self.by_seed.values()) if self.by_seed else 0.0


def mean_over_datasets(runs: Sequence[Run], datasets: Sequence[str]) -> Mean:
    """The mean of runs that differ in dataset and seed only, over these datasets."""
    accuracies: dict[str, dict[int, float]] = {dataset: {} for dataset in datasets}
    for run in runs:
        if run.accuracy is not None:
            accuracies[run.dataset][run.seed] = run.accuracy
    missing = tuple(run for run in runs if run.accuracy is None)
    if not all(accuracies.values()):
        return Mean(None, {}, missing)
    value = fmean(fmean(each.values()) for each in accuracies.values())
    complete = sorted(set.intersection(*(set(each) for each in accuracies.values())))
    by_seed = {seed: fmean(each[seed] for each in accuracies.values()) for seed in complete}
    return Mean(value, by_seed, missing)


def harmonic(base: Mean, new: Mean) -> Mean:
    """HM of averaged base and new accuracies, as published averages are."""
    missing = (*base.missing, *new.missing)
    if base.value is None or new.value is None:
        return Mean(None, {}, missing)
    seeds = base.by_seed.keys() & new.by_seed.keys()
    by_seed = {seed: harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in sorted(seeds)}
    return Mean(harmonic_mean(base.value, new.value), by_seed, missing)


def base_new_harmonic(runs: Sequence[Run], datasets: Sequence[str]) -> tuple[Mean, Mean, Mean]:
    """The means of base and of new classes, and the harmonic mean of both."""
    base, new = (
        mean_over_datasets([run for run in runs if run.role == role], datasets) for role in ("base", "new")
    )
    return base, new, harmonic(base, new)


def nothing_to_draw(runs: Sequence[Run]) -> ValueError:
    """The error where no mean is known, which says what could be drawn instead."""
    done = sorted({run.dataset for run in runs if run.accuracy is not None})
    if not done:
        return ValueError(f"None of the {len(runs)} runs of {runs[0].protocol} has a result yet.")
    count = len({run.dataset for run in runs})
    return ValueError(
        f"Nothing has results on all {count} datasets yet, over which is averaged; --datasets takes a part "
        f"of them. There are results on {', '.join(done)}."
    )


def missing_lines(runs: Sequence[Run]) -> list[str]:
    """One line that says how many wanted runs have no result, and names the first of them."""
    missing = [run for run in runs if run.accuracy is None]
    if not missing:
        return []
    named = [str(run.folder or _name(run)) for run in missing[:MOST_MISSING]]
    more = f" and {len(missing) - MOST_MISSING} more" if len(missing) > MOST_MISSING else ""
    return [f"{len(missing)} of {len(runs)} runs have no result yet: {', '.join(named)}{more}"]


def missing_footnote(runs: Sequence[Run], shown: str = HOLLOW) -> str:
    """How many are missing, and how that shows; nothing if none is."""
    missing = sum(run.accuracy is None for run in runs)
    return f"{missing} of {len(runs)} runs are missing{shown}." if missing else ""


def _name(run: Run) -> str:
    return f"{run.method.label} on {run.dataset} ({run.role}, {run.shots} shots, seed {run.seed})"
