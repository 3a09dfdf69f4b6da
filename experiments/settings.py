"""Whether two runs have the same settings, as far as settings change a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where a run is made, and how often it saves, does not change what comes of it.
WITHOUT_INFLUENCE = (
    *("OUTPUT_DIR", "RESUME", "USE_CUDA", "VERBOSE", "TRAIN", "DATASET.ROOT", "DATASET.REBUILD_INDEX"),
    *("DATALOADER.CACHE_GB", "DATALOADER.TEST.SAMPLER", "TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT"),
    *("TEST.SAVE_PREDICTIONS", "MODEL.BACKBONE.PATH", "DATALOADER.TEST_CACHE", "DATALOADER.TEST_CACHE_GB"),
)


def differences(settings: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Which settings of a result are other ones: "OPTIM.MAX_EPOCH is 5 there, 10 here".

    Settings of other trainers do not count, nor those that only one of the two has.

    Args:
        settings: of the configuration, as `record.plain` gives it.
        result: a result.json.
    """
    here, there = flat(settings), flat(result.get("settings", {}))
    own = f"TRAINER.{str(settings['TRAINER']['NAME']).upper()}."
    found = []
    for key in here.keys() & there.keys():
        of_another = key.startswith("TRAINER.") and not key.startswith((own, "TRAINER.NAME"))
        ignored = any(key == name or key.startswith(f"{name}.") for name in WITHOUT_INFLUENCE)
        if here[key] != there[key] and not (of_another or ignored):
            found.append(f"{key} is {there[key]!r} there, {here[key]!r} here")
    return sorted(found)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
