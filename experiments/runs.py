"""Gathers runs from folders: those with a result, those that a plan wants, and what became of the rest."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .benchmarks import LABELS
from .jobs import ERROR_FILE, RESULT_FILE, last_line
from .methods import Method, method_of
from .placing import Placing
from .plan_files import Job, read_plan
from .reference_logs import read_logs
from .results import Result, read_result_file
from .states import FINISHED, MISSING, state_of

RESULT_FILES = (RESULT_FILE, "result_test.json")  # the second is of a test in the folder of a training
USUAL_SEEDS = {1, 2, 3}  # the field's convention


@dataclass(frozen=True)
class Run:
    """A run in its place in a table.

    Attributes:
        protocol: base2new, cross_dataset, domain_generalisation, few_shot, zeroshot, depth, length, or one
            of the user's own.
        dataset: that is tested; stem of the file in configs/datasets.
        role: base or new, source or target, or all.
        shots: 0 for zero-shot.
        curve, value: of an ablation: its name, and the number on its axis.
        source: of a source or a target, the dataset that is trained on.
        state: finished, running, failed, interrupted or missing.
        reason: why there is no result, in words.
    """

    protocol: str
    method: Method
    dataset: str
    role: str
    shots: int
    seed: int
    curve: str = ""
    value: float | None = None
    source: str = ""
    state: str = FINISHED
    reason: str = ""
    folder: Path | None = None
    result: Result | None = None

    @property
    def accuracy(self) -> float | None:
        """Percent."""
        return self.result.accuracy if self.result else None

    @property
    def identity(self) -> tuple:
        """What no two runs of a table share."""
        place = (self.protocol, self.method.key, self.dataset, self.role, self.shots, self.seed)
        return (*place, self.curve, self.value, self.source)


@dataclass
class Gathered:
    """Runs, and what was found beside them.

    Attributes:
        warnings: files that could not be read and runs that are in no table, a line each.
    """

    runs: list[Run] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def gather(
    folders: Sequence[Path], methods: Sequence[Method], seeds: Iterable[int] | None = None
) -> Gathered:
    """All runs below `folders`, and the wanted ones that are not there.

    Args:
        seeds: only these, and all of them; else those of a plan, or without one 1 to 3 and all that occur.

    Raises:
        FileNotFoundError: one of the folders does not exist.
        ValueError: there are no runs; or a run is there twice, with different results.
    """
    found = _Found()
    for folder, files in _walk(folders):
        found.read(folder, files)
    for folder in folders:
        found.read_plans_above(folder.resolve())
    planned = [_planned(job, root, found.results, methods) for job, root in found.jobs]
    in_plan = {run.folder for run in planned}
    rest = [each for folder, results in found.results.items() if folder not in in_plan for each in results]
    runs = _once([*planned, *_unplanned(rest, methods, found.warnings)])
    for folder in sorted(found.failed - in_plan - set(found.results)):
        reason = last_line(folder / ERROR_FILE)
        found.warnings.append(f"{folder} failed ({reason}); no log or plan tells which run it is.")
    wanted = None if seeds is None else set(seeds)
    runs += _expected(runs, {run.protocol for run in planned}, wanted)
    if wanted is not None:
        runs = [run for run in runs if run.seed in wanted or run.method.is_zero_shot]
    if not runs:
        where = ", ".join(map(str, folders))
        told = "".join(f" {warning}" for warning in found.warnings[:1])
        raise ValueError(f"no runs in {where}: no result.json, no plan, no log of a run.{told}")
    runs.sort(key=_order)
    return Gathered(runs, found.warnings)


def _order(run: Run) -> tuple:
    known = list(LABELS)
    dataset = known.index(run.dataset) if run.dataset in LABELS else len(known)
    return run.method.place, run.method.label, dataset, run.dataset, run.role, run.seed


class _Found:
    """What lies in the folders.

    Attributes:
        results: of each folder; a log without a result is one without `accuracy`.
        jobs: of plans, each with the folder that its own is below.
        failed: folders with an error.txt.
    """

    def __init__(self) -> None:
        self.results: dict[Path, list[Result]] = {}
        self.jobs: list[tuple[Job, Path]] = []
        self.failed: set[Path] = set()
        self.warnings: list[str] = []

    def read(self, folder: Path, files: set[str]) -> None:
        """Reads what a folder holds; a file that cannot be read becomes a warning."""
        if ERROR_FILE in files:
            self.failed.add(folder)
        if folder.name == "plans":
            for name in sorted(name for name in files if name.endswith(".json")):
                try:
                    self.jobs += [(job, folder.parent) for job in read_plan(folder / name)]
                except (ValueError, OSError) as error:
                    self.warnings.append(str(error))
        results: list[Result] = []
        for name in RESULT_FILES:
            if name in files:
                try:
                    result = read_result_file(folder / name)
                except (ValueError, OSError) as error:
                    self.warnings.append(str(error))
                    continue
                if _test_of(result) not in map(_test_of, results):
                    results.append(result)
        if not results and any(name.startswith("log.txt") for name in files):
            try:
                log = read_logs(folder)
            except OSError as error:
                self.warnings.append(str(error))
                return
            if log is None:
                self.warnings.append(f"{folder}: its log holds no configuration of a run.")
            else:
                results.append(log)
        if results:
            self.results[folder] = results

    def read_plans_above(self, folder: Path) -> None:
        """Reads the plans of a sweep of whose results `folder` is a part: what they want of this part."""
        for above in folder.parents:
            for path in sorted((above / "plans").glob("*.json")):
                with contextlib.suppress(ValueError, OSError):  # of somebody else's
                    jobs = ((job, above) for job in read_plan(path))
                    self.jobs += [each for each in jobs if (above / each[0].folder).is_relative_to(folder)]


def _walk(folders: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Each folder below, once, with the names of its files; links are followed."""
    seen: set[Path] = set()
    for top in folders:
        if not top.is_dir():
            raise FileNotFoundError(f"{top} is not a folder; give folders of runs, such as output.")
        for name, subfolders, files in os.walk(top, followlinks=True):
            folder = Path(name).resolve()
            if folder in seen:
                subfolders.clear()  # a circle of links, or a folder that was given twice
                continue
            seen.add(folder)
            subfolders.sort()
            yield folder, set(files)


