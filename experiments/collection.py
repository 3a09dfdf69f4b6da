"""A collection of results that anyone can add to: a folder for each submission, and a page made from them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from experiments.methods import read_methods
from experiments.record import sealed
from experiments.report.formats import markdown
from experiments.report.report import make_report
from experiments.results.accuracies import datasets_of, methods_of
from experiments.results.benchmarks import label_of
from experiments.results.runs import RunSet, gather
from experiments.run_folder import PREDICTIONS_OF, read_json
from experiments.tasks import OVERLAP
from experiments.verification import result_paths
from prompted_clip.errors import UserError
from prompted_clip.files import atomic_open

MARK_FILE = "collection.json"  # in the folder of a collection
HEAD = """# Results that anyone can check

Made from the files by `python -m scripts.verify results --page`, which recomputes each number from the stored
predictions. How to add yours: [CONTRIBUTING.md](../CONTRIBUTING.md). What the marks mean, and what the check
does not show: [docs/protocol.md](../docs/protocol.md).
"""


def is_collection(folder: Path) -> bool:
    return (folder / MARK_FILE).is_file()


def submissions(folder: Path) -> list[Path]:
    """The folders of a collection that hold results."""
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and result_paths(each)]


def collect(runs: Path, into: Path) -> int:
    """Copies results and predictions of a folder of runs, and its plans; returns how many results.

    Paths of this machine are left out: they have no influence on any number.

    Raises:
        ValueError: the folder is there already, or there is a result without predictions.
    """
    if into.exists():
        raise UserError(f"--collect {into} is there already; give another name.")
    paths = result_paths(runs)
    without = [path for path in paths if not path.with_name(PREDICTIONS_OF[path.name]).is_file()]
    if without:
        raise UserError(f"{without[0]} has no predictions: nobody could check it. Test it again.")
    for path in paths:
        place = into / path.parent.relative_to(runs)
        place.mkdir(parents=True, exist_ok=True)
        content = sealed(without_paths(read_json(path)))
        with atomic_open(place / path.name) as file:
            json.dump(content, file, indent=4)
        name = PREDICTIONS_OF[path.name]
        shutil.copyfile(path.with_name(name), place / name)
    for plan in runs.rglob("plans/*.json"):
        place = into / plan.relative_to(runs)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plan, place)
    return len(paths)


def without_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the last part of each absolute path alone; its identity stays as it is."""

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shortened(each) for key, each in value.items()}
        if isinstance(value, list):
            return [shortened(each) for each in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: value if key == "identity" else shortened(value) for key, value in content.items()}


def page(folder: Path) -> str:
    """The page of a collection: who has what, and one report on all of it.

    A method of several submissions has a row for each.
    """
    gathered = {each.name: gather([each], read_methods()) for each in submissions(folder)}
    if not gathered:
        raise UserError(f"{folder} has no folder with results.")
    counts = Counter(key for runs in gathered.values() for key in {run.method.key for run in runs.runs})
    all_runs, warnings, rows = [], [], []
    for name, runs in gathered.items():
        methods = ", ".join(method.label for method in methods_of(runs.runs))
        datasets = ", ".join(map(label_of, datasets_of(runs.runs)))
        done = sum(run.accuracy is not None for run in runs.runs)
        rows.append([name, methods, datasets, f"{done} of {len(runs.runs)}"])
        warnings += [f"{name}: {warning}" for warning in runs.warnings]
        for run in runs.runs:
            method = run.method
            if counts[method.key] > 1:
                key, label = (f"{each} ({name})" for each in (method.key, method.label))
                method = replace(method, key=key, label=label)
            all_runs.append(replace(run, method=method))
    head = ["submission", "methods", "datasets", "runs with a result"]
    tasks = sorted({read_json(path).get("task") or "" for path in result_paths(folder)} - {""})
    told = f"Tasks: {', '.join(tasks) or 'none of the published ones'}. {OVERLAP}"
    report = markdown(make_report(RunSet(all_runs, warnings)))
    return f"{HEAD}\n{tabulate(rows, head, 'pipe')}\n\n{told}\n\n{report.removeprefix('# Results').lstrip()}"
