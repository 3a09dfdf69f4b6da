"""Which settings can change the number of a run, and how two runs differ in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

# All other settings count: also those that a plugin adds. A name stands for all keys below it, too.
WITHOUT_INFLUENCE = {
    "VERSION": "of the configuration's format; not read",
    "OUTPUT_DIR": "where the run is made",
    "RESUME": "an interrupted run comes to the same as an undisturbed one",
    "USE_CUDA": "the device changes rounding alone; result.json names it",
    "VERBOSE": "what is printed",
    "DATASET.ROOT": "where the images are; the images themselves count",
    "DATASET.OWN.PATH": "where the images are; the images themselves count",
    "DATASET.REBUILD_INDEX": "how the images are found",
    "DATALOADER.CACHE_GB": "cached images are those that would be decoded again",
    "DATALOADER.TEST_CACHE": "cached crops are those that would be made again",
    "DATALOADER.TEST_CACHE_GB": "size of that cache",
    "DATALOADER.VIEWS_GB": "the most that kept views may take",
    "DATALOADER.FEATURES_DIR": "kept views are those that would be computed again",
    "DATALOADER.TEST.SAMPLER": "each test image counts once, in any order",
    "DATALOADER.TEST.BATCH_SIZE": "changes rounding alone",
    "MODEL.BACKBONE.PATH": "where the weights are; the weights themselves count",
    "MODEL.INIT_WEIGHTS": "where the weights are; the file itself counts",
    "MODEL.TEXT_CHUNK": "changes rounding alone",
    "TRAINER.COPROMPT.DESCRIPTIONS": "where the descriptions are; the file itself counts",
    "TRAIN.CHECKPOINT_FREQ": "how often the run is saved",
    "TRAIN.CHECKPOINTS_KEPT": "which checkpoints are kept",
    "TRAIN.PRINT_FREQ": "how often a line is printed",
    "TRAIN.CUDA_GRAPHS": "a replayed step is the same step",
    "TEST.NO_TEST": "whether there is a number",
    "TEST.PER_CLASS_RESULT": "what is printed",
    "TEST.COMPUTE_CMAT": "what is written beside the number",
    "TEST.SAVE_PREDICTIONS": "what is written beside the number",
    "TEST.RECORD_PREDICTIONS": "what is written beside the number",
    "TEST.CALIBRATE": "what is recorded beside the number",
}
# What the seed draws, and what else changes the random numbers: seeds of one cell may differ here.
DRAWN = ("SEED", "DATASET.FEW_SHOT_LIST", "DATALOADER.NUM_WORKERS")
# Read by a training alone. A test has them from the model that it tests.
OF_TRAINING = (
    *DRAWN,
    *("OPTIM", "TRAIN", "DATASET.NUM_SHOTS", "DATASET.NUM_LABELED", "DATASET.VAL_PERCENT"),
    *("DATALOADER.TRAIN_X", "DATALOADER.TRAIN_U", "DATALOADER.K_TRANSFORMS", "DATALOADER.RETURN_IMG0"),
    "DATALOADER.VIEWS",
    "TEST.FINAL_MODEL",
)


OWN_DATA = ("folder", "csv", "hub")  # values of DATASET.NAME that stand for many datasets


def plain(value: Any) -> Any:
    """A configuration as dicts, lists, strings and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def own_path(dataset: Mapping[str, Any]) -> str:
    """The folder or table of own data, from the section DATASET; "" for other datasets."""
    return place_of_own_data(dataset) if str(dataset.get("NAME")) in OWN_DATA else ""


def place_of_own_data(dataset: Mapping[str, Any]) -> str:
    """`DATASET.OWN.PATH` as an absolute path; a relative one starts from DATASET.ROOT."""
    root, path = str(dataset.get("ROOT") or ""), str((dataset.get("OWN") or {}).get("PATH") or "")
    return os.path.abspath(os.path.join(os.path.expanduser(root), os.path.expanduser(path)))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def influencing(settings: Mapping[str, Any], trains: bool, own_section: str | None = None) -> dict[str, Any]:
    """The settings that can change the number of a run, by their dotted keys.

    Args:
        settings: a configuration, or the `settings` of a result.json.
        trains: whether the run trains; a test reads fewer.
        own_section: the key below TRAINER that the trainer reads; None for a trainer that may read all.
    """
    left_out = [*WITHOUT_INFLUENCE, *(() if trains else OF_TRAINING)]
    found = {key: value for key, value in flat(plain(settings)).items() if not is_among(key, left_out)}
    if own_section is not None:
        own = ("TRAINER.NAME", f"TRAINER.{own_section}")
        found = {
            key: each for key, each in found.items() if not key.startswith("TRAINER.") or is_among(key, own)
        }
    return found


def is_among(key: str, names: Any) -> bool:
    """Whether a dotted key is one of the names, or stands below one."""
    return f"{key}.".startswith(tuple(f"{name}." for name in names))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words where two flat settings differ: "OPTIM.MAX_EPOCH is 5 there, 10 here".

    Keys that only one of the two has are not compared: another version of the code wrote them.
    """
    return [
        f"{key} is {there[key]!r} there, {here[key]!r} here"
        for key in sorted(there.keys() & here.keys())
        if there[key] != here[key]
    ]
