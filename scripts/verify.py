"""Checks that results agree with the predictions stored with them, and written tables with the results.

    python -m scripts.verify output
    python -m scripts.verify output --rerun 100 --root /path/to/datasets
    python -m scripts.verify output --collect results/NAME   # to offer them, without weights
    python -m scripts.verify results --page                  # checks the collection, and writes its page

The exit code is 1 where something does not fit. Agreement is all that it shows: docs/protocol.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import collection
from experiments.methods import read_methods
from experiments.report import formats
from experiments.report.latex import latex
from experiments.report.page import page
from experiments.report.report import Report
from experiments.results.runs import gather
from experiments.run_folder import PREDICTIONS_OF, RESULT_FILE, read_json, read_text
from experiments.verification import Verdict, check_result, rerun, result_paths
from prompted_clip.console import run_command
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.escaping import printable
from prompted_clip.files import atomic_open
from scripts import report

SHOWS = (
    "This shows that numbers, predictions, settings and tables agree. It does not show that the predictions "
    "are a model's: --rerun predicts images again."
)
HTML_TABLE = re.compile(r"<h3>(.*?)</h3>\s*<div class=\"wide\">(.*?)</table>", re.DOTALL)
UNFINISHED = "Without a result"  # a table of paths, which are others on another machine
PAGE = "README.md"


def blocks(text: str) -> list[str]:
    """The lines of a report, without warnings and without runs that have no result: both name paths."""
    kept, skips = [], False
    for block in text.split("\n\n"):
        is_title = block.strip("# ").startswith(("Attention", UNFINISHED))
        if not is_title and not skips and not block.lstrip("- %").startswith("Attention"):
            kept += [
                line for line in block.splitlines() if not re.match(r"% (Attention|\w+: .*, seed)", line)
            ]
        skips = is_title
    return [line.rstrip() for line in kept]


def rows_of_csv(text: str) -> list[str]:
    """The lines of a CSV file, without warnings and without the column `folder`."""
    head, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    left_out = {number for number, name in enumerate(head) if name == "folder"}
    kept = [row for row in (head, *rows) if row[1:2] != ["Attention"]]
    return [",".join(cell for number, cell in enumerate(row) if number not in left_out) for row in kept]


def tables_of_html(text: str) -> list[str]:
    """The lines of a page's tables."""
    tables = [(title, rows) for title, rows in HTML_TABLE.findall(text) if title != UNFINISHED]
    return [line for title, rows in tables for line in (title, *rows.split("\n"))]


# File of a report -> how it is written, and what of it is compared.
TABLES: dict[str, tuple[Callable[[Report], str], Callable[[str], list[str]]]] = {
    "report.txt": (formats.text, blocks),
    "report.md": (formats.markdown, blocks),
    "report.tex": (latex, blocks),
    "tables.csv": (formats.csv_of_tables, rows_of_csv),
    "runs.csv": (formats.csv_of_runs, rows_of_csv),
    "report.html": (page, tables_of_html),
}


def check_tables(folder: Path, verdict: Verdict) -> int:
    """Makes the tables in a folder of a report again, and compares them; returns how many files fit."""
    made = read_json(folder / report.MADE_FILE)
    args = argparse.Namespace(**{name: made.get(name) for name in report.FILTERS})
    args.folders = [folder / each for each in made["folders"]]
    again, fitting = report.made(args), 0
    for name, (render, compared) in TABLES.items():
        if (folder / name).is_file():
            fault = difference(compared(read_text(folder / name)), compared(render(again)))
            verdict.faults += [f"{folder / name}: {fault}"] if fault else []
            fitting += not fault
    return fitting


def difference(written: Sequence[str], wanted: Sequence[str]) -> str:
    """The first line in which a table is not what results give; "" if there is none."""
    for ours, theirs in zip(written, wanted, strict=False):
        if ours != theirs:
            return f"has {' '.join(ours.split())!r}, its results give {' '.join(theirs.split())!r}"
    if len(written) != len(wanted):
        return f"has {len(written)} lines, its results give {len(wanted)}"
    return ""


