"""A sweep on Slurm, submitted as arrays of jobs by submitit: https://github.com/facebookincubator/submitit

    status = Cluster(output, options, retries=1).run(units, View(output))

Slurm knows what waits and runs, `<output>/cluster` which runs each job has, and results are in the runs'
folders. So the same command, or another sweep, submits nothing twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from experiments.cluster import slurm
from experiments.cluster.chunk import Chunk
from experiments.cluster.options import ClusterOptions
from experiments.run_folder import ERROR_FILE, FORMAT, ROOT, last_line, read_json, read_result
from experiments.sweeps.job import Job
from experiments.sweeps.queue import STDERR_FILE, Status, kind_of, says_accuracy
from prompted_clip.errors import UserError
from prompted_clip.files import atomic_open

# A job whose time is over is requeued; so often that only one that never gets anywhere is given up.
MAX_TIMEOUTS = 50
# Why jobs wait that are to wait; what else Slurm says may be something to mend, such as PartitionTimeLimit.
ORDINARY = {"", "BeginTime", "Dependency", "JobArrayTaskLimit", "Prolog", "Priority", "Resources"}
SUBMITTED = "_submitted.pkl"  # submitit's, behind the job's id
RUNS_FILE = "runs.json"  # of a submission: the folders of the runs of each of its jobs

Unit = tuple[Job, ...]


class SlurmJob(NamedTuple):
    """A job's id, such as `12_3`, and the folder of its logs."""

    id: str
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / f"{self.id}_0_log.err"

    @property
    def reached_its_end(self) -> bool:
        """Whether its program ended by itself, with or without an error."""
        return (self.folder / f"{self.id}_0_result.pkl").is_file()


