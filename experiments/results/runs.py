"""Gathers the runs below folders: those with a result, and those that a plan wants."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dassl.config.influence import DRAWN, is_among
from experiments.methods import Method, method_of
from experiments.plans import Planned
from experiments.results.benchmarks import LABELS, VARIANTS
from experiments.results.result_file import LOG, Result, own_label
from experiments.results.scan import Scan
from experiments.results.states import FINISHED, state_of
from experiments.run_folder import ERROR_FILE, last_line
from prompted_clip.errors import UserError

CROSS_DATASET, DOMAINS = "cross_dataset", "domain_generalisation"
MOST_LISTED = 3  # settings in the name of a row
# Of a result's identity, by which runs of one method may differ without differing in settings.
PARTS_OF_A_CELL = ("model", "init_weights", "classes", "sentences", "tested_images", "tested_training")


@dataclass(frozen=True)
class Run:
    """A run in its place in a table.

    Attributes:
        protocol: base2new, cross_dataset, domain_generalisation, few_shot, zeroshot, depth, length, or one
            of the user's own.
        dataset: that is tested; stem of the file in configs/datasets.
        role: base, new or joint (both in one softmax), source or target, or all.
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
        """Equal for two runs that a table cannot tell apart."""
        place = (self.protocol, self.method.key, self.dataset, self.role, self.shots, self.seed)
        return (*place, self.curve, self.value, self.source)


@dataclass
class RunSet:
    """Runs, and warnings about files.

    Attributes:
        warnings: files that could not be read and runs that are in no table, a line each.
        apart: of those, the lines on seeds that have other settings than the rest.
    """

    runs: list[Run] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)


def gather(folders: Sequence[Path], methods: Sequence[Method], seeds: Iterable[int] | None = None) -> RunSet:
    """All runs below `folders`, and those of plans that are not there.

    Args:
        seeds: only these, and zero-shot runs, for which seeds do not matter; None for all.

    Raises:
        FileNotFoundError: one of the folders does not exist.
        ValueError: there are no runs; or a run is there twice, with different results.
    """
    scan = Scan(folders)
    scan.results = _own_data_apart(scan.results)
    planned = [_planned(job, root, scan.results, methods) for job, root in scan.jobs]
    in_plan = {run.folder for run in planned}
    runs = [*planned, *_unplanned(_beside(planned, scan.results), methods, scan.warnings)]
    apart: list[str] = []
    runs = _once(settings_apart(runs, scan.warnings, apart))
    scan.warnings += apart
    for folder in sorted(scan.failed - in_plan - set(scan.results)):
        reason = last_line(folder / ERROR_FILE)
        scan.warnings.append(f"{folder} failed ({reason}); no log or plan tells which run it is.")
    if seeds is not None:
        wanted = set(seeds)
        runs = [run for run in runs if run.seed in wanted or run.method.is_zero_shot]
    if not runs:
        where = ", ".join(map(str, folders))
        told = "".join(f" {warning}" for warning in scan.warnings[:1])
        raise UserError(f"no runs in {where}: no result.json, no plan, no log of a run.{told}")
    runs.sort(key=_order)
    return RunSet(runs, scan.warnings, apart)


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
    folder = root / job.folder
    if folder not in results:  # whose keys are resolved; that takes long for many runs
        folder = folder.resolve()
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
    """The runs that no plan names, each in the protocol that its own result tells."""
    runs = []
    for result in results:
        method = method_of(methods, result.trainer, result.config)
        try:
            protocol, role = place_of(result, method)
        except ValueError as error:
            warnings.append(f"{result.folder}: {error}; it is in no table.")
            continue
        trained, is_done = result.trained_on, result.accuracy is not None
        state, reason = (FINISHED, "") if is_done else state_of(result.folder)
        runs.append(
            Run(
                protocol=protocol,
                method=method,
                dataset=result.dataset,
                role=role,
                shots=0 if method.is_zero_shot else (trained or result).shots,
                seed=(trained or result).seed,
                source=trained.dataset if trained and role == "target" else "",
                state=state,
                reason=reason,
                folder=result.folder,
                result=result if is_done else None,
            )
        )
    return runs


def place_of(result: Result, method: Method) -> tuple[str, str]:
    """Protocol and role of a run, by what it was trained on and what it tests.

    Raises:
        ValueError: it fits none; says why.
    """
    trained, classes = result.trained_on, result.classes
    if result.split != "test":
        raise UserError("tested on validation images")
    if trained and trained.dataset != result.dataset:
        if classes != "all":
            raise UserError(f"trained on {trained.dataset}, tested on {classes} classes of {result.dataset}")
        return (DOMAINS if result.dataset in VARIANTS else CROSS_DATASET), "target"
    if classes != "all" and (trained is None or trained.classes == "base"):
        return "base2new", classes
    if trained and (trained.classes, classes) == ("base", "all"):
        return "base2new", "joint"
    if trained and trained.classes != classes:
        raise UserError(f"trained on {trained.classes} classes, tested on {classes} classes")
    if trained is None and not method.is_zero_shot:
        raise UserError("its result.json does not say on which dataset the model was trained")
    if classes != "all":
        raise UserError(f"trained on {classes} classes, tested on {classes} classes")
    return ("few_shot" if trained else "zeroshot"), "all"


