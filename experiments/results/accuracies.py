"""Looks up what methods reach, among the runs of one section: on a dataset, and averaged over datasets.

Tables and figures ask here, so that they show the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.methods import Method
from experiments.protocols import protocol_names, read_protocol
from experiments.results.benchmarks import ELEVEN, SYNTHETIC, in_order, label_of
from experiments.results.runs import Run
from experiments.results.states import MISSING, UNFINISHED
from experiments.results.statistics import Term, Value, harmonic, mean, over_datasets, over_seeds
from experiments.run_folder import PREDICTIONS_OF

METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro F1"}


class Group(NamedTuple):
    """Runs that one section of a report shows together.

    Attributes:
        shots: 0 where they vary or there are none.
    """

    protocol: str
    shots: int
    source: str


class Setting(NamedTuple):
    """What may vary within one section, beside method, dataset, role and seed."""

    shots: int = 0
    curve: str = ""
    value: float | None = None


class Accuracies:
    """The accuracies of some runs, or another of METRICS, in percent."""

    def __init__(self, runs: Iterable[Run], metric: str = "accuracy") -> None:
        self._metric = metric
        self._runs: defaultdict[tuple, list[Run]] = defaultdict(list)
        for run in runs:
            setting = Setting(run.shots, run.curve, run.value)
            self._runs[run.method.key, run.dataset, run.role, setting].append(run)

    def of(self, method: Method, dataset: str, role: str, setting: Setting) -> Value | None:
        """None if no such run is wanted. Zero-shot is the same for all shots and seeds."""
        if method.is_zero_shot:
            setting = setting._replace(shots=0)
        runs = self._runs.get((method.key, dataset, role, setting))
        if not runs:
            return None
        by_seed = {run.seed: getattr(run.result, self._metric) for run in runs if run.result}
        by_seed = {seed: value for seed, value in by_seed.items() if value is not None}
        terms = self._terms(runs) if by_seed and self._metric == "accuracy" else {}
        if method.is_zero_shot and by_seed:
            return over_seeds({0: mean(by_seed.values())}, 1, terms=terms)
        states = {run.state for run in runs} | ({MISSING} if len(by_seed) < len(runs) else set())
        worst = next((state for state in UNFINISHED if state in states), "")
        return over_seeds(by_seed, len(runs), worst, terms)

    @staticmethod
    def _terms(runs: Sequence[Run]) -> dict[tuple[str, str], Term]:
        done = [(run, run.result) for run in runs if run.result]
        totals = {result.total for _, result in done}
        files = {
            run.seed: result.folder / PREDICTIONS_OF[result.source]
            for run, result in done
            if result.has_predictions and result.source in PREDICTIONS_OF
        }
        accuracy = mean([result.accuracy for _, result in done if result.accuracy is not None])
        images = totals.pop() if len(totals) == 1 else None
        key = (runs[0].dataset, runs[0].role)
        return {key: Term(1.0, accuracy, images, files if len(files) == len(done) else {})}

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


def grouped(runs: Iterable[Run]) -> dict[Group, list[Run]]:
    """The runs of each protocol; those with several shots or sources in a group for each.

    Zero-shot methods have no shots: they are in the groups of all shots.
    """
    groups: defaultdict[Group, list[Run]] = defaultdict(list)
    for run in runs:
        shots = 0 if run.role == "all" and not run.curve else run.shots
        groups[Group(run.protocol, shots, run.source)].append(run)
    for group in list(groups):
        with_shots = [each for each in groups if each._replace(shots=0) == group and each.shots > 0]
        if group.shots == 0 and with_shots:
            zero_shot = groups.pop(group)
            for each in with_shots:
                groups[each] += zero_shot
    return groups


def methods_of(runs: Iterable[Run]) -> list[Method]:
    methods = {run.method.key: run.method for run in runs}
    return sorted(methods.values(), key=lambda method: (method.place, method.label))


def datasets_of(runs: Iterable[Run]) -> list[str]:
    """In the order of the papers' tables."""
    return in_order({run.dataset for run in runs})


def curves_of(runs: Iterable[Run]) -> list[tuple[str, Method]]:
    """The curves of an ablation with their methods, in the order of the protocol if it is one of ours."""
    curves = {(run.curve, run.method.key): (run.protocol, run.curve, run.method) for run in runs}
    order: dict[str, list[str]] = {}
    for protocol, *_ in curves.values():  # a protocol of one's own is known by its runs alone
        order[protocol] = list(read_protocol(protocol).curves) if protocol in protocol_names() else []

    def place(each: tuple[str, str, Method]) -> int:
        known = order[each[0]]
        return known.index(each[1]) if each[1] in known else len(known)

    return [(curve, method) for _, curve, method in sorted(curves.values(), key=place)]


def averaged(datasets: Sequence[str]) -> list[str]:
    """The datasets that an average is over.

    These are the papers' benchmarks, if there are any; else all that are not synthetic.
    """
    benchmarks = [dataset for dataset in datasets if dataset in ELEVEN]
    real = [dataset for dataset in datasets if dataset not in SYNTHETIC]
    return benchmarks or real or list(datasets)


def without_eurosat(datasets: Sequence[str]) -> list[str]:
    """The datasets but EuroSAT, whose accuracies are so far apart that it decides averages; [] without it."""
    return [dataset for dataset in datasets if dataset != "eurosat"] if "eurosat" in datasets else []


def without(members: Sequence[str], datasets: Sequence[str]) -> str:
    """What a title says of an average over fewer datasets."""
    return " without EuroSAT" if "eurosat" in datasets and "eurosat" not in members else ""


def averages_of(datasets: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Titles of the averages over several datasets, and what each is over: with and without EuroSAT."""
    chosen = averaged(datasets)
    fewer = without_eurosat(chosen)
    found = [(average_title(chosen, datasets), chosen)] if len(chosen) > 1 else []
    return found + (
        [(f"Average without EuroSAT, over {len(fewer)} datasets", fewer)] if len(fewer) > 1 else []
    )


def average_title(members: Sequence[str], datasets: Sequence[str]) -> str:
    """Over how many datasets is averaged, and which, where these are not all of the section's."""
    names = f": {', '.join(map(label_of, members))}" if len(members) < len(datasets) else ""
    return f"Average over {len(members)} datasets{names}"