class Cluster:
    """Runs units of a sweep on a cluster.

    Args:
        output: the folder of all results, which all nodes see.
        options: what to ask of Slurm.
        retries: further attempts for a run that fails, on its node; and how often runs are submitted again
            whose Slurm job was lost, such as with its node. What was cancelled stays so.
    """

    look_seconds = 10.0  # between two looks
    settle_seconds = 20.0  # after a job's end, until what a node has written is surely seen here

    def __init__(self, output: Path, options: ClusterOptions, retries: int = 0) -> None:
        self.output = output.absolute()
        self.folder = self.output / "cluster"
        self.options = options
        self.retries = retries
        self.last_job: dict[str, SlurmJob] = {}  # by the folder of a run
        self.ended: dict[str, str] = {}  # Slurm's word for how a job ended, by its id
        self.gone_since: dict[str, float] = {}  # by the folder of a unit's first run
        self.submitted_again: Counter[str] = Counter()
        self.printed = set(ORDINARY)
        self._runs_of: dict[Path, list[list[str]]] = {}  # of each job, by the folder of a submission

    def run(self, units: Sequence[Unit], changed: Callable[[Status, str], None]) -> Status:
        """Submits units and watches them; returns how it ended. As `experiments.sweeps.queue.Queue.run`.

        Raises:
            OSError: Slurm does not answer; nothing was submitted.
            ValueError: Slurm refused the jobs.
            KeyboardInterrupt: Ctrl-C; its text says what becomes of the jobs.
        """
        status = Status(list(dict.fromkeys(job for unit in units for job in unit)))
        try:
            jobs = self.submit(units)
            ids = " ".join(sorted({job.id.partition("_")[0] for job in jobs}, key=int))
            changed(status, f"submitted {len(jobs)} Slurm jobs{f': {ids}' if ids else ''}")
            while True:
                for event in self.look(units, status):
                    changed(status, event)
                if len(status.finished) + len(status.failed) == len(status.jobs):
                    return status
                end = time.monotonic() + self.look_seconds
                while time.monotonic() < end:
                    changed(status, "")
                    time.sleep(min(self.look_seconds, 1.0))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.interrupted(status)) from None

    def submit(self, units: Sequence[Unit]) -> list[SlurmJob]:
        """Submits what has no result and neither waits nor runs: what failed or was cancelled before, too.

        Raises:
            OSError: Slurm does not answer; nothing was submitted.
            ValueError: Slurm refused the jobs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"), _ctrl_c_ignored():
            taken, free = set(self._live()), []
            for unit in units:
                todo = tuple(job for job in unit if read_result(self.output / job.folder) is None)
                if todo and taken.isdisjoint(job.folder for job in todo):
                    taken |= {job.folder for job in todo}
                    free.append(todo)
            size = self.options.chunk or self.options.at_once
            chunks = [
                Chunk(tuple(job for unit in free[start : start + size] for job in unit), self.output,
                      self.options, self.retries)
                for start in range(0, len(free), size)
            ]  # fmt: skip
            longest = slurm.largest_array() if len(chunks) > 1 else 1
            return [
                job
                for start in range(0, len(chunks), longest)
                for job in self._submit_array(chunks[start : start + longest])
            ]

    def look(self, units: Sequence[Unit], status: Status) -> Iterator[str]:
        """Brings the status up to date, and submits what has to be again; yields what happened, in words."""
        try:
            live = self._live()  # before the disk: what ends between the two is found finished
        except OSError as error:
            yield from self._once(str(error))
            return
        status.at_once = max(1, sum(state.state in slurm.RUNNING for state in live.values()))
        again = []
        for unit in units:
            todo = [
                job for job in unit if job.folder not in status.finished and job.folder not in status.failed
            ]
            states = [live[job.folder] for job in todo if job.folder in live]
            if states and all(state.state in slurm.PENDING for state in states):
                for job in todo:
                    status.running.pop(job.folder, None)
                yield from self._once(states[0].reason)
                continue
            for job in list(todo):
                if (result := read_result(self.output / job.folder)) is not None:
                    todo.remove(job)
                    yield _finish(job, result, status)
            if todo and states:
                self.gone_since.pop(unit[0].folder, None)
                for job in todo:
                    yield from self._follow(job, status)
            elif todo and todo[0].folder not in self.last_job:  # another sweep had what comes before it
                again.append(unit)
            elif todo and self._has_settled(unit):
                if self._is_lost(todo) and self.submitted_again[unit[0].folder] < self.retries:
                    self.submitted_again[unit[0].folder] += 1
                    again.append(unit)
                else:
                    yield from self._fail(todo, status)
        if again:
            self.submit(again)

    def interrupted(self, status: Status) -> str:
        """What to say after Ctrl-C: jobs in Slurm are left alone. Those of finished runs are about to end."""
        wanted = {job.folder for job in status.jobs} - status.finished - status.failed.keys()
        ids = {self.last_job[folder].id.partition("_")[0] for folder in self._live() if folder in wanted}
        if not ids:
            return "no job is left in Slurm; the same command goes on from here."
        return (
            "the jobs go on in Slurm, and the same command watches them again; to stop them: scancel "
            + " ".join(sorted(ids, key=int))
        )

    def _live(self) -> dict[str, slurm.SlurmState]:
        """The state of the Slurm job that each run waits or runs in, by the run's folder."""
        files = {path.name.removesuffix(SUBMITTED): path for path in self.folder.glob(f"*/*{SUBMITTED}")}
        live = {}
        for id, state in slurm.queued(files).items():
            if id in files and state.live:
                for folder in self._runs(files[id]):
                    live[folder] = state
                    self.last_job[folder] = SlurmJob(id, files[id].parent)
            elif id in files:
                self.ended[id] = state.state
        return live

    def _runs(self, submitted: Path) -> list[str]:
        """The folders of the runs of a Slurm job.

        submitit's pickle has them, too, but would run code of whoever wrote it.
        """
        folder = submitted.parent
        if folder not in self._runs_of:
            try:
                self._runs_of[folder] = [
                    list(map(str, runs)) for runs in read_json(folder / RUNS_FILE)["jobs"]
                ]
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
            ):  # not of this project, or of an earlier version
                self._runs_of[folder] = []
        place = int(submitted.name.removesuffix(SUBMITTED).partition("_")[2] or 0)
        return next(iter(self._runs_of[folder][place : place + 1]), [])

    def _once(self, what: str) -> Iterator[str]:
        if what not in self.printed:
            self.printed.add(what)
            yield f"waiting  {what}"

    def _follow(self, job: Job, status: Status) -> Iterator[str]:
        """A run of a job that runs in Slurm."""
        if not (self.output / job.folder / STDERR_FILE).exists():
            status.running.pop(job.folder, None)
        elif job.folder not in status.running:
            status.running[job.folder] = time.time()
            yield f"started  {job.folder}"

    def _has_settled(self, unit: Unit) -> bool:
        since = self.gone_since.setdefault(unit[0].folder, time.monotonic())
        return time.monotonic() - since >= self.settle_seconds

    def _is_lost(self, todo: Sequence[Job]) -> bool:
        """Whether a Slurm job ended neither by itself nor by `scancel`."""
        job = self.last_job[todo[0].folder]
        state, said = self.ended.get(job.id, ""), slurm.last_words(job.log)
        cancelled = state.startswith("CANCELLED") or ("CANCELLED AT" in said and "DUE TO" not in said)
        return not job.reached_its_end and not cancelled

    def _fail(self, todo: Sequence[Job], status: Status) -> Iterator[str]:
        """Why runs have no result: their error, or how their Slurm job ended."""
        for run in todo:
            job = self.last_job.get(run.folder, self.last_job[todo[0].folder])
            state, said = self.ended.get(job.id, ""), slurm.last_words(job.log)
            reason = last_line(self.output / run.folder / ERROR_FILE) if job.reached_its_end else ""
            if not reason and run.needs in status.failed:
                reason = f"its training failed: {run.needs}"
            elif not reason:
                words = ": ".join(filter(None, [state, said])) or "it left neither a result nor an error"
                reason = f"{words} (see {job.log})"
            status.running.pop(run.folder, None)
            status.failed[run.folder] = reason
            yield f"failed   {run.folder}: {reason}"

    def _submit_array(self, chunks: Sequence[Chunk]) -> list[SlurmJob]:
        import submitit

        folder = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**self.options.parameters())
        content = {"format": FORMAT, "jobs": [[run.folder for run in chunk.jobs] for chunk in chunks]}
        with atomic_open(folder / RUNS_FILE) as file:
            json.dump(content, file)
        try:
            with _submission_environment(), executor.batch():
                submitted = [executor.submit(chunk) for chunk in chunks]
        except submitit.core.utils.FailedJobError as error:
            said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
            hint = " Where there are no GPUs, give --gpus-per-job 0." if "gres" in said else ""
            raise UserError(f"Slurm refused the jobs: {said}.{hint}") from None
        jobs = [SlurmJob(each.job_id, folder) for each in submitted]
        for job, chunk in zip(jobs, chunks, strict=True):
            self.last_job |= {run.folder: job for run in chunk.jobs}
        return jobs


def _finish(job: Job, result: dict, status: Status) -> str:
    status.finished.add(job.folder)
    status.running.pop(job.folder, None)
    seconds = result.get("seconds", {}).get("total", 0.0)
    status.seconds.setdefault(kind_of(job), []).append(seconds)
    return f"finished {job.folder} in {seconds:.0f} s: {says_accuracy(result)}"


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
    """Within, Ctrl-C is ignored: no job shall be in Slurm without its pickle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
