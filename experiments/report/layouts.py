"""From runs to tables: a section for each protocol, laid out as the papers lay it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from experiments.methods import Method
from experiments.report.tables import Cell, Row, Section, Table
from experiments.results.accuracies import (
    Accuracies,
    Setting,
    average_title,
    averaged,
    averages_of,
    curves_of,
    datasets_of,
    grouped,
    methods_of,
    without,
    without_eurosat,
)
from experiments.results.benchmarks import in_order, label_of
from experiments.results.runs import Run
from experiments.results.statistics import Value

TITLES = {
    "base2new": "Base to novel",
    "cross_dataset": "Cross-dataset",
    "domain_generalisation": "Domain generalisation",
    "few_shot": "Few-shot",
    "zeroshot": "Zero-shot",
    "depth": "Depth of the prompts",
    "length": "Length of the prompts",
}
HM = "HM of the averages (as published)"
MEAN_OF_HMS = "mean of the HMs"
NONE = "–"  # where no such run is wanted: of a class-specific method, or of an earlier version


def sections_of(runs: Sequence[Run], metric: str) -> list[Section]:
    """A section for each protocol, number of shots and source that occurs."""
    order = {protocol: place for place, protocol in enumerate(TITLES)}
    groups = grouped(runs)
    for group, own in groups.items():
        if group.protocol == "few_shot":
            own += zero_shot_beside(own, runs)
        if group.protocol == "base2new" and any(run.role == "joint" for run in own):
            own += zero_shot_beside(own, runs, "joint")
    sections = []
    for group in sorted(groups, key=lambda g: (order.get(g[0], len(order)), g[0], -g.shots, g.source)):
        title = TITLES.get(group.protocol, group.protocol)
        title += f" from {label_of(group.source)}" if group.source else ""
        title += f", {group.shots} shots" if group.shots else ""
        section = Section(group.protocol, title, group.shots, groups[group], metric)
        section.tables = _builder(section)(section)
        sections.append(section)
    return sections


def zero_shot_beside(own: Sequence[Run], runs: Sequence[Run], role: str = "all") -> list[Run]:
    """The runs of `zeroshot` on the datasets of others, in their role, where these have none themselves."""
    datasets = {run.dataset for run in own}
    there = {(run.method.key, run.dataset) for run in own if run.role == role}
    beside = [run for run in runs if run.protocol == "zeroshot" and run.dataset in datasets]
    return [replace(run, role=role) for run in beside if (run.method.key, run.dataset) not in there]


def _builder(section: Section) -> Callable[[Section], list[Table]]:
    """The layout that fits the roles of the runs; so protocols of one's own have one, too."""
    roles = {run.role for run in section.runs}
    if any(run.curve for run in section.runs):
        return ablation
    if roles <= {"base", "new", "joint"}:
        return base_to_novel
    if roles <= {"source", "target"}:
        return source_and_targets
    return zero_shot if all(run.method.is_zero_shot for run in section.runs) else few_shot


def base_to_novel(section: Section) -> list[Table]:
    accuracies, methods = Accuracies(section.runs, section.metric), methods_of(section.runs)
    datasets, setting = datasets_of(section.runs), Setting(section.shots)
    has_joint = any(run.role == "joint" for run in section.runs)
    joint = ["joint"] if has_joint else []
    each = Table("Each dataset", ("dataset", "method"), ["base", "new", "HM", *joint])
    for dataset in datasets:
        for method in methods:
            cells: list[Cell] = [*accuracies.base_to_novel(method, dataset, setting)]
            if any(cells):
                cells += [accuracies.of(method, dataset, "joint", setting) or NONE] if has_joint else []
                each.rows.append(Row((label_of(dataset), method.label), cells))
    averages = []
    for title, chosen in averages_of(datasets):
        average = Table(title, ("method",), ["base", "new", HM, MEAN_OF_HMS, *joint])
        for method in methods:
            row: list[Cell] = [*accuracies.base_to_novel_average(method, chosen, setting)]
            if has_joint:
                tested = any(accuracies.of(method, dataset, "joint", setting) for dataset in chosen)
                row.append(accuracies.average(method, chosen, "joint", setting) if tested else NONE)
            average.rows.append(Row((method.label,), row))
        averages.append(average)
    return [*averages, each]