def _test_of(result: Result) -> tuple:
    return result.dataset, result.classes, result.split


def _planned(job: Job, root: Path, results: dict[Path, list[Result]], methods: Sequence[Method]) -> Run:
    folder = (root / job.folder).resolve()
    method = next((method for method in methods if method.key == job.method), None)
    method = method or method_of(methods, job.trainer, job.config)
    finished = [each for each in results.get(folder, []) if each.accuracy is not None]
    result = next((each for each in finished if each.classes == job.classes), None)
    state, reason = (FINISHED, "") if result else state_of(folder)
    return Run(
        protocol=job.protocol,
        method=method,
        dataset=job.dataset,
        role=job.role,
        shots=0 if method.is_zero_shot else job.shots,
        seed=job.seed,
        curve=job.curve,
        value=job.value,
        source=job.source,
        state=state,
        reason=reason,
        folder=folder,
        result=result,
    )


def _unplanned(results: Sequence[Result], methods: Sequence[Method], warnings: list[str]) -> list[Run]:
    """The runs that no plan names, each in the protocol that its test is of."""
    placing, runs = Placing(results), []
    for result in results:
        try:
            places = placing.places(result)
        except ValueError as error:
            warnings.append(f"{result.folder}: {error}; it is in no table.")
            continue
        trained, is_done = result.trained_on, result.accuracy is not None
        state, reason = (FINISHED, "") if is_done else state_of(result.folder)
        for protocol, role in places:
            run = Run(
                protocol=protocol,
                method=method_of(methods, result.trainer, result.config),
                dataset=result.dataset,
                role=role,
                shots=trained.shots if trained else 0,
                seed=trained.seed if trained else result.seed,
                source=trained.dataset if trained and role in ("source", "target") else "",
                state=state,
                reason=reason,
                folder=result.folder,
                result=result if is_done else None,
            )
            runs.append(run)
    return runs


def _expected(runs: Sequence[Run], planned: set[str], seeds: set[int] | None) -> list[Run]:
    """The runs that should be there and are not, where no plan says: the other seeds, and base beside new."""
    seen: defaultdict[str, set[int]] = defaultdict(set)
    groups: defaultdict[tuple, dict[tuple[str, int], Run]] = defaultdict(dict)
    for run in runs:
        if run.protocol in planned:
            continue
        if not run.method.is_zero_shot:
            seen[run.protocol].add(run.seed)
        role = "" if run.protocol == "base2new" else run.role
        group = (run.protocol, run.method.key, run.dataset, role, run.shots, run.source)
        groups[group][run.role, run.seed] = run
    missing = []
    for there in groups.values():
        some = next(iter(there.values()))
        if some.method.is_zero_shot:
            wanted = {seed for _, seed in there}
        else:
            wanted = seeds if seeds is not None else seen[some.protocol] | USUAL_SEEDS
        roles = ("base", "new") if some.protocol == "base2new" else (some.role,)
        for role, seed in ((role, seed) for role in roles for seed in sorted(wanted)):
            if (role, seed) not in there:
                absent = replace(some, role=role, seed=seed, folder=None, result=None)
                missing.append(replace(absent, state=MISSING, reason="no such run in the folders"))
    return missing


def _once(runs: Sequence[Run]) -> list[Run]:
    """Each run once; of several, one that has a result.

    Raises:
        ValueError: two folders hold the same run with different results.
    """
    kept: dict[tuple, Run] = {}
    for run in runs:
        other = kept.setdefault(run.identity, run)
        if other.accuracy is None:
            kept[run.identity] = run if run.accuracy is not None else other
        elif run.accuracy not in (None, other.accuracy):
            what = f"{run.method.label}, {run.dataset}, {run.role}, {run.shots} shots, seed {run.seed}"
            raise ValueError(
                f"one run has two results ({what}): {other.accuracy:.2f} in {other.folder} and "
                f"{run.accuracy:.2f} in {run.folder}. Which one counts? Give folders that hold only that one."
            )
    return list(kept.values())
