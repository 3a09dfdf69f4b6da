"""One run of `train.py`: its command, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.results.result_file import RESULT_FILE
from experiments.sweeps.plans import Planned

ROOT = Path(__file__).resolve().parent.parent
ERROR_FILE = "error.txt"  # what a failed run said last
LOCK_FILE = ".lock"  # held by the run that writes into the folder
IN_USE = 75  # exit code of train.py where another run holds it


@dataclass(frozen=True)
class Job:
    """A run of `train.py` that a sweep wants.

    Attributes:
        flags: of `train.py`, without those for folders of results.
        options: KEY VALUE pairs.
        weights: folder of what is tested: below the folder of all results, or whole; "" for a training, and
            where nothing is learned.
        needs: the folder of the training that has to be finished before; "" if none.
    """

    planned: Planned
    flags: tuple[str, ...]
    options: tuple[str, ...] = ()
    weights: str = ""
    needs: str = ""
    load_epoch: int | None = None
    launcher: tuple[str, ...] = field(default=())  # words before train.py: torchrun's

    @property
    def folder(self) -> str:
        return self.planned.folder

    def arguments(self, output: Path) -> list[str]:
        """The words behind train.py."""
        words = [*self.flags, "--output-dir", str(output / self.folder)]
        if not self.planned.trains:
            words.append("--eval-only")
        if self.weights:
            words += ["--model-dir", str(output / self.weights)]
        if self.load_epoch is not None:
            words += ["--load-epoch", str(self.load_epoch)]
        return [*words, *self.options]

    def command(self, python: str, output: Path) -> list[str]:
        """The whole command, to be run in the project's folder."""
        return [python, *self.launcher, "train.py", *self.arguments(output)]


def state(folder: Path) -> tuple[str, str]:
    """finished, running, failed, interrupted or missing; and in words why, for a run that failed."""
    if (folder / RESULT_FILE).is_file():
        return "finished", ""
    if is_in_use(folder):
        return "running", ""
    reason = last_line(folder / ERROR_FILE)
    if reason:
        return "failed", reason
    return ("interrupted" if any(folder.glob("log.txt*")) else "missing"), ""


def is_in_use(folder: Path) -> bool:
    """Whether a run writes into the folder now, of this machine or of another on the same disk."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # in a folder that only others may write into
        return False


def last_line(path: Path) -> str:
    """The last line that is not empty; "" without one."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run; None where there is none that can be read."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("results"), dict) else None


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
