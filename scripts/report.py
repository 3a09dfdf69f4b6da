"""The tables of all runs below some folders, beside the published numbers.

    python -m scripts.report output
    python -m scripts.report output --format all --out report

Reads the `result.json` of each run, the plans of sweeps, and logs where there is no `result.json`: those of
the paper's code, too. See docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.methods import read_methods
from experiments.report import formats
from experiments.report.latex import latex
from experiments.report.report import Report, make_report
from experiments.results.accuracies import METRICS
from experiments.results.runs import RunSet, gather
from experiments.run_folder import FORMAT
from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from prompted_clip.files import atomic_open


def html(report: Report) -> str:
    from experiments.figures.page import for_report  # here, since drawing takes long to import
    from experiments.report.page import page

    figures = for_report(report.runs, warnings=report.warnings)
    return page(report, figures)


PRINTED: dict[str, tuple[str, Callable[[Report], str]]] = {
    "text": ("report.txt", formats.text),
    "markdown": ("report.md", formats.markdown),
    "latex": ("report.tex", latex),
}
WRITTEN: dict[str, dict[str, Callable[[Report], str]]] = {
    "csv": {"runs.csv": formats.csv_of_runs, "tables.csv": formats.csv_of_tables},
    "html": {"report.html": html},
}


MADE_FILE = "report.json"  # folders and flags that the files beside it were made with
FILTERS = ("protocol", "methods", "datasets", "metric", "seeds", "against")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Tables of all runs below some folders.")
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of runs, such as output")
    add("--format", choices=[*PRINTED, *WRITTEN, "all"], default="text", help="text by default")
    add("--out", type=Path, help="folder to write files into; by default FOLDER/report for csv, html and all")
    add("--protocol", nargs="+", help="only these, such as base2new")
    add("--methods", nargs="+", help="only these, by name or label")
    add("--datasets", nargs="+", help="only these, by file of configs/datasets")
    add("--against", default="", help="the method that all are compared with; by default the best")
    add("--metric", choices=list(METRICS), default="accuracy", help="that the tables are of")
    add(
        "--seeds",
        nargs="+",
        type=int,
        help="only these (default: all that occur)",
    )
    return parser


def selected(gathered: RunSet, args: argparse.Namespace) -> RunSet:
    """What the filters leave.

    Raises:
        ValueError: a filter names what does not occur, or nothing is left.
    """
    runs = gathered.runs
    for flag, wanted, names_of in (
        ("--protocol", args.protocol, lambda run: {run.protocol}),
        ("--datasets", args.datasets, lambda run: {run.dataset}),
        ("--methods", args.methods, lambda run: {run.method.key, run.method.label}),
    ):
        if wanted is None:
            continue
        there = set().union(*map(names_of, runs))
        unknown = [name for name in wanted if name not in there]
        if unknown:
            raise UserError(f"{flag} {unknown[0]}: no such runs; there are {', '.join(sorted(there))}.")
        runs = [run for run in runs if names_of(run) & set(wanted)]
    if not runs:
        raise UserError("no run fits all of these filters together.")
    return replace(gathered, runs=runs)


def write(report: Report, names: Sequence[str], folder: Path, args: argparse.Namespace) -> None:
    """Writes the files of some formats, and what `scripts.verify` makes them again by; says where."""
    flags = {key: vars(args)[key] for key in FILTERS}
    folders = [os.path.relpath(each.resolve(), folder.resolve()) for each in args.folders]
    with atomic_open(folder / MADE_FILE) as written:
        json.dump({"format": FORMAT, "folders": folders, **flags}, written, indent=1)
    for name in names:
        files = WRITTEN[name] if name in WRITTEN else dict([PRINTED[name]])
        for file, render in files.items():
            text = render(report)
            with atomic_open(folder / file) as written:
                written.write(text)
            print(f"Written: {folder / file}")


def main(argv: Sequence[str] | None = None, command: str = "") -> int:
    """The command; returns its exit code.

    Args:
        command: of which this is the end, such as a sweep's; the page shows it.
    """
    args = build_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    command = command or f"python -m scripts.report {shlex.join(words)}"
    return run_command("report", lambda: run(args, command))


def made(args: argparse.Namespace, command: str = "") -> Report:
    """The report that the flags ask for."""
    gathered = selected(gather(args.folders, read_methods(), args.seeds), args)
    against = args.against
    known = {name: run.method.label for run in gathered.runs for name in (run.method.key, run.method.label)}
    if against and against not in known:
        raise UserError(f"--against {against}: no such runs; there are {', '.join(sorted(known))}.")
    return make_report(gathered, args.metric, command, known.get(against, ""))


def run(args: argparse.Namespace, command: str) -> None:
    """Prints the tables, or writes them."""
    report = made(args, command)
    is_printed = args.format in PRINTED and args.out is None
    if is_printed:
        print(PRINTED[args.format][1](report), end="")
    else:
        names = [*PRINTED, *WRITTEN] if args.format == "all" else [args.format]
        write(report, names, args.out or args.folders[0] / "report", args)
        for warning in report.warnings:  # a printed report has them
            print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
