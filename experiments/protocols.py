"""The protocols of the field, from configs/protocols/*.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config.bounded_yaml import load_yaml
from experiments.run_folder import ROOT
from prompted_clip.errors import MissingFileError, UserError

PROTOCOLS = ROOT / "configs" / "protocols"
KEYS = {"title", "source", "datasets", "shots", "methods", "train", "tests", "untrained"}
KEYS |= {"axis", "values", "values_of", "curves"}


@dataclass(frozen=True)
class Step:
    """A run that a protocol asks for: what it is in the table, on which classes, and its folder."""

    role: str
    classes: str
    folder: str


@dataclass(frozen=True)
class Curve:
    """What an ablation varies: a method, and the options that take the values."""

    method: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """What is trained and what is tested.

    Attributes:
        source: the dataset that is trained on; "" where it is the one that is tested on.
        untrained: what is tested of a method that learns nothing, and of --weights.
        methods: that it is for, if not for all.
        axis: what the values of an ablation are, with their unit.
        values_of: other values for some datasets.
    """

    name: str
    title: str
    datasets: tuple[str, ...]
    train: Step | None = None
    tests: tuple[Step, ...] = ()
    untrained: tuple[Step, ...] = ()
    source: str = ""
    shots: tuple[int, ...] = (16,)
    methods: tuple[str, ...] = ()
    axis: str = ""
    values: tuple[int, ...] = ()
    values_of: Mapping[str, Sequence[int]] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


def protocol_names() -> list[str]:
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml") if path.stem != "methods")


def read_protocol(name: str) -> Protocol:
    """A protocol of the project by its name, or one's own by the path of its yaml file.

    Raises:
        FileNotFoundError: there is no such protocol.
        ValueError: the file is not one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROTOCOLS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(protocol_names())
        raise MissingFileError(f"protocol {name}: allowed are {known}, or the path of a yaml file.")
    content = _read_yaml(path)
    unknown = sorted(content.keys() - KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; allowed are {', '.join(sorted(KEYS))}.")
    try:
        train = content.get("train")
        return Protocol(
            name=path.stem,
            title=str(content.get("title", path.stem)),
            datasets=tuple(content["datasets"]),
            train=Step(**train) if train else None,
            tests=tuple(Step(**step) for step in content.get("tests", ())),
            untrained=tuple(Step(**step) for step in content.get("untrained", ())),
            source=content.get("source", ""),
            shots=tuple(content.get("shots", (16,))),
            methods=tuple(content.get("methods", ())),
            axis=content.get("axis", ""),
            values=tuple(content.get("values", ())),
            values_of=content.get("values_of", {}),
            curves={
                label: Curve(curve["method"], tuple(curve["options"]))
                for label, curve in content.get("curves", {}).items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no protocol ({error}): see {PROTOCOLS.name}/base2new.yaml for one."
        ) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    content = load_yaml(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} is no protocol: expected are keys such as title, datasets, train.")
    base = content.pop("_BASE_", None)
    return {**_read_yaml(path.parent / base), **content} if base else content
