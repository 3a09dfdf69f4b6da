"""A run of `train.py` that a sweep wants, and its command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from experiments.plans import Planned


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
