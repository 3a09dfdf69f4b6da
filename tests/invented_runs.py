"""Folders with invented results of sweeps, clearly artificial: for figures without a model."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAMES = {"dtd": "DescribableTextures", "eurosat": "EuroSAT", "shapes": "Shapes"}
SEEDS = (1, 2, 3)


class Invented:
    """A sweep's folder; `add` plans runs, `write` writes plan and results.

    Attributes:
        jobs: of the plan.
        left_out: folders of jobs that are planned and have no result.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[dict[str, Any]] = []
        self.results: dict[str, dict[str, Any]] = {}
        self.left_out: set[str] = set()

    def add(
        self, protocol: str, method: str, dataset: str, role: str, seed: int, accuracy: float, **job: Any
    ) -> str:
        """Plans a run with a result, and returns its folder."""
        per_class = job.pop("per_class", {})
        variant = "_".join(str(value) for value in job.values())
        folder = f"{protocol}/{role}/{dataset}/{method}/{variant}/seed{seed}"
        base = {"curve": "", "value": None, "shots": 16}
        told = {
            "protocol": protocol,
            "method": method,
            "trainer": method,
            "config": "invented",
            "trains": True,
        }
        place = {"folder": folder, "dataset": dataset, "role": role, "classes": role, "seed": seed}
        self.jobs.append(base | told | place | job)
        self.results[folder] = {
            "format": 1,
            "trainer": method,
            "config": "invented",
            "dataset": NAMES.get(dataset, dataset),
            "dataset_config": dataset,
            "classes": role,
            "split": "test",
            "shots": self.jobs[-1]["shots"],
            "seed": seed,
            "results": {"accuracy": accuracy},
            "identity": {"run": folder, "cell": "c", "parts": {}, "settings": {}},
            "per_class": [
                {"label": label, "name": name, "total": 100, "correct": correct}
                for label, (name, correct) in enumerate(per_class.items())
            ],
        }
        return folder

    def write(self) -> Path:
        protocols = dict.fromkeys(job["protocol"] for job in self.jobs)
        (self.folder / "plans").mkdir(parents=True, exist_ok=True)
        for protocol in protocols:
            plan = {"format": 1, "protocol": protocol}
            plan["jobs"] = [job for job in self.jobs if job["protocol"] == protocol]
            (self.folder / "plans" / f"{protocol}-0123abcd.json").write_text(json.dumps(plan))
        for folder, result in self.results.items():
            if folder not in self.left_out:
                place = self.folder / folder
                place.mkdir(parents=True, exist_ok=True)
                (place / "result.json").write_text(json.dumps(result))
        return self.folder


def wobble(*words: Any) -> float:
    """Between −1 and 1, the same for the same words."""
    return zlib.crc32(repr(words).encode()) % 2001 / 1000 - 1


def add_curves(runs: Invented, protocol: str, values: tuple[int, ...], datasets: tuple[str, ...]) -> None:
    """Curves of three variants of MaPLe, on base and new classes."""
    curves = {"both branches": 4.0, "text branch": 1.0, "image branch": -2.0}
    for curve, height in curves.items():
        for value in values:
            for dataset in datasets:
                for role, start in (("base", 70.0), ("new", 65.0)):
                    for seed in SEEDS:
                        accuracy = start + height + 0.6 * value + wobble(curve, value, dataset, role, seed)
                        runs.add(protocol, "MaPLe", dataset, role, seed, accuracy, curve=curve, value=value)


def add_few_shot(runs: Invented, datasets: tuple[str, ...]) -> None:
    """MaPLe and CoOp with 1 to 16 shots, and zero-shot CLIP."""
    for dataset in datasets:
        runs.add("zeroshot", "ZeroshotCLIP", dataset, "all", 1, 60 + wobble(dataset), shots=0)
        for method, gain in (("MaPLe", 4.0), ("CoOp", 3.0)):
            for power in range(5):
                for seed in SEEDS:
                    accuracy = 60 + gain * power + 2 * wobble(dataset, method, power, seed)
                    runs.add("few_shot", method, dataset, "all", seed, accuracy, shots=2**power)


def add_base2new(runs: Invented, gains: Mapping[str, Mapping[str, int]]) -> None:
    """MaPLe and CoCoOp; by dataset and class, how many of 100 images more MaPLe recognises.

    The first half of a dataset's classes is base.
    """
    for dataset, classes in gains.items():
        for role, part in _halves(classes):
            for seed in SEEDS:
                ours = {name: 70 + gain for name, gain in part.items()}
                theirs = dict.fromkeys(part, 70)
                for method, counts in (("MaPLe", ours), ("CoCoOp", theirs)):
                    accuracy = sum(counts.values()) / len(counts) + wobble(method, dataset, role, seed)
                    runs.add("base2new", method, dataset, role, seed, accuracy, per_class=counts)


def _halves(classes: Mapping[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
    names = list(classes)
    middle = (len(names) + 1) // 2
    yield "base", {name: classes[name] for name in names[:middle]}
    yield "new", {name: classes[name] for name in names[middle:]}
