"""Gathers runs from folders: those with a result, those that a plan wants, and what became of the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.methods import Method, method_of
from experiments.plans import Planned
from experiments.results.benchmarks import LABELS
from experiments.results.files import Result
from experiments.results.folders import Found
from experiments.results.placing import Placing
from experiments.results.states import FINISHED, MISSING, state_of
from experiments.run_folder import ERROR_FILE, last_line

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
    found = Found(folders)
    planned = [_planned(job, root, found.results, methods) for job, root in found.jobs]
    in_plan = {run.folder for run in planned}
    runs = _once([*planned, *_unplanned(_beside(planned, found.results), methods, found.warnings)])
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


def _beside(planned: Sequence[Run], results: Mapping[Path, Sequence[Result]]) -> list[Result]:
    """The results that no plan names, also those of other tests in a planned run's folder."""
    folders, used = {run.folder for run in planned}, {id(run.result) for run in planned}
    return [
        result
        for folder, several in results.items()
        for result in several
        if id(result) not in used and (folder not in folders or result.accuracy is not None)
    ]


def _planned(job: Planned, root: Path, results: dict[Path, list[Result]], methods: Sequence[Method]) -> Run:
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
