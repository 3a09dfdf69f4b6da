"""Each reader of this project with a mutated input: a case raises what the reader raises, or Nonsense."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

from . import configuration_cases, data_cases, result_cases, tensor_cases
from .outcome import Outcome, outcome_of

# Called with random numbers, a folder to work in, and a file that hostile content makes if it is run.
Case = Callable[[random.Random, Path, Path], None]

MOST_MEMORY = 12 << 30  # bytes of address space of a process

CASES: dict[str, Case] = {
    "configuration": configuration_cases.configuration,
    "settings": tensor_cases.settings,
    "split file": data_cases.split_file,
    "table": data_cases.table,
    "own folder": data_cases.own_folder,
    "few-shot list": data_cases.few_shot_list,
    "index and hashes": data_cases.hashes,
    "test cache": data_cases.crops,
    "class names": data_cases.class_names,
    "image": data_cases.image,
    "archive": data_cases.archive,
    "weights": tensor_cases.weights,
    "checkpoint": tensor_cases.checkpoint,
    "results": result_cases.results,
    "logs": result_cases.logs,
}


def limit() -> None:
    """Prepares a process for cases."""
    warnings.simplefilter("ignore")
    try:
        import resource
    except ImportError:  # on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def outcome(case: tuple[str, int]) -> Outcome:
    """What becomes of a case, by its kind and number."""
    return outcome_of(CASES[case[0]], case[1])
