"""How the units of a sweep fare on a cluster: from results on disk, Slurm's queue, processes, and logs."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.cluster import slurm
from experiments.cluster.processes import started
from experiments.cluster.submissions import Submission
from experiments.jobs import read_result

if TYPE_CHECKING:
    from experiments.jobs import Job

RAISED = "RAISED"  # the unit itself failed: what it said is in submitit's answer
LOST = "LOST"
ENDED_BY_SLURM = re.compile(r"CANCELLED AT \S+(?: DUE TO ([A-Z ]+?))? \*\*\*")
IN_SLURMS_WORDS = {
    "": "CANCELLED",
    "TIME LIMIT": "TIMEOUT",
    "NODE FAILURE": "NODE_FAIL",
    "PREEMPTION": "PREEMPTED",
}


class UnitState(NamedTuple):
    """How a unit fares.

    Attributes:
        state: pending, running, done, failed, lost (it ended, and neither Slurm nor a log tells why), or
            unknown (Slurm does not answer).
        job: its id on the cluster; "" before it is submitted.
        detail: the last line of its error, or what it waits for.
        log: the file to look into.
    """

    state: str
    job: str = ""
    detail: str = ""
    log: Path | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "lost")

    @property
    def live(self) -> bool:
        """Whether it is on the cluster now, as far as is known."""
        return bool(self.job) and not self.ended

    @property
    def waits_here(self) -> bool:
        """Whether it has to be submitted."""
        return self.state == "pending" and not self.job


class UnitStates:
    """Finds out states.

    A unit is done when each of its jobs has a result: that alone decides, so that nothing depends on Slurm's
    accounting.

    Args:
        output: the folder of all results.
    """

    # A result that a node has written may be seen here seconds after Slurm says that its job is complete.
    settle_seconds = 20.0

    def __init__(self, output: Path) -> None:
        self.output = output
        self._finished: set[str] = set()
        self._first_missed: dict[tuple[str, str], float] = {}

    def find(
        self, units: Mapping[str, Sequence[Job]], submissions: Mapping[str, Submission]
    ) -> dict[str, UnitState]:
        """The states by the units' names. Of what has ended without results, `submissions` keep why."""
        there = [submissions[name] for name in units if name in submissions and not submissions[name].ended]
        # First the cluster, then the disk: what ends between the two is found done.
        in_slurm, problem = _in_slurm(each.job for each in there if each.cluster == "slurm")
        processes = started(int(each.job) for each in there if each.cluster == "local")
        states = {}
        for name, unit in units.items():
            submission = submissions.get(name)
            if self.are_finished(job.folder for job in unit):
                states[name] = UnitState("done", submission.job if submission else "")
            elif submission is None or self.are_finished(submission.folders):
                states[name] = UnitState("pending")  # never submitted, or by a sweep that wanted less of it
            elif submission.ended:
                states[name] = self._told(submission)
            elif submission.cluster == "local":
                states[name] = self._local(submission, processes)
            elif problem:
                states[name] = self._state("unknown", submission, problem)
            else:
                states[name] = self._slurm(submission, in_slurm.get(submission.job, slurm.SlurmState("")))
        return states

    def are_finished(self, folders: Iterable[str]) -> bool:
        """Whether each of these runs has a result."""
        for folder in folders:
            if folder not in self._finished:
                if read_result(self.output / folder) is None:
                    return False
                self._finished.add(folder)
        return True

    def _slurm(self, submission: Submission, found: slurm.SlurmState) -> UnitState:
        if found.state in slurm.PENDING:
            return self._state("pending", submission, found.reason)
        if found.state in slurm.RUNNING:
            return self._state("running", submission)
        return self._ended(submission, found.state)

    def _local(self, submission: Submission, processes: Mapping[int, str]) -> UnitState:
        if submission.host != socket.gethostname():
            return self._state(
                "unknown",
                submission,
                f"Process {submission.job} was started on {submission.host}, and can be seen only there. "
                "If that machine is gone, delete cluster/jobs.json in the output folder.",
            )
        if submission.started and processes.get(int(submission.job)) == submission.started:
            return self._state("running", submission)
        return self._ended(submission, "")

    def _ended(self, submission: Submission, state: str) -> UnitState:
        """It ended, and left no results as far as can be seen."""
        raised = self._raised(submission) if state in ("", "COMPLETED", "FAILED") else ""
        first = self._first_missed.setdefault((submission.logs, submission.job), time.monotonic())
        if not raised and state in ("", "COMPLETED") and time.monotonic() - first < self.settle_seconds:
            return self._state("running", submission)
        if raised:
            submission.ended, submission.error = RAISED, raised
        else:
            lines = _last_lines(self.log(submission))
            telling = next((line for line in reversed(lines) if _told_by(line)), "")
            submission.ended = state or _told_by(telling) or LOST
            submission.error = telling or (lines[-1] if lines else "")
        return self._told(submission)

    def _told(self, submission: Submission) -> UnitState:
        """What `submissions` keep of one that ended without results."""
        if submission.ended == LOST and not submission.error:
            return self._state("lost", submission, "It ended and left neither a result nor an error.")
        detail = submission.error
        if submission.ended not in (RAISED, LOST):
            detail = f"{submission.ended}: {submission.error}" if submission.error else submission.ended
        return self._state("failed", submission, detail)

    def _state(self, state: str, submission: Submission, detail: str = "") -> UnitState:
        return UnitState(state, submission.job, detail, self.log(submission))

    def _raised(self, submission: Submission) -> str:
        """The last line of what the unit raised, as submitit keeps it; "" if it did not."""
        from submitit.core.utils import JobPaths, pickle_load

        try:
            outcome, trace = pickle_load(
                JobPaths(self.output / submission.logs, submission.job).result_pickle
            )
        except (OSError, EOFError):
            return ""
        return slurm.last_line(trace).removeprefix("RuntimeError: ") if outcome == "error" else ""

    def log(self, submission: Submission) -> Path:
        """Where a submission's errors are printed to."""
        from submitit.core.utils import JobPaths

        return JobPaths(self.output / submission.logs, submission.job).stderr


def _in_slurm(jobs: Iterable[str]) -> tuple[dict[str, slurm.SlurmState], str]:
    """The states by id, and why they cannot be told."""
    wanted = list(jobs)
    try:
        found = slurm.queued(wanted)
    except OSError as error:
        return {}, str(error)
    return found | slurm.accounted(job for job in wanted if job not in found), ""


def _told_by(line: str) -> str:
    """Why Slurm ended a job, in its word for the state, if a line of the log says so."""
    if found := ENDED_BY_SLURM.search(line):
        return IN_SLURMS_WORDS.get(found[1] or "", "")
    return "OUT_OF_MEMORY" if "oom" in line and "kill" in line else ""


def _last_lines(file: Path, count: int = 8, most_bytes: int = 20_000) -> list[str]:
    try:
        with file.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - most_bytes, 0))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
