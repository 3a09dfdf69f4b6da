"""The methods, as configs/protocols/methods.yaml lists them: that order is the order of rows everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

METHODS_FILE = Path(__file__).resolve().parent.parent / "configs" / "protocols" / "methods.yaml"


@dataclass(frozen=True)
class Method:
    """A trainer with its settings, under the name that it has in tables.

    Attributes:
        configs: stems of files of configs/trainers/<trainer>.
        published: the name of its published numbers, by protocol.
        place: its row among the methods.
    """

    key: str
    label: str
    trainer: str
    configs: frozenset[str] = frozenset()
    published: Mapping[str, str] = field(default_factory=dict, hash=False)
    place: int = 10**6

    @property
    def is_zero_shot(self) -> bool:
        """Nothing is learned: no seed and no shots that could matter."""
        return self.trainer.startswith("Zeroshot")


def read_methods(path: Path | None = None) -> list[Method]:
    """The methods of a file, in its order; none if there is no such file.

    Raises:
        ValueError: the file is not a table of methods.
    """
    path = path or METHODS_FILE
    if not path.exists():
        return []
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise ValueError(
            f"{path} holds no table of methods: NAME: {{trainer: ..., config: ...}} is expected."
        )
    return [_method(path, str(key), entry, place) for place, (key, entry) in enumerate(table.items())]


def _method(path: Path, key: str, entry: Mapping, place: int) -> Method:
    for name, kind in (("trainer", str), ("configs", dict), ("published", dict)):
        if not isinstance(entry.get(name, kind()), kind) or (name == "trainer" and not entry.get(name)):
            wanted = "a name" if kind is str else "a table"
            raise ValueError(f"{path}: {key}.{name} is {entry.get(name)!r}; allowed is {wanted}.")
    configs = {str(entry.get("config", "")), *map(str, entry.get("configs", {}).values())} - {""}
    return Method(
        key=key,
        label=str(entry.get("label", key)),
        trainer=entry["trainer"],
        configs=frozenset(configs),
        published=entry.get("published", {}),
        place=place,
    )


def method_of(methods: Sequence[Method], trainer: str, config: str) -> Method:
    """The method that a run is of; one of its own, `trainer (config)`, if no entry fits."""
    for method in methods:
        if method.trainer == trainer and config in method.configs:
            return method
    name = f"{trainer} ({config})" if config else trainer
    return Method(name, name, trainer, frozenset({config}))
