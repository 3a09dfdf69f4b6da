"""Processes of this machine, by their number: whether one still runs, and ending it with what it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable


def started(pids: Iterable[int]) -> dict[int, str]:
    """When those of `pids` that still run were started. Number and start together name a process for good."""
    wanted = ",".join(str(pid) for pid in pids)
    if not wanted:
        return {}
    done = subprocess.run(
        ["ps", "-o", "pid=,stat=,lstart=", "-p", wanted],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    )
    rows = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    return {int(pid): start.strip() for pid, state, start in rows if not state.startswith("Z")}


def kill_with_children(pid: int) -> None:
    """Kills a process, its children, and theirs.

    A run may be killed at any time: its files are written whole or not at all.

    Raises:
        OSError: `ps` gave no list of the processes; none was killed.
    """
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False)
    if listing.returncode:
        raise OSError(f"ps ended with exit code {listing.returncode}; process {pid} was not killed.")
    children: dict[int, list[int]] = {}
    for line in listing.stdout.splitlines():
        child, parent = (int(word) for word in line.split())
        children.setdefault(parent, []).append(child)
    waiting = [pid]
    while waiting:
        current = waiting.pop(0)  # a parent first: it shall not start another
        waiting += children.get(current, [])
        with contextlib.suppress(ProcessLookupError):
            os.kill(current, signal.SIGKILL)
