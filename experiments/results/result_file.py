"""The result of a run, from its `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config.influence import influencing, own_path
from experiments.results.benchmarks import stem_of
from experiments.run_folder import RESULT_FILE, TEST_FILE, read_json
from prompted_clip.console import shortened
from prompted_clip.errors import MissingFileError, UserError

RESULT_FILES = (RESULT_FILE, TEST_FILE)
TEXTS = (
    "trainer",
    "config",
    "dataset",
    "dataset_config",
    "classes",
    "split",
    "backbone",
    "device",
    "commit",
    "oracle",
    "selected_on",
    "predictions_sha256",
)
# Percentages, whole numbers (any seed below 0 is one that was not set), and seconds.
BOUNDS: dict[str, tuple[Any, int, int]] = {
    **dict.fromkeys(("accuracy", "macro_f1", "ece", "ece_after"), ((int, float), 0, 100)),
    **dict.fromkeys(("seed", "shots"), (int, -(2**63), 2**63)),
    **dict.fromkeys(("total", "learned_parameters", "peak_memory"), (int, 0, 2**63)),
    "temperature": ((int, float), 0, 100),
    **dict.fromkeys(("training_seconds", "images_per_second"), ((int, float), 0, 2**63)),
}
LOG = "log"  # source of a result that is read from a log


@dataclass(frozen=True)
class Training:
    """The training of a tested model."""

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
        trained_on: None where nothing was learned, or where the file does not say.
        accuracy: percent; None if the run has none yet. As `macro_f1`.
        ece: expected calibration error in percent, and at the temperature that was fitted on val images; None
            where the file has none. As `ece_after` and `temperature`.
        total: images tested.
        images_per_second: of the test, with the reading of its images; None if the file does not say.
        oracle: what the test is told beside the images, in words; "" for nothing.
        per_dataset: whether the settings are the dataset's own.
        selected_on: the images that the tested epoch was chosen on: "val"; "" for the last one.
        has_predictions: whether those of all tested images lie beside it.
        peak_memory: bytes, of the device if it has memory of its own, else of the process.
        cell: the same for runs that differ in the seed alone, see `dassl/engine/identity.py`; "" for a
            result of an earlier version, which has no identity.
        settings: those that can change the number, by their dotted keys; of a test also its training's.
        parts: hashes of the model, the data and what is tested.
        backbone_is_published: whether CLIP's weights are OpenAI's; None if the file does not say.
        changed: the settings that options changed in what the configuration files say.
        place: of own data, the folder or table.
        training_seconds: None if the process did not train this run alone from its start to its end.
        source: name of the file: result.json, result_test.json, or log. A log has one decimal.
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
    ece: float | None = None
    ece_after: float | None = None
    temperature: float | None = None
    total: int | None = None
    learned_parameters: int | None = None
    training_seconds: float | None = None
    images_per_second: float | None = None
    oracle: str = ""
    per_dataset: bool = False
    selected_on: str = ""
    has_predictions: bool = False
    peak_memory: int | None = None
    device: str = ""
    torch: str = ""
    commit: str = ""
    commit_is_clean: bool | None = None
    cell: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    changed: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    parts: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    backbone_is_published: bool | None = None
    place: str = ""
    source: str = "result.json"

    def __post_init__(self) -> None:
        for name, (kinds, least, most) in BOUNDS.items():
            value: Any = getattr(self, name)
            fits = isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most
            if value is not None and not fits:
                shown = shortened(repr(value), 80)
                raise UserError(f"{name} is {shown}; allowed are numbers from {least} to {most:,}")
        if self.accuracy is None and self.source != LOG:
            raise UserError("accuracy is null")

    @property
    def sample_sha256(self) -> str:
        """Of the images that the model was trained on; "" if unknown."""
        return self.trained_on.sample_sha256 if self.trained_on else ""


def content_of(folder: Path) -> dict[str, Any]:
    """The content of a run's result.json; of result_test.json where there is no other.

    Raises:
        FileNotFoundError: there is no such folder, or no result in it.
        ValueError: the file is broken.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder.")
    path = next((folder / name for name in RESULT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise MissingFileError(
            f"{folder} holds no {RESULT_FILE}, so that its settings are not known; give the folder of a "
            "finished run of train.py."
        )
    return read_json(path)


def read_result_file(path: Path) -> Result:
    """The result in a `result.json`.

    Raises:
        ValueError: the file is broken, or is none of this project's; names it and what is wrong.
    """
    content = read_json(path)
    try:
        for name in TEXTS:
            if not isinstance(content.get(name) or "", str):
                raise UserError(f"{name} is {shortened(repr(content[name]), 80)}; allowed are texts")
        return result_of(path, content)
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}.") from error
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} holds a value that does not fit ({error}).") from error


