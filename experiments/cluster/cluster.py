"""A sweep on a cluster, by submitit: on Slurm as arrays of jobs, or in processes of this machine.

    cluster = Cluster(output, options, retries=1)
    status = cluster.run(units, View(output))

What was submitted is kept in `<output>/cluster/jobs.json`: the same command, or another sweep over the same
folder, finds what waits or runs already and does not submit it twice. https://github.com/facebookincubator/submitit
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.cluster import slurm
from experiments.cluster.node import UnitOnNode
from experiments.cluster.options import ClusterOptions
from experiments.cluster.processes import kill_with_children, started
from experiments.cluster.states import RAISED, UnitState, UnitStates
from experiments.cluster.submissions import Submission, Submissions
from experiments.jobs import ROOT, Job

if TYPE_CHECKING:
    from experiments.sweeps.queue import Status

# A job whose time is over is requeued; so often that only one that never gets anywhere is given up.
MAX_TIMEOUTS = 50

Unit = tuple[Job, ...]


class Progress(NamedTuple):
    """How many units are in which state, and the states by the units' names."""

    counts: dict[str, int]
    units: dict[str, UnitState]


class Cluster:
    """Units of a sweep, on a cluster.

    A unit is a tuple of jobs that run one after the other; it is called by the folder of its first.

    Args:
        output: the folder of all results, which all nodes see.
        options: what to ask of the cluster.
        retries: further attempts for a run that fails, on its node; and how often a unit is submitted again
            that ended by the cluster's doing, such as a node that failed. What was cancelled stays so.
    """

    def __init__(self, output: Path, options: ClusterOptions, retries: int = 0) -> None:
        self.output = output.absolute()
        self.options = options
        self.retries = retries
        self.units: dict[str, Unit] = {}
        self.submissions = Submissions(self.output / "cluster")
        self.unit_states = UnitStates(self.output)
        self.seconds = 10.0 if options.cluster == "slurm" else 1.0  # between two looks
        self._local_jobs: list[Any] = []  # submitit's; each holds a process of ours

    def submit(self, units: Sequence[Unit]) -> list[str]:
        """Submits what has no results and neither waits nor runs; adds `units` to those watched.

        What failed, was lost or was cancelled is submitted again. Of local processes, no more are started
        than may run at the same time; `watch` starts the others.

        Returns:
            The names of the units that were submitted.

        Raises:
            OSError: the cluster does not say what still runs; nothing was submitted.
            ValueError: the cluster refused the jobs.
        """
        self.units.update({unit[0].folder: unit for unit in units})
        with self.submissions.changing() as submissions:
            states = self._find(submissions)
            if unsure := [state for state in states.values() if state.state == "unknown"]:
                raise OSError(f"{unsure[0].detail} Nothing was submitted: {len(unsure)} jobs may still run.")
            again = {name for name, state in states.items() if state.state in ("failed", "lost")}
            for name in again:
                del submissions[name]
            return self._submit_waiting(submissions, states, again)

    def states(self) -> dict[str, UnitState]:
        """The state of each unit, by its name."""
        with self.submissions.changing() as submissions:
            return self._find(submissions)

    def watch(self) -> Iterator[Progress]:
        """Yields the states every `seconds` until all units have ended; submits again as `retries` say."""
        while True:
            progress = self._look()
            yield progress
            if all(state.ended for state in progress.units.values()):
                return
            time.sleep(self.seconds)

    def run(self, units: Sequence[Unit], changed: Callable[[Status, str], None]) -> Status:
        """Submits units and watches them; returns how it ended. As `experiments.sweeps.queue.Queue.run`.

        Args:
            changed: called with each change in words, and with "" every second.

        Raises:
            OSError, ValueError: as `submit`.
            KeyboardInterrupt: Ctrl-C; its text says what becomes of the jobs.
        """
        from experiments.cluster.status import ClusterStatus

        status = ClusterStatus(self.output, units, self.unit_states)
        try:
            submitted = self.submit(units)
            ids = self._ids(submitted)
            as_jobs = f", as jobs {' '.join(ids)}" if self.options.cluster == "slurm" and ids else ""
            changed(status, f"submitted {len(submitted)} of {len(self.units)} units{as_jobs}")
            while True:
                progress = self._look()
                for event in status.update(progress.units):
                    changed(status, event)
                if all(state.ended for state in progress.units.values()):
                    return status
                end = time.monotonic() + self.seconds
                while time.monotonic() < end:
                    changed(status, "")
                    time.sleep(min(self.seconds, 1.0))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.interrupted()) from None

    def cancel(self) -> list[str]:
        """Ends the units that wait or run.

        Returns:
            Their names.

        Raises:
            OSError: Slurm does not answer.
        """
        with self.submissions.changing() as submissions:
            states = self._find(submissions)
            live = {name: submissions[name] for name, state in states.items() if state.live}
            slurm.cancel(each.job for each in live.values() if each.cluster == "slurm")
            for each in live.values():
                if each.cluster == "local" and each.host == socket.gethostname():
                    kill_with_children(int(each.job))
                    each.ended, each.error = "CANCELLED", "stopped"
        for job in self._local_jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job._process.wait(10)
        return list(live)

    def interrupted(self) -> str:
        """What to say after Ctrl-C. Jobs in Slurm are left alone; local processes are stopped."""
        if self.options.cluster == "local":
            return f"local jobs that were stopped: {len(self.cancel())}; the same command goes on from here."
        jobs = " ".join(self._ids([name for name, state in self.states().items() if state.live]))
        if not jobs:
            return "no job is left in Slurm; the same command goes on from here."
        return (
            f"the jobs go on in Slurm, and the same command watches them again; to stop them: scancel {jobs}"
        )

    def _ids(self, names: Sequence[str]) -> list[str]:
        """What to call these units' jobs to Slurm: whole arrays."""
        submissions = self.submissions.read()
        return sorted({submissions[name].job.partition("_")[0] for name in names}, key=int)

    def _find(self, submissions: Mapping[str, Submission]) -> dict[str, UnitState]:
        for job in self._local_jobs:
            job.done()  # takes note of the end of our own processes, which stay listed until then
        return self.unit_states.find(self.units, submissions)

    def _look(self) -> Progress:
        """The states, after submitting what has to be."""
        with self.submissions.changing() as submissions:
            states = self._find(submissions)
            again = {name for name in states if self._may_try_again(states[name], submissions.get(name))}
            if self._submit_waiting(submissions, states, again):
                states = self._find(submissions)
        return Progress(dict(Counter(state.state for state in states.values())), states)

    def _may_try_again(self, state: UnitState, submission: Submission | None) -> bool:
        if submission is None or state.state not in ("failed", "lost"):
            return False
        return submission.ended not in (RAISED, "CANCELLED") and submission.attempt <= self.retries

    def _submit_waiting(
        self, submissions: dict[str, Submission], states: Mapping[str, UnitState], again: set[str]
    ) -> list[str]:
        names = [name for name, state in states.items() if name in again or state.waits_here]
        size = len(names)
        if self.options.cluster == "local":
            running = sum(state.live for state in states.values())
            names = names[: max((self.options.array_parallelism or 1) - running, 0)]
        elif len(names) > 1:
            size = slurm.largest_array()
        with _ctrl_c_ignored():
            for start in range(0, len(names), max(size, 1)):
                self._submit_array(submissions, names[start : start + size])
        return names

    def _submit_array(self, submissions: dict[str, Submission], names: Sequence[str]) -> None:
        import submitit

        local = self.options.cluster == "local"
        logs = Path("cluster") / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        executor = submitit.AutoExecutor(
            folder=self.output / logs, cluster=self.options.cluster, slurm_max_num_timeout=MAX_TIMEOUTS
        )
        executor.update_parameters(**self.options.parameters())
        works = [UnitOnNode(self.units[name], self.output, self.retries) for name in names]
        try:
            with _submission_environment(), executor.batch():
                jobs = [executor.submit(work) for work in works]
        except submitit.core.utils.FailedJobError as error:
            said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
            hint = " Where there are no GPUs, give --gpus-per-job 0." if "gres" in said else ""
            raise ValueError(f"Slurm refused the jobs: {said}.{hint}") from None
        host, start = "", {}
        if local:
            self._local_jobs += jobs
            host, start = socket.gethostname(), started(int(job.job_id) for job in jobs)
        for name, job in zip(names, jobs, strict=True):
            before = submissions.get(name)
            submissions[name] = Submission(
                cluster=self.options.cluster,
                job=job.job_id,
                logs=logs.as_posix(),
                folders=[part.folder for part in self.units[name]],
                attempt=before.attempt + 1 if before and before.ended else 1,
                host=host,
                started=start.get(int(job.job_id), "") if local else "",
            )


@contextlib.contextmanager
def _submission_environment() -> Iterator[None]:
    """A job may be submitted from within another, whose size and limits it shall not inherit."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF":
            del os.environ[name]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")]))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Nothing is submitted without being noted. What is started meanwhile does not hear Ctrl-C either: local
    processes are stopped in order by `Cluster.interrupted`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
