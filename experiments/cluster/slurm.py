"""What Slurm says of jobs: from its queue, and from its accounting where there is one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

ANSWER_SECONDS = 60.0
PENDING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}


class SlurmState(NamedTuple):
    """A state in Slurm's words, such as `OUT_OF_MEMORY`, and why a job waits, such as `Resources`."""

    state: str
    reason: str = ""


def queued(jobs: Iterable[str]) -> dict[str, SlurmState]:
    """States by id, such as `12` or `12_3`. Jobs that ended minutes ago, or never were, are missing.

    Raises:
        OSError: Slurm does not answer.
    """
    if not (arrays := _arrays(jobs)):
        return {}
    done = _run("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    if done.returncode:
        if "Invalid job id" in done.stderr:  # said where all that are asked for are forgotten
            return {}
        raise OSError(f"squeue failed: {last_line(done.stderr)}")
    rows = (line.strip().split("|") for line in done.stdout.splitlines() if line.strip())
    return {job: SlurmState(state, "" if reason == "None" else reason) for job, state, reason in rows}


def accounted(jobs: Iterable[str]) -> dict[str, SlurmState]:
    """States by id from the accounting. Empty where Slurm keeps none."""
    if not (arrays := _arrays(jobs)):
        return {}
    try:
        done = _run("sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={arrays}")
    except OSError:
        return {}
    rows = [line.split("|") for line in done.stdout.splitlines()] if not done.returncode else []
    # "CANCELLED by 1000"
    return {row[0]: SlurmState(row[1].split()[0]) for row in rows if len(row) == 2 and row[1].strip()}


def largest_array() -> int:
    """Most jobs that one array may hold; 1001 unless the cluster says otherwise."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config").stdout, re.MULTILINE)
    return max(int(found[1]), 1) if found else 1001


def cancel(jobs: Iterable[str]) -> None:
    """Ends jobs, waiting or running; those that Slurm has forgotten are passed over.

    Raises:
        OSError: Slurm does not answer.
    """
    if ids := sorted(jobs):
        done = _run("scancel", *ids)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise OSError(f"scancel failed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """The last line that is not empty; "" without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _arrays(jobs: Iterable[str]) -> str:
    """The ids of whole arrays: Slurm then answers for all of their jobs at once."""
    return ",".join(sorted({job.partition("_")[0] for job in jobs}, key=int))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {command[0]} on this machine; Slurm's commands are needed."
        ) from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not answer within {ANSWER_SECONDS:.0f} seconds.") from None