def result_of(path: Path, content: Mapping[str, Any]) -> Result:
    """The result that the content of a result.json is of; see `read_result_file`."""
    name = str(content["dataset"])
    stem = str(content.get("dataset_config") or "") or stem_of(name)
    place = own_path((content.get("settings") or {}).get("DATASET") or {})
    dataset = own_label(place, stem) if place else stem
    results, seconds = content["results"], content.get("seconds") or {}
    calibration = content.get("calibration") or {}
    memory, versions = content.get("peak_memory_bytes") or {}, content.get("versions") or {}
    trained_on, trained_settings = content.get("trained_on"), None
    if trained_on is not None:
        trained_settings = trained_on.get("settings")
        trained_place = str(trained_on.get("own_path") or "")
        same = trained_on["dataset"] == name and trained_place in ("", place)
        other = own_label(trained_place, stem) if trained_place else stem_of(str(trained_on["dataset"]))
        trained_on = Training(
            dataset=dataset if same else other,
            classes=str(trained_on["classes"]),
            shots=int(trained_on["shots"]),
            seed=int(trained_on["seed"]),
            sample_sha256=str(trained_on.get("sample_sha256") or ""),
        )
    identity = content.get("identity") or {}
    learned = bool(content.get("epochs") or trained_on)
    settings = identity.get("settings") or influencing(
        content.get("settings") or {}, learned, str(content["trainer"]).upper()
    )
    settings = {**(trained_settings or {}), **settings}
    is_whole = not content.get("resumed_from_epoch") and "--seeds" not in content.get("command", ())
    peak = memory.get("device") or memory.get("process")
    return Result(
        folder=path.parent,
        trainer=str(content["trainer"]),
        config=str(content.get("config") or ""),
        dataset=dataset,
        classes=str(content["classes"]),
        shots=content["shots"],
        seed=content["seed"],
        split=str(content.get("split") or "test"),
        backbone=str(content.get("backbone") or ""),
        trained_on=trained_on,
        accuracy=results["accuracy"],
        macro_f1=results.get("macro_f1"),
        ece=calibration.get("ece"),
        ece_after=calibration.get("ece_after"),
        temperature=calibration.get("temperature"),
        total=content.get("total") or None,  # 0 where the evaluator does not count
        learned_parameters=content.get("learned_parameters"),
        training_seconds=(seconds.get("training") or None) if is_whole else None,
        images_per_second=content.get("images_per_second"),
        oracle=str(content.get("oracle") or ""),
        per_dataset=content.get("per_dataset") is True,
        selected_on=str(content.get("selected_on") or ""),
        has_predictions=bool(content.get("predictions_sha256")),
        peak_memory=peak,
        device=str(content.get("device") or ""),
        torch=str(versions.get("torch") or ""),
        commit=str(content.get("commit") or ""),
        commit_is_clean=content.get("commit_is_clean"),
        cell=str(identity.get("cell") or ""),
        settings=settings,
        changed={key: (file, run) for key, (file, run) in (content.get("changed") or {}).items()},
        parts=dict(identity.get("parts") or {}),
        backbone_is_published=content.get("backbone_is_published"),
        place=place,
        source=path.name,
    )


def own_label(place: str, kind: str, parts: int = 1) -> str:
    """The name of own data, which have one configuration file: the last parts of their path."""
    return f"{'/'.join(Path(place).parts[-parts:])} ({kind})"
