"""Our accuracies beside the published ones, where the runs were made as the published ones were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from experiments.methods import Method
from experiments.report.tables import Cell, Difference, Row, Section, Table
from experiments.results.accuracies import Accuracies, Setting, methods_of
from experiments.results.benchmarks import ELEVEN, VARIANTS, in_order, label_of
from experiments.results.published import (
    averages,
    base_to_novel_numbers,
    numbers_of,
    published,
    unlike_published,
)
from experiments.results.runs import Run
from experiments.results.statistics import Value, is_within_noise, mean

VERDICTS = {True: "within", False: "outside", None: "unknown"}


def comparison(section: Section) -> tuple[Table | None, list[str]]:
    """What was found beside what was published, and why some of it is not compared."""
    compare = {
        "base2new": _base_to_novel,
        "cross_dataset": _source_and_targets,
        "domain_generalisation": _source_and_targets,
        "few_shot": _few_shot,
    }.get(section.protocol)
    if compare is None:
        return None, []
    fairness = Fairness(section)
    table = compare(section, fairness)
    return (table if table.rows else None), fairness.notes()


MEASURES = {"base": "base", "new": "new", "hm": "HM", "average": "average of the targets"}


def published_averages(section: Section) -> Table | None:
    """What is published of the methods of a section as averages, also what others quote or re-ran."""
    if not {run.dataset for run in section.runs} & {*ELEVEN, *VARIANTS}:
        return None
    found = [
        (method, row) for method in methods_of(section.runs) for row in averages(section.protocol, method)
    ]
    names = [*MEASURES, "1", "2", "4", "8", "16"]
    names = [name for name in names if any(name in row for _, row in found)]
    columns = [MEASURES.get(name, f"{name} shots") for name in names]
    table = Table("Published averages", ("method", "by"), [*columns, "backbone", "source"], compares=False)
    for method, row in found:
        by = f"re-run by {row['rerun_by']}" if "rerun_by" in row else "the authors"
        by += ", quoted by others" if row.get("second_hand") else ""
        cells: list[Cell] = [f"{row[name]:.2f}" if name in row else None for name in names]
        table.rows.append(
            Row((method.label, by), [*cells, row.get("backbone", published()["backbone"]), row["source"]])
        )
    return table if table.rows else None


class Fairness:
    """Decides which runs were made as the published ones were, and remembers why others were not."""

    def __init__(self, section: Section) -> None:
        self._runs: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in section.runs:
            self._runs[run.method.key, run.dataset].append(run)
        self._reasons: defaultdict[str, dict[str, None]] = defaultdict(dict)  # with their datasets

    def allows(self, method: Method, datasets: Sequence[str]) -> bool:
        """Whether a method was run on all these datasets, and as it was for the published numbers."""
        reasons = [self._reason(method, dataset) for dataset in datasets]
        for dataset, reason in zip(datasets, reasons, strict=True):
            if reason:
                self._reasons[f"{method.label}, {reason}"][label_of(dataset)] = None
        return not any(reasons) and all((method.key, dataset) in self._runs for dataset in datasets)

    def _reason(self, method: Method, dataset: str) -> str:
        """Why a method's runs on a dataset cannot be compared; "" if they can."""
        facts = published()
        for run in self._runs.get((method.key, dataset), []):
            if run.result is None:
                continue
            if run.result.backbone != facts["backbone"]:
                return f"whose backbone is {run.result.backbone or 'unknown'} and not {facts['backbone']}"
            if run.protocol != "few_shot" and run.shots not in (0, facts["shots"]):
                return f"trained with {run.shots} shots and not {facts['shots']}"
            if unlike := unlike_published(run):
                return f"with {unlike}"
            size = facts["test_sizes"].get(dataset, {}).get(run.result.classes)
            if size and run.result.total and run.result.total != size:
                return f"tested on {run.result.total:,} images and not {size:,}"
        return ""

    def notes(self) -> list[str]:
        return [
            f"Not compared with published numbers: {reason} ({', '.join(datasets)})."
            for reason, datasets in self._reasons.items()
        ]


def _compared(value: Value | None, number: float) -> list[Cell]:
    """Ours, the published one, and their difference."""
    if value is None or value.mean is None:
        return [value, f"{number:.2f}", None]
    verdict = VERDICTS[is_within_noise(value, number)] if value.is_complete else "incomplete"
    return [value, f"{number:.2f}", Difference(value.mean - number, verdict)]


def _table(index: str, *measures: str) -> Table:
    columns = [name for measure in measures for name in (measure, "published", "difference")]
    return Table("Beside the published numbers", (index, "method"), columns, compares=False, together=3)


def _base_to_novel(section: Section, fairness: Fairness) -> Table:
    accuracies, setting = Accuracies(section.runs), Setting(section.shots)
    table = _table("dataset", "base", "new", "HM")
    methods = [method for method in methods_of(section.runs) if base_to_novel_numbers(method)]
    for dataset in ["average", *in_order({run.dataset for run in section.runs})]:
        for method in methods:
            numbers = base_to_novel_numbers(method).get(dataset)
            members = list(ELEVEN) if dataset == "average" else [dataset]
            if numbers is None or not fairness.allows(method, members):
                continue
            if dataset == "average":
                label, values = "average of 11", accuracies.base_to_novel_average(method, members, setting)
            else:
                label, values = label_of(dataset), accuracies.base_to_novel(method, dataset, setting)
            pairs = zip(values, (numbers["base"], numbers["new"], numbers["hm"]), strict=False)
            cells = [cell for value, number in pairs for cell in _compared(value, number)]
            table.rows.append(Row((label, method.label), cells))
    return table


def _source_and_targets(section: Section, fairness: Fairness) -> Table:
    accuracies, setting = Accuracies(section.runs), Setting(section.shots)
    table, roles = _table("dataset", "accuracy"), {run.dataset: run.role for run in section.runs}
    for dataset in [*in_order(set(roles)), "average"]:
        for method in methods_of(section.runs):
            known = numbers_of(section.protocol, method)
            targets = [target for target in known if target != "imagenet"]
            if dataset == "average":
                if targets and fairness.allows(method, targets):
                    value = accuracies.average(method, targets, "target", setting)
                    cells = _compared(value, mean([known[target] for target in targets]))
                    table.rows.append(Row((f"average of {len(targets)} targets", method.label), cells))
            elif dataset in known and fairness.allows(method, [dataset]):
                found = accuracies.of(method, dataset, roles[dataset], setting)
                table.rows.append(Row((label_of(dataset), method.label), _compared(found, known[dataset])))
    return table


def _few_shot(section: Section, fairness: Fairness) -> Table:
    """Only the averages over the eleven datasets are published as numbers."""
    accuracies, table = Accuracies(section.runs), _table("shots", "average of 11")
    for method in methods_of(section.runs):
        known = numbers_of("few_shot", method)
        if known and fairness.allows(method, list(ELEVEN)):
            there = {str(run.shots) for run in section.runs if run.method.key == method.key}
            for shots in sorted(there & set(known), key=int):
                value = accuracies.average(method, list(ELEVEN), "all", Setting(int(shots)))
                table.rows.append(Row((shots, method.label), _compared(value, known[shots])))
    table.rows.sort(key=lambda row: int(row.labels[0]))
    return table
