"""A report: the sections of tables, what they rest on, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.report.comparison import comparison, published_averages
from experiments.report.layouts import sections_of
from experiments.report.provenance import calibration, code_versions, costs, differences, samples
from experiments.report.tables import Cell, Row, Section, Table
from experiments.results.accuracies import METRICS
from experiments.results.benchmarks import label_of
from experiments.results.published import published
from experiments.results.runs import Run, RunSet
from experiments.results.statistics import Value
from prompted_clip.escaping import printable

SEEDS_NOTE = (
    "{metric} in percent: mean ± population standard deviation over the seeds. (2/3): only two of three "
    "seeds are there. An average over datasets is given only where all of them are complete; its ± is over "
    "the averages of each seed."
)
ERRORS_NOTE = (
    "[0.22/0.87]: standard errors over the seeds, s / sqrt(n), and over the test images, sqrt(p (1 - p) / n)."
)
PAIRED_NOTE = (
    "Differences are of the same seeds and test images, with a 95 % interval (docs/protocol.md). One that "
    "holds 0 can be chance. Bold: the highest, where the interval of its difference to the second does not "
    "hold 0; nothing is bold where one seed without stored predictions gives no interval."
)
MARKS = {"oracle": "‡", "per_dataset": "§", "selected_on": "¶"}
MARK_NOTES = {
    "per_dataset": "§ Settings that were chosen for each dataset: {methods}.",
    "selected_on": "¶ Epoch or settings were chosen by the accuracy on validation images: {methods}.",
}
HM_NOTE = (
    "HM is the harmonic mean of the means of base and new, over the seeds that both have; its ± is over "
    "each seed's HM. The published average is the HM of the two averages; the mean of the datasets' HMs is "
    "another number."
)
NOISE_NOTE = (
    "Within: the difference to the published number can be chance, since it is at most "
    "t(0.975, n-1) · s · sqrt(2/n), with s the sample deviation over our n seeds; 0.005 more is allowed for "
    "the rounding of published numbers. Outside: it is larger. Unknown: one seed cannot tell."
)
CALIBRATION_NOTE = (
    "ECE: expected calibration error in percent over 15 bins, mean ± population standard deviation over the "
    "seeds; after: at the temperature that was fitted on val images (TEST.CALIBRATE)."
)


@dataclass
class Report:
    """All that is shown, in any format.

    Attributes:
        warnings: files that could not be read, runs in no table, unequal samples; a line each.
        versions: commits, versions and devices of the runs.
    """

    sections: list[Section]
    runs: list[Run]
    calibration: Table | None = None
    costs: Table | None = None
    samples: Table | None = None
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""


def make_report(gathered: RunSet, metric: str = "accuracy", command: str = "", against: str = "") -> Report:
    """Makes the tables, of accuracy or of another metric.

    Args:
        metric: accuracy or macro_f1. Only accuracies are compared with published ones.
        command: that the report was asked for with.
        against: the label of the method that all are compared with; "" for the best of each column.
    """
    gathered = printable(gathered)  # so that no name is syntax of a comment, a line, a terminal
    sections = sections_of(gathered.runs, metric)
    for section in sections:
        section.notes.append(SEEDS_NOTE.format(metric=METRICS[metric]))
        if any(run.role == "new" for run in section.runs):
            section.notes.append(HM_NOTE)
        if any(isinstance(cell, Value) and cell.terms for cell in _cells(section)):
            section.notes.append(ERRORS_NOTE)
        compared = [table.differences(against) for table in section.tables]
        if any(compared):
            section.tables += [table for table in compared if table]
            section.notes.append(PAIRED_NOTE)
        table, reasons = comparison(section) if metric == "accuracy" else (None, [])
        if table:
            section.tables.append(table)
            section.notes += [NOISE_NOTE, f"Published numbers: {_sources(section)}."]
        if metric == "accuracy" and (quoted := published_averages(section)):
            section.tables.append(quoted)
        section.notes += reasons
        section.notes += [*differences(section.runs), *mark(section)]
    sample_table, unequal = samples(gathered.runs)
    return Report(
        sections=sections,
        runs=gathered.runs,
        calibration=calibration(gathered.runs),
        costs=costs(gathered.runs),
        samples=sample_table,
        warnings=printable([*gathered.warnings, *unequal]),
        versions=code_versions(gathered.runs),
        command=command,
    )


def _cells(section: Section) -> Iterator[Cell]:
    for table in section.tables:
        for row in table.rows:
            yield from row.cells


def mark(section: Section) -> list[str]:
    """Marks the methods that know or choose more than others, and returns what the marks mean."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)  # by what is marked, the methods' labels
    told: defaultdict[str, dict[str, None]] = defaultdict(dict)  # by what a test is told
    for run in section.runs:
        for name in MARKS:
            if run.result and getattr(run.result, name):
                found[name][run.method.label] = None
        if run.result and run.result.oracle:
            told[run.result.oracle][run.method.label] = None
    for table in section.tables:
        if "method" in table.index:
            place = table.index.index("method")
            for row in table.rows:
                label = row.labels[place]
                signs = "".join(sign for name, sign in MARKS.items() if label in found[name])
                row.labels = (*row.labels[:place], label + signs, *row.labels[place + 1 :])
    notes = [
        f"‡ The test is told, beside the images: {what} ({', '.join(labels)})."
        for what, labels in told.items()
    ]
    return notes + [
        note.format(methods=", ".join(found[name])) for name, note in MARK_NOTES.items() if found[name]
    ]


def _sources(section: Section) -> str:
    sources = published()["sources"]
    keys = [section.protocol]
    if section.protocol == "base2new" and any("designs" in run.method.published for run in section.runs):
        keys.append("designs")
    return "; ".join(sources[key] for key in keys)


def unfinished_table(runs: Sequence[Run]) -> Table | None:
    """The runs without a result, and why; None if there are none."""
    columns = ["role", "seed", "state", "reason", "folder"]
    table = Table("Without a result", ("method", "dataset"), columns, compares=False)
    for run in runs:
        settings = [f"{run.shots} shots" if run.protocol == "few_shot" else "", run.curve]
        settings.append("" if run.value is None else f"{run.value:g}")
        role = " ".join(filter(None, [run.role, *settings]))
        folder = _from_here(run.folder) if run.folder else ""
        cells: list[Cell] = [role, str(run.seed), run.state, run.reason, folder]
        table.rows.append(Row((run.method.label, label_of(run.dataset)), cells))
    return table if table.rows else None


def _from_here(folder: Path) -> str:
    """A path as one would type it."""
    here = Path.cwd()
    return printable(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))
