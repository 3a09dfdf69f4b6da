"""What the papers report, from published.json."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from experiments.methods import Method

FILE = Path(__file__).with_name("published.json")


@functools.cache
def published() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def base_to_novel_numbers(method: Method) -> dict[str, dict[str, float]]:
    """Base, new and hm by dataset, and their `average`; of a design of an ablation the average alone."""
    for table in ("base2new", "designs"):
        name = method.published.get(table)
        if name in published()[table]:
            return published()[table][name]
    return {}


def numbers_of(protocol: str, method: Method) -> dict[str, float]:
    """Accuracies by dataset; for few_shot, the averages by shots."""
    return published()[protocol].get(method.published.get(protocol), {})
