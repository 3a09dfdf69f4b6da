"""The status of a sweep on a cluster, for the view that sweeps on one machine have."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.cluster.states import UnitState, UnitStates
from experiments.jobs import Job, read_result
from experiments.sweeps.queue import Status, kind_of

# Why jobs wait that are to wait; what else Slurm says may be something to mend, such as PartitionTimeLimit.
ORDINARY = {"", "BeginTime", "Dependency", "JobArrayTaskLimit", "Prolog", "Priority", "Resources"}


class ClusterStatus(Status):
    """A queue's `Status` from the states of units.

    Args:
        output: the folder of all results.
    """

    def __init__(self, output: Path, units: Sequence[tuple[Job, ...]], unit_states: UnitStates) -> None:
        super().__init__([job for unit in units for job in unit])
        self.output = output
        self.units = {unit[0].folder: unit for unit in units}
        self.unit_states = unit_states
        self.told = set(ORDINARY)
        self.finished = {job.folder for job in self.jobs if unit_states.are_finished([job.folder])}

    def update(self, states: Mapping[str, UnitState]) -> Iterator[str]:
        """Takes the states of the units over; yields the changes in words."""
        self.at_once = max(1, sum(state.state == "running" for state in states.values()))
        for name, unit in self.units.items():
            state = states[name]
            if state.state in ("pending", "unknown") and state.detail not in self.told:
                self.told.add(state.detail)
                yield f"waiting  {name}: {state.detail}"
            open_jobs = []
            for job in unit:
                if job.folder in self.finished:
                    continue
                if self.unit_states.are_finished([job.folder]):
                    yield self._finish(job)
                else:
                    open_jobs.append(job)
            for position, job in enumerate(open_jobs):
                yield from self._take(job, state, first=open_jobs[0] if position else None)

    def _finish(self, job: Job) -> str:
        self.finished.add(job.folder)
        self.failed.pop(job.folder, None)
        result = read_result(self.output / job.folder) or {}
        start = self.running.pop(job.folder, None)
        if start is not None:
            seconds = time.time() - start
        else:  # begun and ended between two looks
            seconds = result.get("seconds", {}).get("total", 0.0)
        self.seconds.setdefault(kind_of(job), []).append(seconds)
        accuracy = result.get("results", {}).get("accuracy")
        found = "done" if accuracy is None else f"accuracy {accuracy:.2f} %"
        return f"finished {job.folder} in {seconds:.0f} s: {found}"

    def _take(self, job: Job, state: UnitState, first: Job | None) -> Iterator[str]:
        """The state of a job without a result; `first` comes before it in its unit, and has none either."""
        folder = job.folder
        if state.state == "running" and first is None:
            if folder not in self.running:
                self.running[folder] = time.time()
                yield f"started  {folder}"
        else:
            self.running.pop(folder, None)
        if state.state not in ("failed", "lost"):
            self.failed.pop(folder, None)
        elif folder not in self.failed:
            self.failed[folder] = (
                f"not run, since {first.folder} failed" if first else f"{state.detail} (see {state.log})"
            )
            yield f"failed   {folder}: {self.failed[folder]}"
