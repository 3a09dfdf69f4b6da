"""The methods, as configs/protocols/methods.yaml lists them: that order is the order of rows everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config.bounded_yaml import load_yaml
from prompted_clip.errors import UserError

METHODS_FILE = Path(__file__).resolve().parent.parent / "configs" / "protocols" / "methods.yaml"
CONFIGS = METHODS_FILE.parent.parent / "trainers"
DATASET = "{dataset}"  # in the name of a file: the dataset that is trained on
CONDITIONS = ("protocol", "dataset", "shots")  # of a rule: a value, or a list of those that fit


@dataclass(frozen=True)
class Method:
    """A trainer with its settings, under the name that it has in tables.

    Attributes:
        rules: which file of configs/trainers/<trainer> is taken where; the first that fits counts.
        published: the name of its published numbers, by table.
        class_specific: whether what is learned belongs to the classes trained on; no others are tested.
        place: its row among the methods.
    """

    key: str
    label: str
    trainer: str
    rules: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    published: Mapping[str, str] = field(default_factory=dict, hash=False)
    class_specific: bool = False
    place: int = 10**6

    @property
    def is_zero_shot(self) -> bool:
        """Nothing is learned: no seed and no shots that could matter."""
        return self.trainer.startswith("Zeroshot")

    @property
    def configs(self) -> frozenset[str]:
        """All its files, as `config_name` has them."""
        found = set()
        for rule in self.rules:
            pattern = rule["config"].replace(DATASET, "*")
            files = (CONFIGS / self.trainer).glob(f"{pattern}.yaml") if pattern != rule["config"] else ()
            found |= {config_name(str(file), self.trainer) for file in files} or {rule["config"]}
        return frozenset(found)

    def config(self, protocol: str, dataset: str, shots: int) -> str:
        """The file, as `config_name` has it, for a protocol, the dataset trained on, and a number of shots.

        Raises:
            ValueError: no rule fits.
        """
        actual = dict(zip(CONDITIONS, (protocol, dataset, shots), strict=True))
        for rule in self.rules:
            allowed = {key: rule[key] for key in CONDITIONS if key in rule}
            if all(value == actual[key] or _is_among(actual[key], value) for key, value in allowed.items()):
                return rule["config"].replace(DATASET, dataset)
        raise UserError(
            f"{METHODS_FILE.name}: no rule of {self.key} fits protocol {protocol}, dataset {dataset}, "
            f"{shots} shots. Name a configuration: --trainers {self.trainer}:CONFIG."
        )


def _is_among(value: object, allowed: object) -> bool:
    return isinstance(allowed, list) and value in allowed


def read_methods(path: Path | None = None) -> list[Method]:
    """The methods of a file, in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a table of methods.
    """
    path = path or METHODS_FILE
    table = load_yaml(path.read_bytes(), str(path)) or {}
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise UserError(
            f"{path} holds no table of methods: NAME: {{trainer: ..., configs: ...}} is expected."
        )
    return [_method(path, str(key), entry, place) for place, (key, entry) in enumerate(table.items())]


def _method(path: Path, key: str, entry: Mapping[str, Any], place: int) -> Method:
    trainer, rules, published = entry.get("trainer"), entry.get("configs"), entry.get("published", {})
    if not isinstance(trainer, str):
        raise UserError(f"{path}: {key}.trainer is {trainer!r}; allowed is the name of a trainer.")
    if not isinstance(published, dict):
        raise UserError(f"{path}: {key}.published is {published!r}; allowed are names by table.")
    if not isinstance(rules, list) or not all(
        isinstance(rule, dict)
        and isinstance(rule.get("config"), str)
        and rule.keys() <= {*CONDITIONS, "config"}
        for rule in rules
    ):
        raise UserError(
            f"{path}: {key}.configs is {rules!r}; allowed is a list of rules, {{config: FILE}} with or "
            f"without the conditions {', '.join(CONDITIONS)}."
        )
    class_specific = entry.get("class_specific", False)
    if not isinstance(class_specific, bool):
        raise UserError(f"{path}: {key}.class_specific is {class_specific!r}; allowed are true and false.")
    label = str(entry.get("label", key))
    return Method(key, label, trainer, tuple(rules), published, class_specific, place)


def config_name(file: str, trainer: str) -> str:
    """A configuration's name: its path below configs/trainers/<trainer>, without .yaml; else its stem."""
    path = Path(file)
    _, found, below = path.as_posix().rpartition(f"trainers/{trainer}/")
    return below.removesuffix(path.suffix) if found else path.stem


def method_of(methods: Sequence[Method], trainer: str, config: str) -> Method:
    """The method that a run is of; one of its own, `trainer (config)`, if no entry fits."""
    for method in methods:
        if method.trainer == trainer and config in method.configs:
            return method
    name = f"{trainer} ({config})" if config else trainer
    return Method(name, name, trainer, ({"config": config},))
