"""From runs to tables: a section for each protocol, laid out as the papers lay it out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from experiments.protocols import read_protocol
from experiments.report.tables import Cell, Row, Section, Table
from experiments.results.accuracies import Accuracies, Setting, averaged, methods_of
from experiments.results.benchmarks import in_order, label_of
from experiments.results.runs import Run

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


def sections_of(runs: Sequence[Run], metric: str) -> list[Section]:
    """The protocols that occur; one that occurs with several shots or sources has a section for each."""
    groups: defaultdict[tuple[str, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        shots = 0 if run.role == "all" else run.shots
        groups[run.protocol, shots, run.source].append(run)
    _put_zero_shot_beside(groups)
    sections = []
    order = {protocol: place for place, protocol in enumerate(TITLES)}
    keys = sorted(groups, key=lambda key: (order.get(key[0], len(order)), key[0], -key[1], key[2]))
    for protocol, shots, source in keys:
        title = TITLES.get(protocol, protocol)
        title += f" from {label_of(source)}" if source else ""
        title += f", {shots} shots" if shots else ""
        section = Section(protocol, title, shots, groups[protocol, shots, source], metric)
        section.tables = _builder(section)(section)
        sections.append(section)
    return sections


def _builder(section: Section) -> Callable[[Section], list[Table]]:
    """The layout that fits the roles of the runs; so protocols of one's own have one, too."""
    roles = {run.role for run in section.runs}
    if any(run.curve for run in section.runs):
        return ablation
    if roles <= {"base", "new"}:
        return base_to_novel
    if roles <= {"source", "target"}:
        return source_and_targets
    return zero_shot if all(run.method.is_zero_shot for run in section.runs) else few_shot


def _put_zero_shot_beside(groups: dict[tuple[str, int, str], list[Run]]) -> None:
    """Zero-shot CLIP has no shots: its rows stand in the sections of all shots."""
    for protocol, shots, source in list(groups):
        beside = [key for key in groups if key[0] == protocol and key[2] == source and key[1] > 0]
        if shots == 0 and beside:
            zero_shot = groups.pop((protocol, shots, source))
            for key in beside:
                groups[key] += zero_shot


def base_to_novel(section: Section) -> list[Table]:
    accuracies, methods = Accuracies(section), methods_of(section.runs)
    datasets, setting = in_order({run.dataset for run in section.runs}), Setting(section.shots)
    each = Table("Each dataset", ("dataset", "method"), ["base", "new", "HM"])
    for dataset in datasets:
        for method in methods:
            cells = accuracies.base_to_novel(method, dataset, setting)
            if any(cells):
                each.rows.append(Row((label_of(dataset), method.label), list(cells)))
    chosen = averaged(datasets)
    average = Table(_average_title(chosen), ("method",), ["base", "new", HM, MEAN_OF_HMS])
    for method in methods:
        row = accuracies.base_to_novel_average(method, chosen, setting)
        average.rows.append(Row((method.label,), list(row)))
    return [average, each] if len(chosen) > 1 else [each]


def source_and_targets(section: Section) -> list[Table]:
    accuracies, setting = Accuracies(section), Setting(section.shots)
    sources = in_order({run.dataset for run in section.runs if run.role == "source"})
    targets = in_order({run.dataset for run in section.runs if run.role == "target"})
    columns = [f"{label_of(source)} (source)" for source in sources] + list(map(label_of, targets))
    table = Table("Accuracy on the source and on each target", ("method",), columns)
    places = [(source, "source") for source in sources] + [(target, "target") for target in targets]
    for method in methods_of(section.runs):
        cells: list[Cell] = [accuracies.of(method, *place, setting) for place in places]
        if len(targets) > 1:
            cells.append(accuracies.average(method, targets, "target", setting))
        table.rows.append(Row((method.label,), cells))
    if len(targets) > 1:
        columns.append(f"average of {len(targets)} targets")
    return [table]


def few_shot(section: Section) -> list[Table]:
    accuracies, methods = Accuracies(section), methods_of(section.runs)
    datasets = in_order({run.dataset for run in section.runs})
    settings = [Setting(shots) for shots in sorted({run.shots for run in section.runs} - {0})] or [Setting()]
    columns = [f"{shots} shot{'s' * (shots != 1)}" for shots, *_ in settings]
    each = Table("Each dataset", ("dataset", "method"), columns)
    for dataset in datasets:
        for method in methods:
            cells = [accuracies.of(method, dataset, "all", setting) for setting in settings]
            if any(cells):
                each.rows.append(Row((label_of(dataset), method.label), list(cells)))
    chosen = averaged(datasets)
    average = Table(_average_title(chosen), ("method",), columns)
    for method in methods:
        means = [accuracies.average(method, chosen, "all", setting) for setting in settings]
        average.rows.append(Row((method.label,), list(means)))
    return [average, each] if len(chosen) > 1 else [each]


def zero_shot(section: Section) -> list[Table]:
    accuracies, datasets = Accuracies(section), in_order({run.dataset for run in section.runs})
    table = Table("Accuracy on all classes", ("method",), list(map(label_of, datasets)))
    chosen = averaged(datasets)
    for method in methods_of(section.runs):
        cells: list[Cell] = [accuracies.of(method, dataset, "all", Setting()) for dataset in datasets]
        if len(chosen) > 1:
            cells.append(accuracies.average(method, chosen, "all", Setting()))
        table.rows.append(Row((method.label,), cells))
    if len(chosen) > 1:
        table.columns.append(f"average of {len(chosen)}")
    return [table]


def ablation(section: Section) -> list[Table]:
    """Base, new and HM along each curve: a table for the average, and one for each dataset."""
    accuracies, datasets = Accuracies(section), in_order({run.dataset for run in section.runs})
    numbers = sorted({run.value for run in section.runs if run.value is not None})
    order = list(read_protocol(section.protocol).curves)
    lines = sorted(
        dict.fromkeys((run.curve, run.method) for run in section.runs),
        key=lambda line: order.index(line[0]) if line[0] in order else len(order),
    )
    chosen = averaged(datasets)
    tables = []
    for members in [*([chosen] if len(chosen) > 1 else []), *([dataset] for dataset in datasets)]:
        title = label_of(members[0]) if len(members) == 1 else _average_title(members)
        table = Table(title, ("accuracy", "curve", "method"), [f"{number:g}" for number in numbers])
        columns: dict[tuple, list[list]] = {}
        for curve, method in lines:
            settings = [Setting(section.shots, curve, number) for number in numbers]
            columns[curve, method] = [
                accuracies.base_to_novel(method, members[0], setting)
                if len(members) == 1
                else accuracies.base_to_novel_average(method, members, setting)
                for setting in settings
            ]
        for measure, name in enumerate(("base", "new", "HM")):
            for (curve, method), values in columns.items():
                cells: list[Cell] = [value[measure] for value in values]
                table.rows.append(Row((name, curve, method.label), cells))
        tables.append(table)
    return tables


def _average_title(datasets: Sequence[str]) -> str:
    return f"Average over {len(datasets)} datasets"
