"""What a sweep wants, written down as `<output>/plans/<protocol>-<hash>.json`: the report goes by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.run_folder import FORMAT, read_json
from prompted_clip.console import shortened
from prompted_clip.errors import UserError
from prompted_clip.escaping import printable
from prompted_clip.files import atomic_open

ROLES = ("base", "new", "joint", "source", "target", "all")


@dataclass(frozen=True)
class Planned:
    """What a run is for: a cell of a table, or a point of a curve.

    Attributes:
        folder: of the run, below the folder of all results, which holds `plans`.
        method: a key of configs/protocols/methods.yaml, or TRAINER:CONFIG.
        config: stem of a file of configs/trainers/<trainer>.
        dataset: stem of a file of configs/datasets; the one that is tested on.
        role: one of ROLES.
        trains: whether it trains, or only tests.
        curve, value: of an ablation; "" and None without one.
        source: the dataset that is trained on, in a protocol that has one for all; else "".
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
    trains: bool
    curve: str = ""
    value: float | None = None
    source: str = ""


def save_plan(protocol: str, planned: Sequence[Planned], output: Path) -> None:
    """Writes a plan; the same plan once."""
    content = {"format": FORMAT, "protocol": protocol, "jobs": [asdict(each) for each in planned]}
    text = json.dumps(content, indent=1) + "\n"
    path = output / "plans" / f"{protocol}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    with atomic_open(str(path)) as file:
        file.write(text)


def read_plan(path: Path) -> list[Planned]:
    """The runs of a plan.

    Raises:
        ValueError: the file is broken, or is no plan; names it and what is wrong.
    """
    content = read_json(path)
    if not isinstance(content.get("jobs"), list):
        raise UserError(f"{path} is no plan: it has no list of jobs.")
    return [_planned(path, number, entry) for number, entry in enumerate(content["jobs"])]


def _planned(path: Path, number: int, entry: Any) -> Planned:
    texts = ("folder", "protocol", "method", "trainer", "config", "dataset", "role", "classes")
    try:
        planned = Planned(
            **{name: str(entry[name]) for name in texts},
            shots=int(entry["shots"]),
            seed=int(entry["seed"]),
            trains=bool(entry["trains"]),
            curve=str(entry.get("curve") or ""),
            value=entry.get("value"),
            source=str(entry.get("source") or ""),
        )
    except KeyError as error:
        raise UserError(f"{path}: job {number} lacks {error.args[0]}.") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: job {number} holds a value that does not fit ({error}).") from error
    value = planned.value
    if value is not None and not (isinstance(value, (int, float)) and abs(value) < 2**63):
        raise UserError(
            f"{path}: job {number} has the value {shortened(repr(value), 80)}; allowed are numbers."
        )
    if planned != printable(planned):
        raise UserError(f"{path}: job {number} holds control characters.")
    if planned.role not in ROLES:
        raise UserError(f"{path}: job {number} has role {planned.role!r}; allowed are {', '.join(ROLES)}.")
    return planned
