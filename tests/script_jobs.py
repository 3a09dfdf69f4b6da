"""Runs of a sweep that are a few lines of Python instead of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.plans import Planned
from experiments.sweeps.job import Job

BEGINNING = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "pid").write_text(str(os.getpid()))
with open(folder / "attempts", "a") as file:
    print("began", file=file)
attempts = len((folder / "attempts").read_text().split())
"""
END = """
(folder / "result.json").write_text('{"results": {"accuracy": 50.0}, "seconds": {"total": 1.0}}')
"""


@dataclass(frozen=True)
class ScriptJob(Job):
    """Runs `script`, which knows its `folder` and how many `attempts` there were; then leaves a result."""

    script: str = ""

    def command(self, python: str, output: Path) -> list[str]:
        return [python, "-c", f"{BEGINNING}{self.script}{END}", str(output / self.folder)]


def script_job(folder: str, script: str = "", needs: str = "") -> ScriptJob:
    """A job of that folder, which is all that matters of its plan."""
    planned = Planned(
        folder, "base2new", "MaPLe", "MaPLe", "shapes", "shapes", "base", "base", 1, 1, not needs
    )
    return ScriptJob(planned, flags=(), needs=needs, script=script)


def attempts_of(output: Path, folder: str) -> int:
    """How often a job was begun."""
    file = output / folder / "attempts"
    return len(file.read_text().split()) if file.exists() else 0