def _own_data_apart(results: Mapping[Path, Sequence[Result]]) -> dict[Path, list[Result]]:
    """Results on own data, named by as many parts of their paths as tell their folders apart."""
    places = {each.place for several in results.values() for each in several if each.place}
    most = max((len(Path(place).parts) for place in places), default=1)

    def parts(place: str) -> int:
        last = [Path(each).parts for each in places if each != place]
        own = Path(place).parts
        return next((n for n in range(1, most + 1) if all(each[-n:] != own[-n:] for each in last)), most)

    def renamed(result: Result) -> Result:
        if not result.place:
            return result
        before = result.dataset
        label = own_label(result.place, before.rpartition("(")[2].rstrip(")"), parts(result.place))
        trained = result.trained_on
        if trained and trained.dataset == before:
            trained = replace(trained, dataset=label)
        return replace(result, dataset=label, trained_on=trained)

    return {folder: [renamed(each) for each in several] for folder, several in results.items()}


def settings_apart(runs: Sequence[Run], warnings: list[str], lines: list[str]) -> list[Run]:
    """The runs, those of other settings than the rest of their cell as a method of their own.

    Seeds of different settings never make a mean: they are two rows, named by what differs.

    Args:
        lines: to which one is added for each dataset with such seeds.
    """
    finished = [run for run in runs if run.result and run.result.source != LOG]
    places: defaultdict[tuple, list[Run]] = defaultdict(list)
    for run in finished:
        places[run.identity[:5] + run.identity[6:]].append(run)  # all but the seed
    methods: dict[int, Method] = {}
    apart: defaultdict[str, defaultdict[tuple[str, str], set[int]]] = defaultdict(lambda: defaultdict(set))
    for place in places.values():
        cells = list(_cells(place).values())
        first, *others = sorted(cells, key=lambda each: (-len(each), min(run.seed for run in each)))
        for other in others:
            words = _what_differs(first[0], other[0])
            for run in other:
                method = run.method
                key, label = (f"{name} ({words})" for name in (method.key, method.label))
                methods[id(run)] = replace(method, key=key, label=label, published={})
            apart[first[0].dataset][first[0].method.label, words] |= {each.seed for each in other}
    for dataset, groups in apart.items():
        parts = [
            f"{_seeds_have(seeds, label)} other settings than the rest ({words})"
            for (label, words), seeds in groups.items()
        ]
        rows = "a row of its own" if len(parts) == 1 else "rows of their own"
        lines.append(f"{dataset}: {'; '.join(parts)}. Shown as {rows}, in no mean with the rest.")
    if without := sum(1 for run in finished if run.result and not run.result.cell):
        have = "1 result has" if without == 1 else f"{without} results have"
        warnings.append(
            f"{have} no identity, as an earlier version wrote. Only settings tell which of their seeds "
            "belong together."
        )
    return [replace(run, method=methods.get(id(run), run.method)) for run in runs]


def _seeds_have(seeds: Iterable[int], label: str) -> str:
    """ "seed 1 of MaPLe has", or "seeds 1, 2 of MaPLe have"."""
    listed = [str(seed) for seed in sorted(seeds)]
    one = len(listed) == 1
    return f"{'seed' if one else 'seeds'} {', '.join(listed)} of {label} {'has' if one else 'have'}"


def _cells(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by their cell; by the settings that all know, where a result has no identity."""
    results = [run.result for run in runs if run.result]
    cells: defaultdict[str, list[Run]] = defaultdict(list)
    if all(each.cell for each in results):
        names = [each.cell for each in results]
    else:
        known = set.intersection(*(set(each.settings) for each in results))
        compared = sorted(key for key in known if not is_among(key, DRAWN))
        names = [json.dumps([each.settings[key] for key in compared]) for each in results]
    for run, name in zip(runs, names, strict=True):
        cells[name].append(run)
    return cells


def _what_differs(there: Run, here: Run) -> str:
    """In a few words what `here` has that `there` has not: "MAX_EPOCH 1, N_CTX 8"."""
    theirs, ours = there.result, here.result
    assert theirs is not None
    assert ours is not None
    keys = [key for key in sorted(ours.settings.keys() & theirs.settings) if not is_among(key, DRAWN)]
    found = [
        f"{key.rpartition('.')[2]} {ours.settings[key]}"
        for key in keys
        if ours.settings[key] != theirs.settings[key]
    ]
    if not found:
        parts = [name for name in PARTS_OF_A_CELL if ours.parts.get(name) != theirs.parts.get(name)]
        found = [f"other {name.replace('_', ' ')}" for name in parts]
    return ", ".join(found[:MOST_LISTED] + (["..."] if len(found) > MOST_LISTED else []))


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
            raise UserError(
                f"one run has two results ({what}): {other.accuracy:.2f} in {other.folder} and "
                f"{run.accuracy:.2f} in {run.folder}. Which one counts? Give folders that hold only that one."
            )
    return list(kept.values())
