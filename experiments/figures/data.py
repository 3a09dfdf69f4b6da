"""Runs of a folder as figures need them: what was planned, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = ("protocol", "method", "dataset", "role", "shots", "seed")
SPECIAL = {"dtd": "DTD", "eurosat": "EuroSAT", "ucf101": "UCF101", "sun397": "SUN397"}


@dataclass(frozen=True)
class Run:
    """A planned run.

    Attributes:
        dataset: stem of the dataset's configuration.
        role: base, new, all, source or target.
        curve, value: of a run over depth or length; "" and None of others.
        result: what `result.json` holds; None while the run is not finished.
    """

    protocol: str
    method: str
    dataset: str
    role: str
    shots: int
    seed: int
    curve: str
    value: float | None
    folder: Path
    result: Mapping[str, Any] | None

    @property
    def accuracy(self) -> float | None:
        """Percent."""
        return None if self.result is None else float(self.result["results"]["accuracy"])


def read_runs(folder: Path, protocols: Iterable[str]) -> list[Run]:
    """The runs that the plans of a folder want, of these protocols; each once.

    Raises:
        FileNotFoundError: there is no such folder, or no plan of these protocols in it.
        ValueError: a file cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder.")
    wanted, found = set(protocols), {}
    for file in sorted((folder / "plans").glob("*.json")):
        for job in _read(file)["jobs"]:
            if job["protocol"] in wanted:
                place = folder / job["folder"]
                result = place / "result.json"
                told = {key: job[key] for key in KEYS}
                found[(job["protocol"], job["folder"])] = Run(
                    **told,
                    curve=job.get("curve", ""),
                    value=job.get("value"),
                    folder=place,
                    result=_read(result) if result.is_file() else None,
                )
    if not found:
        names = " or ".join(sorted(wanted))
        raise FileNotFoundError(f"{folder}: no plan of {names} is in its folder plans; run scripts.sweep.")
    return list(found.values())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); delete it and run again.") from error


def shown_name(runs: Sequence[Run], dataset: str) -> str:
    """A dataset's own name where a run tells it, else the stem of its configuration."""
    names = (run.result["dataset"] for run in runs if run.result and run.dataset == dataset)
    return next(names, SPECIAL.get(dataset, dataset))
