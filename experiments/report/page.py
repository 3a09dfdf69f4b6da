"""A report as one page of HTML that holds all it shows: for the screen, a phone, and print."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import jinja2

from experiments.report.formats import WORDS, cell_text, shown_rows, tables_of
from experiments.report.report import CALIBRATION_NOTE, Report
from experiments.report.tables import Cell, Difference, Table
from experiments.results.accuracies import datasets_of, methods_of
from experiments.results.benchmarks import label_of
from experiments.results.states import FAILED, FINISHED, UNFINISHED
from experiments.results.statistics import Paired, Value

PNG_DPI, SHOWN_DPI = 200, 120


@dataclass(frozen=True)
class PageFigure:
    """A figure, whose words are drawn into it; the caption is for those who cannot see it."""

    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """Pixels as shown: the letters are about as large as those of the page."""
        return int.from_bytes(self.png[16:20], "big") * SHOWN_DPI // PNG_DPI

    @property
    def address(self) -> str:
        """The image itself, so that the page needs no second file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class PageTable:
    """A table as the template takes it: rows of (text, class of the cell, tooltip)."""

    title: str
    head: list[tuple[str, str]]
    rows: list[list[tuple[str, str, str]]]


def page(report: Report, figures: Sequence[PageFigure] = ()) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        title=title_of(report),
        sections=[
            (anchor(section.title), section, list(map(page_table, tables_of(section))))
            for section in report.sections
        ],
        calibration=report.calibration and page_table(report.calibration),
        calibration_note=CALIBRATION_NOTE,
        costs=report.costs and page_table(report.costs),
        samples=report.samples and page_table(report.samples),
        figures=figures,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        done=sum(run.state == FINISHED for run in report.runs),
    )


def title_of(report: Report) -> str:
    """The methods or their number, and the datasets or their number."""
    methods = [method.label for method in methods_of(report.runs)]
    datasets = [label_of(dataset) for dataset in datasets_of(report.runs)]
    who = ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"
    where = ", ".join(datasets) if len(datasets) <= 3 else f"{len(datasets)} datasets"
    return f"Results of {who} on {where}"


def anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def page_table(table: Table) -> PageTable:
    sides = ["label"] * len(table.index) + ["label" if name in WORDS else "number" for name in table.columns]
    best, rows = table.best(), []
    for number, (shown, row) in enumerate(zip(shown_rows(table), table.rows, strict=True)):
        starts_group = len(table.index) > 1 and bool(shown[0])
        cells = [(label, "label", "") for label in shown[: len(table.index)]]
        for column, (cell, side) in enumerate(zip(row.cells, sides[len(table.index) :], strict=True)):
            marks = [side, _mark(cell), "best" if (number, column) in best else ""]
            cells.append((cell_text(cell), " ".join(filter(None, marks)), _tooltip(cell)))
        rows.append([(words, f"{kind} first" if starts_group else kind, more) for words, kind, more in cells])
    return PageTable(table.title, list(zip([*table.index, *table.columns], sides, strict=True)), rows)


def _tooltip(cell: Cell) -> str:
    """The standard errors of a value."""
    if not isinstance(cell, Value) or not cell.is_complete:
        return ""
    errors = (("the seeds", cell.seed_error), ("the test images", cell.image_error))
    return "; ".join(
        f"standard error over {what}: {error:.2f}" for what, error in errors if error is not None
    )


def _mark(cell: Cell) -> str:
    """The class of a cell that needs an eye: incomplete, failed, outside the noise."""
    if isinstance(cell, Value) and not cell.is_complete:
        return FAILED if cell.state == FAILED else "incomplete"
    if isinstance(cell, Difference):
        return cell.verdict
    if isinstance(cell, Paired):
        return "" if cell.is_clear else "undecided"
    return cell if isinstance(cell, str) and cell in UNFINISHED else ""
