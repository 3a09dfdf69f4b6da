"""Reads what a sweep wants: <output>/plans/<protocol>-<hash>.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .results import read_json

ROLES = ("base", "new", "source", "target", "all")


@dataclass(frozen=True)
class Job:
    """A wanted run.

    Attributes:
        folder: of the run, below the folder that holds `plans`.
        source: the dataset that is trained on, where that is another one than the tested.
    """

    folder: str
    protocol: str
    method: str
    trainer: str
    config: str
    dataset: str
    role: str
    classes: str
    shots: int
    seed: int
    curve: str = ""
    value: float | None = None
    source: str = ""


def read_plan(path: Path) -> list[Job]:
    """The jobs of a plan.

    Raises:
        ValueError: the file is broken, or is no plan; names it and what is wrong.
    """
    content = read_json(path)
    if not isinstance(content.get("jobs"), list):
        raise ValueError(f"{path} is no plan: it has no list of jobs.")
    jobs = [_job(path, number, entry) for number, entry in enumerate(content["jobs"])]
    sources = {(job.protocol, job.method, job.shots): job.dataset for job in jobs if job.role == "source"}
    any_source = next(iter(sources.values()), "")
    return [
        replace(job, source=sources.get((job.protocol, job.method, job.shots), any_source))
        if job.role in ("source", "target")
        else job
        for job in jobs
    ]


def _job(path: Path, number: int, entry: Any) -> Job:
    texts = ("folder", "protocol", "method", "trainer", "config", "dataset", "role", "classes")
    try:
        job = Job(
            **{name: str(entry[name]) for name in texts},
            shots=int(entry["shots"]),
            seed=int(entry["seed"]),
            curve=str(entry.get("curve") or ""),
            value=entry.get("value"),
        )
    except KeyError as error:
        raise ValueError(f"{path}: job {number} lacks {error.args[0]}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: job {number} holds a value that does not fit ({error}).") from error
    if job.role not in ROLES:
        raise ValueError(f"{path}: job {number} has role {job.role!r}; allowed are {', '.join(ROLES)}.")
    return job
