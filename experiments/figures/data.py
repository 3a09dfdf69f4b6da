"""The runs of a folder, as figures need them, and what is said of those without a result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.methods import read_methods
from experiments.results.accuracies import Setting, average_title, averaged, datasets_of, grouped
from experiments.results.benchmarks import label_of
from experiments.results.result_file import LOG, read_json
from experiments.results.runs import Run, gather
from prompted_clip.console import shortened
from prompted_clip.errors import UserError
from prompted_clip.escaping import printable

MOST_MISSING = 4  # that a line names
HOLLOW = ": hollow points lack seeds, and averages that lack a run are left out"


def read_runs(folder: Path, protocols: Iterable[str], datasets: Sequence[str] | None = None) -> list[Run]:
    """The runs of these protocols, those planned and not done, too; in the order of the methods.

    Args:
        datasets: stems of the files in configs/datasets; None for all.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no such run in it.
    """
    wanted = list(protocols)
    gathered = printable(gather([folder], read_methods()))
    runs = [run for run in gathered.runs if run.protocol in wanted]
    if not runs:
        raise UserError(
            f"{folder} holds no run of {' or '.join(wanted)}; python -m scripts.sweep {wanted[0]} makes them."
        )
    known = datasets_of(runs)
    for name in datasets or ():
        if name not in known:
            raise UserError(f"--datasets {name}: there is no run on it; there are {', '.join(known)}.")
    return [run for run in runs if datasets is None or run.dataset in datasets]


def each_shots(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each number of shots, by what to append to a file's name; "" where there is one."""
    groups = grouped(runs)
    if len(groups) == 1:
        return {"": next(iter(groups.values()))}
    return {f"_{group.shots}_shots": own for group, own in groups.items()}


def setting_of(runs: Sequence[Run]) -> Setting:
    return Setting(max(run.shots for run in runs))


def over_what(runs: Sequence[Run]) -> str:
    """The dataset by name, or over which is averaged."""
    datasets = datasets_of(runs)
    members = averaged(datasets)
    return label_of(members[0]) if len(members) == 1 else average_title(members, datasets)


def seeds_of(runs: Sequence[Run]) -> str:
    """How many seeds the means are over, and what the bars are, if there are several."""
    seeds: defaultdict[tuple, set[int]] = defaultdict(set)
    for run in runs:
        if run.accuracy is not None and not run.method.is_zero_shot:
            seeds[run.method.key, run.dataset, run.role, run.shots, run.curve, run.value].add(run.seed)
    counts = sorted(map(len, seeds.values())) or [1]
    least, most = counts[0], counts[-1]
    many = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most > 1)}"
    return f"{many}; bars are the standard deviation over the seeds" if most > 1 else many


def per_class_of(run: Run) -> list[dict[str, Any]]:
    """Name, images and hits of each class; none where the run has no result.json.

    Raises:
        ValueError: the file is broken.
    """
    if run.result is None or run.result.source == LOG:
        return []
    path = run.result.folder / run.result.source
    classes = read_json(path).get("per_class") or []
    try:
        for each in classes:
            total, correct, name = (each[key] for key in ("total", "correct", "name"))
            fits = type(total) is type(correct) is int and 0 <= correct <= total
            if not (fits and total and isinstance(name, str)):
                raise UserError(f"{path}: per_class holds {shortened(repr(each), 200)}.")
        return [{**each, "name": printable(each["name"])} for each in classes]
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: per_class is no list of name, total and correct ({error!r}).") from error


def nothing_to_draw(runs: Sequence[Run]) -> UserError:
    """The error where no mean is known, which says what could be drawn instead."""
    done = datasets_of(run for run in runs if run.accuracy is not None)
    if not done:
        return UserError(f"None of the {len(runs)} runs of {runs[0].protocol} has a result yet.")
    return UserError(
        f"Nothing has results on all {len(datasets_of(runs))} datasets yet, over which is averaged; "
        f"--datasets takes a part of them. There are results on {', '.join(done)}."
    )


def missing_lines(runs: Sequence[Run]) -> list[str]:
    """One line that says how many wanted runs have no result, and names the first of them."""
    missing = [run for run in runs if run.accuracy is None]
    if not missing:
        return []
    named = [str(run.folder or _name(run)) for run in missing[:MOST_MISSING]]
    more = f" and {len(missing) - MOST_MISSING} more" if len(missing) > MOST_MISSING else ""
    return [f"{len(missing)} of {len(runs)} runs have no result yet: {', '.join(named)}{more}"]


def missing_footnote(runs: Sequence[Run], shown: str = HOLLOW) -> str:
    """How many are missing, and how that shows; nothing if none is."""
    missing = sum(run.accuracy is None for run in runs)
    return f"{missing} of {len(runs)} runs are missing{shown}." if missing else ""


def _name(run: Run) -> str:
    return f"{run.method.label} on {run.dataset} ({run.role}, {run.shots} shots, seed {run.seed})"
