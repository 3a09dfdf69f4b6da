"""Looks up what methods reach, among the runs of one section: on a dataset, and over datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.methods import Method
from experiments.report.tables import Section
from experiments.results.benchmarks import ELEVEN
from experiments.results.runs import Run
from experiments.results.states import MISSING, NEEDS_AN_EYE
from experiments.results.statistics import Value, harmonic, over_datasets, over_seeds


class Setting(NamedTuple):
    """What may vary within one section, beside method, dataset, role and seed."""

    shots: int = 0
    curve: str = ""
    value: float | None = None


class Accuracies:
    """The values of the runs of one section: accuracies, or its other metric, in percent."""

    def __init__(self, section: Section) -> None:
        self._metric = section.metric
        self._runs: defaultdict[tuple, list[Run]] = defaultdict(list)
        for run in section.runs:
            setting = Setting(run.shots, run.curve, run.value)
            self._runs[run.method.key, run.dataset, run.role, setting].append(run)

    def of(self, method: Method, dataset: str, role: str, setting: Setting) -> Value | None:
        """None if no such run is wanted. Zero-shot is the same for all shots."""
        if method.is_zero_shot:
            setting = setting._replace(shots=0)
        runs = self._runs.get((method.key, dataset, role, setting))
        if not runs:
            return None
        by_seed = {run.seed: getattr(run.result, self._metric) for run in runs if run.result}
        by_seed = {seed: value for seed, value in by_seed.items() if value is not None}
        states = {run.state for run in runs} | ({MISSING} if len(by_seed) < len(runs) else set())
        worst = next((state for state in NEEDS_AN_EYE if state in states), "")
        return over_seeds(by_seed, len(runs), worst)

    def base_to_novel(self, method: Method, dataset: str, setting: Setting) -> list[Value | None]:
        """Base, new, and their harmonic mean."""
        base, new = (self.of(method, dataset, role, setting) for role in ("base", "new"))
        return [base, new, harmonic(base, new) if base and new else None]

    def base_to_novel_average(
        self, method: Method, datasets: Sequence[str], setting: Setting
    ) -> list[Value | None]:
        """Base, new, the harmonic mean of these averages, and the mean of the datasets' harmonic means."""
        each = [self.base_to_novel(method, dataset, setting) for dataset in datasets]
        base, new, mean_of_hms = (over_datasets(values) for values in zip(*each, strict=True))
        return [base, new, harmonic(base, new), mean_of_hms]

    def average(self, method: Method, datasets: Sequence[str], role: str, setting: Setting) -> Value:
        return over_datasets([self.of(method, dataset, role, setting) for dataset in datasets])


def methods_of(runs: Iterable[Run]) -> list[Method]:
    methods = {run.method.key: run.method for run in runs}
    return sorted(methods.values(), key=lambda method: (method.place, method.label))


def averaged(datasets: Sequence[str]) -> list[str]:
    """The datasets of an average: the papers' benchmarks, if there are any among them."""
    return [dataset for dataset in datasets if dataset in ELEVEN] or list(datasets)
