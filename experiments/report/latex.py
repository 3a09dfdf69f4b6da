"""A report as LaTeX: tables to paste, which need the packages booktabs and adjustbox."""

from __future__ import annotations

from experiments.report.formats import alignment, escaped, shown_rows
from experiments.report.report import CALIBRATION_NOTE, Report
from experiments.report.tables import Table

PREAMBLE = "% In the preamble: \\usepackage{booktabs} \\usepackage{adjustbox}"
ROWS = 48  # of a page
LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "·": r"$\cdot$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "—": "---",
    "<": "$<$",
    ">": "$>$",
    "×": r"$\times$",
    "[": "{[}",  # not the optional argument of a line's end
    "]": "{]}",
    "*": "{*}",  # nor its star
}


def latex(report: Report) -> str:
    """The tables, with notes and runs without a result as comments."""
    parts = [PREAMBLE, *(f"% Attention: {warning}" for warning in report.warnings)]
    for section in report.sections:
        parts.append("\n".join(["", f"% {section.title}", *(f"% {note}" for note in section.notes)]))
        parts += [
            f"% {run.state}: {run.method.label}, {run.dataset}, {run.role}, seed {run.seed}"
            for run in section.unfinished
        ]
        for table in section.tables:
            parts += _floats(table, f"{section.title}. {table.title}.")
    if report.calibration:
        parts += _floats(report.calibration, f"Calibration. {CALIBRATION_NOTE}")
    if report.costs:
        parts += _floats(report.costs, "Costs.")
    return "\n".join(parts) + "\n"


def _latex(words: str) -> str:
    return escaped(words, LATEX_SIGNS)


def _floats(table: Table, caption: str) -> list[str]:
    """A table as one `table` environment; as several where it is longer than a page."""
    pages: list[list[list[str]]] = [[]]
    for group in _groups(table):
        if pages[-1] and sum(map(len, pages[-1])) + len(group) > ROWS:
            pages.append([])
        pages[-1].append(group)
    count = len(pages)
    captions = [
        f"{caption} Part {number} of {count}." if count > 1 else caption for number in range(1, count + 1)
    ]
    return [_float(table, page, words) for page, words in zip(pages, captions, strict=True)]


def _groups(table: Table) -> list[list[str]]:
    """Lines of rows that share their first label; one group where rows have only one label."""
    groups: list[list[str]] = [[]]
    for row in shown_rows(table, _latex, "\\textbf{{{}}}".format):
        if len(table.index) > 1 and row[0] and groups[-1]:
            groups.append([])
        groups[-1].append(" & ".join(row) + " \\\\")
    return groups


def _float(table: Table, groups: list[list[str]], caption: str) -> str:
    sides = "".join(side[0] for side in alignment(table))
    head = " & ".join(map(_latex, (*table.index, *table.columns)))
    lines = [line for group in groups for line in ("\\midrule", *group)]
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_latex(caption)}}}",
            "\\begin{adjustbox}{max width=\\linewidth}",
            f"\\begin{{tabular}}{{{sides}}}",
            "\\toprule",
            f"{head} \\\\",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{adjustbox}",
            "\\end{table}",
        ]
    )