def source_and_targets(section: Section) -> list[Table]:
    accuracies, setting = Accuracies(section.runs, section.metric), Setting(section.shots)
    sources = in_order({run.dataset for run in section.runs if run.role == "source"})
    targets = in_order({run.dataset for run in section.runs if run.role == "target"})
    columns = [f"{label_of(source)} (source)" for source in sources] + list(map(label_of, targets))
    means = [members for members in (targets, without_eurosat(targets)) if len(members) > 1]
    columns += [f"average of {len(members)} targets{without(members, targets)}" for members in means]
    table = Table("Accuracy on the source and on each target", ("method",), columns)
    places = [(source, "source") for source in sources] + [(target, "target") for target in targets]
    for method in methods_of(section.runs):
        cells: list[Cell] = [accuracies.of(method, *place, setting) for place in places]
        cells += [accuracies.average(method, members, "target", setting) for members in means]
        table.rows.append(Row((method.label,), cells))
    return [table]


def few_shot(section: Section) -> list[Table]:
    accuracies, methods = Accuracies(section.runs, section.metric), methods_of(section.runs)
    datasets = datasets_of(section.runs)
    settings = [Setting(shots) for shots in sorted({run.shots for run in section.runs} - {0})] or [Setting()]
    columns = [f"{shots} shot{'s' * (shots != 1)}" for shots, *_ in settings]
    each = Table("Each dataset", ("dataset", "method"), columns)
    for dataset in datasets:
        for method in methods:
            cells = [accuracies.of(method, dataset, "all", setting) for setting in settings]
            if any(cells):
                each.rows.append(Row((label_of(dataset), method.label), list(cells)))
    averages = []
    for title, chosen in averages_of(datasets):
        average = Table(title, ("method",), columns)
        for method in methods:
            means = [accuracies.average(method, chosen, "all", setting) for setting in settings]
            average.rows.append(Row((method.label,), list(means)))
        averages.append(average)
    return [*averages, each]


def zero_shot(section: Section) -> list[Table]:
    accuracies, datasets = Accuracies(section.runs, section.metric), datasets_of(section.runs)
    chosen = averaged(datasets)
    means = [members for members in (chosen, without_eurosat(chosen)) if len(members) > 1]
    columns = [f"average of {len(members)}{without(members, chosen)}" for members in means]
    table = Table("Accuracy on all classes", ("method",), [*map(label_of, datasets), *columns])
    for method in methods_of(section.runs):
        cells: list[Cell] = [accuracies.of(method, dataset, "all", Setting()) for dataset in datasets]
        cells += [accuracies.average(method, members, "all", Setting()) for members in means]
        table.rows.append(Row((method.label,), cells))
    return [table]


def measures_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """What an ablation is measured by: base, new and HM; or the roles that its runs have."""
    roles = {run.role for run in runs}
    return ("base", "new", "HM") if roles & {"base", "new"} else tuple(sorted(roles))


def measured(
    accuracies: Accuracies, method: Method, datasets: Sequence[str], setting: Setting, measures: Sequence[str]
) -> list[Value | None]:
    """The values of these measures on a dataset, or averaged over several: of tables and of figures."""
    if "HM" in measures:
        if len(datasets) == 1:
            return accuracies.base_to_novel(method, datasets[0], setting)
        return accuracies.base_to_novel_average(method, datasets, setting)[:3]
    if len(datasets) == 1:
        return [accuracies.of(method, datasets[0], role, setting) for role in measures]
    return [accuracies.average(method, datasets, role, setting) for role in measures]


def ablation(section: Section) -> list[Table]:
    """The measures along each curve: a table for the average, and one for each dataset."""
    measures = measures_of(section.runs)
    accuracies, datasets = Accuracies(section.runs, section.metric), datasets_of(section.runs)
    numbers = sorted({run.value for run in section.runs if run.value is not None})
    lines = curves_of(section.runs)
    chosen = averaged(datasets)
    tables = []
    for members in [*([chosen] if len(chosen) > 1 else []), *([dataset] for dataset in datasets)]:
        title = label_of(members[0]) if len(members) == 1 else average_title(members, datasets)
        table = Table(title, ("accuracy", "curve", "method"), [f"{number:g}" for number in numbers])
        columns: dict[tuple, list[list]] = {}
        for curve, method in lines:
            settings = [Setting(section.shots, curve, number) for number in numbers]
            columns[curve, method] = [
                measured(accuracies, method, members, setting, measures) for setting in settings
            ]
        for measure, name in enumerate(measures):
            for (curve, method), values in columns.items():
                cells: list[Cell] = [value[measure] for value in values]
                table.rows.append(Row((name, curve, method.label), cells))
        tables.append(table)
    return tables
