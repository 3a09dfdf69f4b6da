"""Which units were handed to a cluster, kept as `<output>/cluster/jobs.json` for whoever comes next."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


@dataclasses.dataclass
class Submission:
    """One unit on a cluster.

    Args:
        cluster: `slurm` or `local`.
        job: the id in Slurm, such as `12_3`; or the number of a local process.
        logs: the folder of its logs, below the sweep's folder.
        folders: the folders of its jobs, below the sweep's folder.
        attempt: 1, and 1 more each time it was submitted again by the same command.
        host: the machine of a local process.
        started: when a local process was started; with `job`, it names one process for good.
        ended: Slurm's word, such as `CANCELLED`, once it is known to have ended without its results.
        error: the last line of the error.
    """

    cluster: str
    job: str
    logs: str
    folders: list[str]
    attempt: int = 1
    host: str = ""
    started: str = ""
    ended: str = ""
    error: str = ""


class Submissions:
    """Reads and changes `jobs.json`. Several sweeps may do so at once.

    Args:
        folder: `<output>/cluster`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "jobs.json"

    def read(self) -> dict[str, Submission]:
        """The last submission of each unit, by the unit's name.

        Raises:
            ValueError: the file is not one of this project.
        """
        try:
            units = json.loads(self.file.read_text(encoding="utf-8"))["units"]
            return {name: Submission(**fields) for name, fields in units.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{self.file} is no list of submitted jobs. Stop them (squeue, scancel), then delete it."
            ) from None

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Submission]]:
        """Yields what `read` gives, alone with it; changes are kept, also where an error ends the context."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock"):
            units = self.read()
            before = self._text(units)
            try:
                yield units
            finally:
                if (text := self._text(units)) != before:
                    part = self.file.with_suffix(".part")
                    part.write_text(text, encoding="utf-8")
                    os.replace(part, self.file)

    @staticmethod
    def _text(units: dict[str, Submission]) -> str:
        return json.dumps(
            {"format": 1, "units": {name: dataclasses.asdict(unit) for name, unit in units.items()}}, indent=1
        )
