"""What Slurm says of jobs: in its queue, and in their logs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prompted_clip.errors import MissingFileError

ANSWER_SECONDS = 60.0
PENDING = {
    *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
    "SPECIAL_EXIT",
}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}


class SlurmState(NamedTuple):
    """A state in Slurm's words, such as `OUT_OF_MEMORY`, and why a job waits, such as `Resources`."""

    state: str
    reason: str = ""

    @property
    def live(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in PENDING or self.state in RUNNING


def queued(jobs: Iterable[str]) -> dict[str, SlurmState]:
    """States by id, such as `12` or `12_3`. Jobs that ended minutes ago, or never were, are missing.

    Raises:
        OSError: Slurm does not answer.
    """
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}, key=int))
    if not arrays:
        return {}
    done = _run("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    if done.returncode:
        if "Invalid job id" in done.stderr:  # said where all that are asked for are forgotten
            return {}
        raise OSError(f"squeue failed: {' '.join(done.stderr.split())}")
    rows = (line.strip().split("|") for line in done.stdout.splitlines() if line.strip())
    return {job: SlurmState(state, "" if reason == "None" else reason) for job, state, reason in rows}


def largest_array() -> int:
    """Most jobs that one array may hold; 1001 unless the cluster says otherwise."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config").stdout, re.MULTILINE)
    return max(int(found[1]), 1) if found else 1001


def last_words(log: Path, most_bytes: int = 20_000) -> str:
    """The line of a job's log by which Slurm tells of its end, else the last line; "" without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - most_bytes, 0))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    lines = [line for line in lines if line][-8:]
    of_slurm = [line for line in lines if "CANCELLED AT" in line or ("oom" in line and "kill" in line)]
    return (of_slurm or lines or [""])[-1]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except FileNotFoundError:
        raise MissingFileError(
            f"There is no {command[0]} on this machine; Slurm's commands are needed."
        ) from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not answer within {ANSWER_SECONDS:.0f} seconds.") from None
