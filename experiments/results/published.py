"""What the papers report, from published.json."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from dassl.config import Config
from dassl.config.influence import DRAWN, influencing, is_among
from experiments.methods import Method
from experiments.results.runs import Run

FILE = Path(__file__).with_name("published.json")
CONFIGS = Path(__file__).parents[2] / "configs" / "trainers"
# What a protocol sets for each run, and what draws other random numbers alone.
OF_A_PROTOCOL = (*DRAWN, "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")


@functools.cache
def published() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def base_to_novel_numbers(method: Method) -> dict[str, dict[str, float]]:
    """Base, new and hm by dataset, and their `average`; of a design of an ablation the average alone."""
    for table in ("base2new", "designs"):
        name = method.published.get(table)
        if name in published()[table]:
            return published()[table][name]
    own = (row for row in averages("base2new", method) if "base" in row and not row.get("second_hand"))
    return next(({"average": row} for row in own), {})


def numbers_of(protocol: str, method: Method) -> dict[str, float]:
    """Accuracies by dataset; for few_shot, the averages by shots."""
    return published()[protocol].get(method.published.get(protocol), {})


def averages(protocol: str, method: Method) -> list[dict[str, Any]]:
    """Published averages of a method, and re-runs by others: numbers by their names, with their `source`."""
    return published()["averages"].get(protocol, {}).get(method.published.get(protocol), [])


def unlike_published(run: Run) -> str:
    """What a run's settings or weights have that the published ones have not; "" where they are the same.

    The published settings are those of configs/trainers; the options of a run are changes of them. Of a
    result of an earlier version, the settings that its configuration file names are compared.
    """
    result = run.result
    assert result is not None
    wanted = run.method.config(run.protocol, run.source or run.dataset, run.shots)
    if result.config != wanted:
        return f"configuration {result.config} and not {wanted}"
    if result.backbone_is_published is False:
        return "other weights than OpenAI's"
    changed = {key: values[0] for key, values in result.changed.items()}
    for key, value in sorted({**changed, **_published_settings(run.method.trainer, result.config)}.items()):
        here = result.settings.get(key, value)
        if here != value and not is_among(key, OF_A_PROTOCOL):
            return f"{key} {here} and not {value}"
    return ""


@functools.cache
def _published_settings(trainer: str, config: str) -> dict[str, Any]:
    """What a file of configs/trainers says; nothing where there is no such file."""
    file, path = Config(new_allowed=True), CONFIGS / trainer / f"{config}.yaml"
    if path.is_file():
        file.merge_from_file(str(path))
    return influencing(file, trains=True)
