"""Costs and calibration of the runs, and whether they share code, machine and training images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from experiments.methods import Method
from experiments.report.tables import Cell, Row, Table
from experiments.results.accuracies import methods_of
from experiments.results.benchmarks import label_of
from experiments.results.result_file import LOG, Result
from experiments.results.runs import Run
from experiments.results.statistics import PARTIAL, over_seeds

GIB = 2**30


def costs(runs: Sequence[Run]) -> Table | None:
    """Learned parameters, training time and memory of each method, at each number of shots, on each device.

    The time is of runs that one process trained alone, from their start to their end.
    """
    columns = ["learned parameters", "training, seconds (median)", "whole trainings"]
    columns += ["peak memory, GiB (most)", "tested images a second (median)", "device"]
    table = Table("Costs", ("method", "shots"), columns, compares=False)
    groups: defaultdict[tuple[Method, int, str], dict[tuple[Path, str], Result]] = defaultdict(dict)
    for run in runs:
        if run.result:  # a run may stand in several protocols
            key = (run.method, run.shots, run.result.device)
            groups[key][run.result.folder, run.result.source] = run.result
    for method in methods_of(runs):
        for shots, device in sorted(key[1:] for key in groups if key[0] == method):
            results = list(groups[method, shots, device].values())
            parameters = _distinct(
                f"{each.learned_parameters:,}" for each in results if each.learned_parameters is not None
            )
            seconds = [each.training_seconds for each in results if each.training_seconds]
            memory = [each.peak_memory for each in results if each.peak_memory]
            speeds = [each.images_per_second for each in results if each.images_per_second]
            cells: list[Cell] = [
                " / ".join(parameters) or None,
                f"{median(seconds):,.0f}" if seconds else None,
                str(len(seconds)) if seconds else None,
                f"{max(memory) / GIB:.2f}" if memory else None,
                f"{median(speeds):,.0f}" if speeds else None,
                device or None,
            ]
            if any(cells):
                table.rows.append(Row((method.label, str(shots) if shots else ""), cells))
    return table if table.rows else None


def calibration(runs: Sequence[Run]) -> Table | None:
    """Expected calibration error of each method, as it was tested and at its temperature."""
    columns = ["ECE", "temperature", "ECE after"]
    table = Table("Calibration", ("dataset", "method", "classes", "shots"), columns, compares=False)
    groups: defaultdict[tuple[str, Method, str, int], dict[int, Result]] = defaultdict(dict)
    for run in runs:
        if run.result and run.result.ece is not None and not run.curve:
            groups[run.dataset, run.method, run.result.classes, run.shots][run.seed] = run.result
    methods = methods_of(runs)
    order = sorted(groups, key=lambda key: (label_of(key[0]), methods.index(key[1]), key[2:]))
    for dataset, method, classes, shots in order:
        by_seed = groups[dataset, method, classes, shots]
        cells: list[Cell] = []
        for name in ("ece", "temperature", "ece_after"):
            values = {seed: getattr(each, name) for seed, each in by_seed.items()}
            known = {seed: value for seed, value in values.items() if value is not None}
            state = PARTIAL if len(known) < len(values) else ""
            cells.append(over_seeds(known, len(values), state) if known else None)
        table.rows.append(Row((label_of(dataset), method.label, classes, str(shots) if shots else ""), cells))
    return table if table.rows else None


def differences(runs: Iterable[Run]) -> list[str]:
    """Notes on what is not the same for all runs of a table."""
    results = [run.result for run in runs if run.result]
    notes = []
    for what, values in (
        ("backbones", _distinct(each.backbone for each in results if each.backbone)),
        ("commits", _distinct(each.commit[:10] for each in results if each.commit)),
        ("versions of torch", _distinct(each.torch for each in results if each.torch)),
        ("devices", _distinct(each.device for each in results if each.device)),
    ):
        if len(values) > 1:
            notes.append(f"The runs differ in their {what}: {', '.join(values)}.")
    if any(each.commit_is_clean is False for each in results):
        changed = sum(each.commit_is_clean is False for each in results)
        notes.append(f"{changed} of {len(results)} runs were made with uncommitted changes in the code.")
    logs = sum(each.source == LOG for each in results)
    if logs:
        notes.append(
            f"{logs} of {len(results)} results are read from logs, with the one decimal that they print."
        )
    return notes


def samples(runs: Iterable[Run]) -> tuple[Table | None, list[str]]:
    """The hashes of the images trained on, and a warning wherever methods were trained on different ones."""
    hashes: defaultdict[tuple[str, int, int], dict[str, set[str]]] = defaultdict(dict)
    for run in runs:
        trained = run.result and run.result.trained_on
        if trained and trained.sample_sha256:
            key = (trained.dataset, trained.shots, trained.seed)
            hashes[key].setdefault(trained.sample_sha256, set()).add(run.method.label)
    table = Table("Images trained on", ("dataset", "shots", "seed"), ["sha256", "methods"], compares=False)
    everyone = {label for methods in hashes.values() for labels in methods.values() for label in labels}
    warnings = []
    for (dataset, shots, seed), methods in sorted(hashes.items()):
        for digest, labels in methods.items():
            who = (
                f"all {len(everyone)}"
                if labels == everyone and len(everyone) > 1
                else ", ".join(sorted(labels))
            )
            table.rows.append(Row((label_of(dataset), str(shots), str(seed)), [digest[:16], who]))
        if len(methods) > 1:
            told = "; ".join(f"{digest[:16]} by {', '.join(sorted(who))}" for digest, who in methods.items())
            warnings.append(
                f"{label_of(dataset)}, {shots} shots, seed {seed}: different training images: {told}."
            )
    return (table if table.rows else None), warnings


def code_versions(runs: Iterable[Run]) -> dict[str, str]:
    """Commits, versions and devices that occur."""
    results: list[Result] = [run.result for run in runs if run.result]
    facts = {
        "commits": _distinct(each.commit for each in results if each.commit),
        "torch": _distinct(each.torch for each in results if each.torch),
        "devices": _distinct(each.device for each in results if each.device),
        "backbones": _distinct(each.backbone for each in results if each.backbone),
    }
    return {name: ", ".join(values) or "unknown" for name, values in facts.items()}


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
