"""What a run found out, as it wrote it down in `result.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.results.benchmarks import LABELS, stem_of
from experiments.run_folder import RESULT_FILE, TEST_FILE, read_json

RESULT_FILES = (RESULT_FILE, TEST_FILE)
OWN_DATA = ("folder", "csv", "hub")  # one file of configs/datasets for many datasets


@dataclass(frozen=True)
class Training:
    """What a tested model had been trained on."""

    dataset: str
    classes: str
    shots: int
    seed: int
    sample_sha256: str = ""


@dataclass(frozen=True)
class Result:
    """A run and its test.

    Attributes:
        dataset: stem of the file in configs/datasets.
        classes: base, new or all.
        trained_on: None for zero-shot.
        accuracy: percent; None if the run has none yet. As `macro_f1`.
        total: images tested.
        peak_memory: bytes, of the device if it has memory of its own, else of the process.
        source: result.json or log. A log has only the digits that it prints.
    """

    folder: Path
    trainer: str
    config: str
    dataset: str
    classes: str
    shots: int
    seed: int
    split: str = "test"
    backbone: str = ""
    trained_on: Training | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    total: int | None = None
    learned_parameters: int | None = None
    training_seconds: float | None = None
    peak_memory: int | None = None
    device: str = ""
    torch: str = ""
    commit: str = ""
    commit_is_clean: bool | None = None
    source: str = "result.json"

    @property
    def sample_sha256(self) -> str:
        """Of the images that the model was trained on; "" if unknown."""
        return self.trained_on.sample_sha256 if self.trained_on else ""


def read_result_file(path: Path) -> Result:
    """A `result.json`.

    Raises:
        ValueError: the file is broken, or is none of this project's; names it and what is wrong.
    """
    content = read_json(path)
    try:
        return _result(path.parent, content)
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]}.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds a value that does not fit ({error}).") from error


def _result(folder: Path, content: Mapping[str, Any]) -> Result:
    name = str(content["dataset"])
    stem = str(content.get("dataset_config") or "") or stem_of(name)
    dataset = _own_data(stem, content.get("settings") or {})
    results, seconds = content["results"], content.get("seconds") or {}
    memory, versions = content.get("peak_memory_bytes") or {}, content.get("versions") or {}
    trained_on = content.get("trained_on")
    if trained_on is not None:
        trained_on = Training(
            dataset=dataset if trained_on["dataset"] == name else stem_of(str(trained_on["dataset"])),
            classes=str(trained_on["classes"]),
            shots=int(trained_on["shots"]),
            seed=int(trained_on["seed"]),
            sample_sha256=str(trained_on.get("sample_sha256") or ""),
        )
    elif not str(content["trainer"]).startswith("Zeroshot"):  # a model whose checkpoint does not say
        trained_on = trained_by_path(
            str(content.get("model_dir") or ""),
            dataset,
            content["classes"],
            content["shots"],
            content["seed"],
        )
    peak = memory.get("device") or memory.get("process")
    return Result(
        folder=folder,
        trainer=str(content["trainer"]),
        config=str(content.get("config") or ""),
        dataset=dataset,
        classes=str(content["classes"]),
        shots=int(content["shots"]),
        seed=int(content["seed"]),
        split=str(content.get("split") or "test"),
        backbone=str(content.get("backbone") or ""),
        trained_on=trained_on,
        accuracy=float(results["accuracy"]),
        macro_f1=_optional(float, results.get("macro_f1")),
        total=_optional(int, content.get("total") or None),  # 0 where the evaluator does not count
        learned_parameters=_optional(int, content.get("learned_parameters")),
        training_seconds=_optional(float, seconds.get("training")),
        peak_memory=_optional(int, peak),
        device=str(content.get("device") or ""),
        torch=str(versions.get("torch") or ""),
        commit=str(content.get("commit") or ""),
        commit_is_clean=content.get("commit_is_clean"),
    )


def _optional(kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else kind(value)


def trained_by_path(model_dir: str, dataset: str, classes: str, shots: int, seed: int) -> Training:
    """What a model was trained on, by its folder's path: a dataset, `shots_16` or `..._16shots`, `seed1`.

    What the path does not say is as in the test. A model of the dataset that is tested has been trained on
    the base classes, unless all are tested.
    """
    parts = Path(model_dir).parts
    trained = next((part for part in reversed(parts) if part in LABELS), dataset)
    base = "train_base" in parts or (trained == dataset and classes in ("base", "new"))
    return Training(
        dataset=trained,
        classes="base" if base else "all",
        shots=_number_in(parts, r"shots_(\d+)|.*_(\d+)shots", int(shots)),
        seed=_number_in(parts, r"seed(\d+)", int(seed)),
    )


def _number_in(parts: Sequence[str], pattern: str, default: int) -> int:
    """The number in the last part that fits a pattern."""
    matches = [match for part in parts if (match := re.fullmatch(pattern, part))]
    return int(next(filter(None, matches[-1].groups()))) if matches else default


def _own_data(stem: str, settings: Mapping[str, Any]) -> str:
    """Own data have one configuration file; what tells them apart is where they lie."""
    if stem not in OWN_DATA:
        return stem
    dataset = settings.get("DATASET") or {}
    place = str((dataset.get("OWN") or {}).get("PATH") or dataset.get("ROOT") or "")
    return f"{Path(place).name} ({stem})" if place else stem
