"""A report as text, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from tabulate import tabulate

from experiments.report.report import CALIBRATION_NOTE, Report, unfinished_table
from experiments.report.tables import Cell, Difference, Section, Table
from experiments.results.statistics import Paired, Value
from prompted_clip.escaping import csv_cell

WIDTH = 130  # characters; a wider table is printed in parts, one below the other
WORDS = (
    "role",
    "state",
    "reason",
    "folder",
    "device",
    "sha256",
    "methods",
    "backbone",
    "source",
)  # columns that hold no numbers
PLACE = ["protocol", "method", "dataset", "role", "shots", "seed", "curve", "value"]
RUN_FIELDS = [*PLACE, "accuracy", "macro_f1", "state", "folder"]
NUMBERS = ["mean", "std", "seeds", "wanted", "seed_error", "image_error", "low", "high"]
CELL_FIELDS = ["protocol", "section", "table", "row", "column", *NUMBERS, "text"]
MARKDOWN_SIGNS = {sign: f"\\{sign}" for sign in "\\|*_`[]!#~$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def cell_text(cell: Cell) -> str:
    """As it is shown everywhere: `84.12 ± 0.31`, `84.12 (2/3)`, `failed (0/3)`, `– (10/11 datasets)`."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Difference):
        points = round(cell.points, 2) + 0.0  # no -0.00
        return f"{points:+.2f} {cell.verdict}".replace("-", "−")
    if isinstance(cell, Paired):
        words = f"{cell.points + 0.0:+.2f}"
        if cell.half_width is not None:
            words += f" [{cell.points - cell.half_width:+.2f}, {cell.points + cell.half_width:+.2f}]"
        return words.replace("-", "−")
    if cell.lacking:
        return f"– ({cell.lacking})"
    count = f"({len(cell.by_seed)}/{cell.wanted})"
    if cell.mean is None:
        return f"{cell.state or '–'} {count}"
    std = f" ± {cell.std:.2f}" if cell.std is not None else ""
    return f"{cell.mean:.2f}{std}" + (f" {count}" if cell.state else "")


def cell_with_errors(cell: Cell) -> str:
    """As `cell_text`, and the standard errors over seeds and over images: `84.12 ± 0.31 [0.22/0.87]`."""
    if not isinstance(cell, Value) or not cell.is_complete or cell.image_error is None:
        return cell_text(cell)
    seeds = "–" if cell.seed_error is None else f"{cell.seed_error:.2f}"
    return f"{cell_text(cell)} [{seeds}/{cell.image_error:.2f}]"


def tables_of(section: Section) -> list[Table]:
    """Those of a section, and at their end the runs without a result."""
    missing = unfinished_table(section.unfinished)
    return [*section.tables, missing] if missing else section.tables


def shown_rows(
    table: Table,
    escape: Callable[[str], str] = str,
    bold: Callable[[str], str] = str,
    show: Callable[[Cell], str] = cell_text,
) -> list[list[str]]:
    """Labels and cells; a label is left out where it is the same as in the row above, except the last one."""
    best, above, rows = table.best(), [""] * len(table.index), []
    for number, row in enumerate(table.rows):
        first_new = next(
            (i for i, label in enumerate(row.labels[:-1]) if label != above[i]), len(row.labels) - 1
        )
        labels = ["" if i < first_new else escape(label) for i, label in enumerate(row.labels)]
        cells = [escape(show(cell)) for cell in row.cells]
        rows.append([*labels, *(bold(cell) if (number, k) in best else cell for k, cell in enumerate(cells))])
        above = list(row.labels)
    return rows