def verify(folder: Path, count: int = 0, root: str = "") -> Verdict:
    """Checks all results and tables below a folder, and prints what was checked.

    Args:
        count: how many images of each run are predicted again.
        root: folder of the datasets, for that.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no result in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder.")
    verdict, paths = Verdict(), result_paths(folder)
    if not paths:
        raise UserError(f"{folder} has no result.json, at any depth; give a folder of runs, such as output.")
    for path in paths:
        check_result(path, verdict)
    try:
        for part in collection.submissions(folder) if collection.is_collection(folder) else [folder]:
            verdict.faults += gather([part], read_methods()).apart
    except UserError as error:
        verdict.faults.append(str(error))
    tables = 0
    for made in sorted(folder.rglob(report.MADE_FILE)):
        try:
            tables += check_tables(made.parent, verdict)
        except (UserError, OSError, KeyError, TypeError) as error:
            verdict.faults.append(f"{made.parent}: its tables cannot be made again ({error})")
    for old in sorted(folder.rglob("tables.csv")):
        if not (old.parent / report.MADE_FILE).is_file():
            verdict.unchecked.append(f"{old.parent}: no {report.MADE_FILE} says how its tables were made")
    if collection.is_collection(folder) and (folder / PAGE).is_file():
        fault = difference(blocks(read_text(folder / PAGE)), blocks(collection.page(folder)))
        verdict.faults += [f"{folder / PAGE}: {fault}"] if fault else []
        tables += not fault
    print(
        f"{verdict.checked} of {len(paths)} results and {tables} files of tables agree with the predictions."
    )
    for path in paths if count else ():
        if path.name == RESULT_FILE and path.with_name(PREDICTIONS_OF[path.name]).is_file():
            _rerun(path, count, root, verdict)
    return verdict


def _rerun(path: Path, count: int, root: str, verdict: Verdict) -> None:
    try:
        images, worst, faults = rerun(path, count, root)
    except (UserError, OSError) as error:
        verdict.faults.append(f"{path}: nothing could be predicted again ({error})")
        return
    print(f"{path.parent}: {images} images predicted again, scores differ by {worst:.2g} at most.")
    verdict.faults += faults


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Checks results and tables against the stored predictions.")
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder of runs, such as output; or results")
    add("--rerun", type=int, default=0, metavar="N", help="predict N images of each run again")
    add("--root", default="", help="folder of the datasets, for --rerun; by default the run's")
    add("--collect", type=Path, metavar="TO", help="copy results and predictions into a folder, if all fits")
    add("--page", action="store_true", help=f"write {PAGE} of a collection, if all fits")
    return parser


def run(args: argparse.Namespace) -> int:
    if args.rerun < 0:
        raise UserError(f"--rerun is {args.rerun}; allowed is 0 or more.")
    if args.page:
        (args.folder / PAGE).unlink(missing_ok=True)  # it is written anew, and not checked
    verdict = verify(args.folder, args.rerun, args.root)
    for line in verdict.unchecked:
        print(f"not checked: {printable(line)}")
    for line in verdict.faults:
        print(f"does not fit: {printable(line)}", file=sys.stderr)
    if verdict.faults:
        return 1
    print("not checked: calibration, seconds, memory and parameters, which predictions do not tell.")
    print(SHOWS)
    if args.collect:
        copied = collection.collect(args.folder, args.collect)
        print(f"{copied} results are copied into {args.collect}, without weights and without paths.")
    if args.page:
        with atomic_open(args.folder / PAGE) as file:
            file.write(collection.page(args.folder))
        print(f"Written: {args.folder / PAGE}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 where something does not fit, 2 for bad input."""
    args = build_parser().parse_args(argv)
    return run_command("verify", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
