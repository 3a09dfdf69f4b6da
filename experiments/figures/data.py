"""The runs of a folder, as figures need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.methods import Method, read_methods
from experiments.results.benchmarks import label_of
from experiments.results.result_file import RESULT_FILES, read_json
from experiments.results.runs import Run, gather


def read_runs(folder: Path, protocols: Iterable[str], datasets: Sequence[str] | None = None) -> list[Run]:
    """The runs of these protocols, those planned and not done, too; in the order of the methods.

    Args:
        datasets: stems of the files in configs/datasets; None for all.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no such run in it.
    """
    wanted = list(protocols)
    runs = [run for run in gather([folder], read_methods()).runs if run.protocol in wanted]
    if not runs:
        raise ValueError(
            f"{folder} holds no run of {' or '.join(wanted)}; python -m scripts.sweep {wanted[0]} makes them."
        )
    known = datasets_of(runs)
    for name in datasets or ():
        if name not in known:
            raise ValueError(f"--datasets {name}: there is no run on it; there are {', '.join(known)}.")
    return [run for run in runs if datasets is None or run.dataset in datasets]


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """The methods, each once."""
    return list({run.method.key: run.method for run in runs}.values())


def datasets_of(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.dataset for run in runs))


def over_what(runs: Sequence[Run]) -> str:
    """The dataset by name, or over how many is averaged."""
    datasets = datasets_of(runs)
    return label_of(datasets[0]) if len(datasets) == 1 else f"Mean over {len(datasets)} datasets"


def seeds_of(runs: Sequence[Run]) -> str:
    """How many seeds, and what the bars are, if there are several."""
    count = len({run.seed for run in runs})
    return f"{count} seeds; bars are the standard deviation over the seeds" if count > 1 else "1 seed"


def per_class_of(run: Run) -> list[dict[str, Any]]:
    """Name, images and hits of each class; none where the run has no result.json.

    Raises:
        ValueError: the file is broken.
    """
    if run.result is None:
        return []
    for name in RESULT_FILES:
        path = run.result.folder / name
        content = read_json(path) if path.is_file() else {}
        if content.get("classes") == run.result.classes and content.get("split") == run.result.split:
            return content.get("per_class") or []
    return []
