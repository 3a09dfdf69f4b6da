"""The states of runs."""

from __future__ import annotations

from pathlib import Path

from experiments.run_folder import state

FINISHED, RUNNING, FAILED = "finished", "running", "failed"
INTERRUPTED, MISSING = "interrupted", "missing"
UNFINISHED = (FAILED, INTERRUPTED, RUNNING, MISSING)  # the most urgent first
REASONS = {
    RUNNING: "a process works on it",
    INTERRUPTED: "stopped before its result; it can go on",
    MISSING: "not started",
}


def state_of(folder: Path) -> tuple[str, str]:
    """The state of a run without a result, and why it has none."""
    try:
        found, reason = state(folder)
    except (OSError, ValueError) as error:  # a name that no file system takes, or nobody may look
        return MISSING, str(error)
    if found == FINISHED:
        return FAILED, "its result.json cannot be read, or is of another test"
    return found, reason or REASONS[found]