def escaped(words: str, signs: Mapping[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in words)


def alignment(table: Table) -> list[str]:
    return ["left"] * len(table.index) + ["left" if name in WORDS else "right" for name in table.columns]


# --- text and Markdown ------------------------------------------------------------------------------------


def text(report: Report) -> str:
    parts = []
    if report.warnings:
        attention = (f"- {warning}" for warning in report.warnings)
        parts += [_underlined("Attention"), "\n".join(attention)]
    for section in report.sections:
        parts.append(_underlined(section.title))
        parts += [f"{table.title}\n\n{_text_table(table)}" for table in tables_of(section)]
        parts.append(
            "\n".join(textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ") for note in section.notes)
        )
    if report.calibration:
        parts += [_underlined(report.calibration.title), _text_table(report.calibration)]
        parts.append(textwrap.fill(f"- {CALIBRATION_NOTE}", WIDTH, subsequent_indent="  "))
    if report.costs:
        parts += [_underlined(report.costs.title), _text_table(report.costs)]
    return "\n\n".join(parts) + "\n"


def _underlined(title: str) -> str:
    return f"{title}\n{'=' * len(title)}"


def _text_table(table: Table) -> str:
    show = cell_with_errors if table.compares else cell_text
    rows, head, align = shown_rows(table, show=show), [*table.index, *table.columns], alignment(table)
    labels = list(range(len(table.index)))

    def grid(columns: Sequence[int]) -> str:
        return tabulate(
            [[row[k] for k in columns] for row in rows],
            headers=[head[k] for k in columns],
            colalign=[align[k] for k in columns],
            disable_numparse=True,
        )

    if {"folder", "source"} & set(head):  # a list, whose lines end in a path
        return grid(range(len(head)))
    parts: list[list[int]] = [[]]
    for start in range(len(labels), len(head), table.together):
        columns = range(start, start + table.together)
        if parts[-1] and max(map(len, grid([*labels, *parts[-1], *columns]).splitlines())) > WIDTH:
            parts.append([])
        parts[-1] += columns
    return "\n\n".join(grid([*labels, *part]) for part in parts)


def markdown(report: Report) -> str:
    parts = ["# Results"]
    if report.warnings:
        parts.append("\n".join(f"- Attention: {_markdown(warning)}" for warning in report.warnings))
    for section in report.sections:
        parts.append(f"## {_markdown(section.title)}")
        for table in tables_of(section):
            parts += [f"### {_markdown(table.title)}", _markdown_table(table)]
        parts.append("\n".join(f"- {_markdown(note)}" for note in section.notes))
    if report.calibration:
        parts += [f"## {_markdown(report.calibration.title)}", _markdown_table(report.calibration)]
        parts.append(f"- {_markdown(CALIBRATION_NOTE)}")
    if report.costs:
        parts += [f"## {_markdown(report.costs.title)}", _markdown_table(report.costs)]
    return "\n\n".join(parts) + "\n"


def _markdown(words: str) -> str:
    return escaped(words, MARKDOWN_SIGNS)


def _markdown_table(table: Table) -> str:
    show = cell_with_errors if table.compares else cell_text
    return tabulate(
        shown_rows(table, _markdown, "**{}**".format, show),
        headers=[_markdown(name) for name in (*table.index, *table.columns)],
        tablefmt="pipe",
        colalign=alignment(table),
        disable_numparse=True,
    )


# --- CSV --------------------------------------------------------------------------------------------------


def csv_of_runs(report: Report) -> str:
    """A line for each run, wanted or found, with all digits."""
    rows = []
    for run in report.runs:
        f1 = run.result.macro_f1 if run.result else None
        place = [
            run.protocol,
            run.method.key,
            run.dataset,
            run.role,
            run.shots,
            run.seed,
            run.curve,
            run.value,
        ]
        rows.append([*place, run.accuracy, f1, run.state, run.folder])
    return _csv(RUN_FIELDS, rows)


def csv_of_tables(report: Report) -> str:
    """A line for each number of the tables, with all digits and as it is shown; and one for each warning."""
    rows = [["", "Attention", *[None] * (3 + len(NUMBERS)), warning] for warning in report.warnings]
    for section in report.sections:
        for table in section.tables:
            for row in table.rows:
                for column, cell in zip(table.columns, row.cells, strict=True):
                    place = [section.protocol, section.title, table.title, " | ".join(row.labels), column]
                    numbers: list = [None] * len(NUMBERS)
                    if isinstance(cell, Value):
                        errors = [cell.seed_error, cell.image_error] if cell.is_complete else [None, None]
                        numbers[:6] = [cell.mean, cell.std, len(cell.by_seed), cell.wanted, *errors]
                    elif isinstance(cell, (Difference, Paired)):
                        numbers[0] = cell.points
                    if isinstance(cell, Paired) and cell.half_width is not None:
                        numbers[6:] = [cell.points - cell.half_width, cell.points + cell.half_width]
                    rows.append([*place, *numbers, cell_text(cell)])
    return _csv(CELL_FIELDS, rows)


def _csv(fields: Sequence[str], rows: Iterable[Sequence]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(map(csv_cell, row) for row in rows)
    return file.getvalue()
