"""The runs of a sweep on this machine: a queue over its GPUs, or over processes on its CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from experiments.jobs import (
    ERROR_FILE,
    IN_USE,
    ROOT,
    Job,
    is_in_use,
    last_line,
    read_result,
)
from experiments.sweeps.devices import Devices, Place

STDERR_FILE = ".stderr"  # of the attempt that runs; ERROR_FILE if it fails
POLL = 0.2  # seconds
LOOK_AGAIN = 5.0  # seconds, at runs that another sweep makes
PATIENCE = 20.0  # seconds that runs have to end after Ctrl-C, until they are killed
USER_ERROR = 2  # exit code of train.py: another attempt would say the same


@dataclass
class Status:
    """How a sweep stands, for its view.

    Attributes:
        running: since when, in seconds of the system's clock, by folder.
        failed: the last line of the error, by folder.
        seconds: that the finished runs of this sweep took, by what they are.
        elsewhere: folders that another sweep is at.
    """

    jobs: Sequence[Job]
    finished: set[str] = field(default_factory=set)
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[tuple, list[float]] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    at_once: int = 1

    def remaining(self) -> float | None:
        """Seconds that are left, from the runs that are finished; None until there is one."""
        known = [value for values in self.seconds.values() for value in values]
        if not known:
            return None
        average = sum(known) / len(known)
        left = 0.0
        for job in self.jobs:
            if job.folder in self.finished or job.folder in self.failed:
                continue
            values = self.seconds.get(kind_of(job))
            expected = sum(values) / len(values) if values else average
            started = self.running.get(job.folder)
            left += max(0.0, expected - (time.time() - started)) if started else expected
        return left / self.at_once


def kind_of(job: Job) -> tuple:
    """What runs take about the same time."""
    planned = job.planned
    return planned.method, planned.dataset, planned.shots, planned.trains


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    place: Place
    attempt: int


class Queue:
    """Runs jobs, each as a process of its own, as many at once as the devices allow.

    A job has a result, or it has none: what is finished is never run again, and what fails stops no other. A
    run that another sweep is at is left to it.

    Args:
        retries: further attempts for a job that fails.
        python: the interpreter.
        shown: whether the runs print to this terminal.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        output: Path,
        devices: Devices,
        retries: int = 0,
        python: str = sys.executable,
        shown: bool = False,
    ) -> None:
        self.output = output
        self.devices = devices
        self.retries = retries
        self.python = python
        self.shown = shown
        self.status = Status(jobs, at_once=devices.most)
        self.waiting: list[tuple[Job, int]] = [(job, 0) for job in jobs]
        self.running: list[_Running] = []
        self.looked_at: dict[str, float] = {}  # when a run of another sweep was looked at

    def run(self, changed: Callable[[Status, str], None]) -> Status:
        """Runs everything; returns how it ended.

        Args:
            changed: called with each change in words, and with "" now and then.

        Raises:
            KeyboardInterrupt: Ctrl-C, or the system's wish that this ends. The runs have ended by then.
        """
        if found := self._finished_before():
            changed(self.status, f"with a result from before: {found} of {len(self.status.jobs)} runs")
        with _terminated_like_interrupted():
            try:
                while self.waiting or self.running:
                    for event in [*self._collect(), *self._start()]:
                        changed(self.status, event)
                    changed(self.status, "")
                    time.sleep(POLL)
            except BaseException:
                self._stop_all()
                raise
        return self.status

    def _finished_before(self) -> int:
        """Takes out what has a result, and learns from it how long and how large such runs are."""
        for job, attempt in list(self.waiting):
            if (result := read_result(self.output / job.folder)) is not None:
                self.waiting.remove((job, attempt))
                self._finish(job, self.output / job.folder / STDERR_FILE, "")
                self.devices.learn(kind_of(job), result)
                if seconds := result.get("seconds", {}).get("total"):
                    self.status.seconds.setdefault(kind_of(job), []).append(seconds)
        return len(self.status.finished)

    def _collect(self) -> Iterator[str]:
        for each in list(self.running):
            code = each.process.poll()
            if code is None:
                continue
            self.running.remove(each)
            self.devices.free(each.place)
            job = each.job
            took = time.time() - self.status.running.pop(job.folder)
            stderr = self.output / job.folder / STDERR_FILE
            result = read_result(self.output / job.folder)
            if result is not None and code == 0:
                self.status.seconds.setdefault(kind_of(job), []).append(took)
                self.devices.learn(kind_of(job), result)
                yield self._finish(job, stderr, f"in {took:.0f} s: {_accuracy(result)}")
            elif code == IN_USE:
                stderr.unlink(missing_ok=True)
                self._leave_to_others(job, each.attempt)
            else:
                yield self._fail(each, code, stderr)

    def _finish(self, job: Job, stderr: Path, how: str) -> str:
        stderr.unlink(missing_ok=True)
        (self.output / job.folder / ERROR_FILE).unlink(missing_ok=True)
        self.status.finished.add(job.folder)
        return f"finished {job.folder} {how}"

    def _fail(self, each: _Running, code: int, stderr: Path) -> str:
        job = each.job
        reason = last_line(stderr) or _in_words(code)
        if not last_line(stderr) and stderr.parent.is_dir():
            stderr.write_text(f"{reason}\n", encoding="utf-8")
        with suppress(FileNotFoundError):
            os.replace(stderr, stderr.parent / ERROR_FILE)
        if each.attempt < self.retries and code != USER_ERROR:
            self.waiting.insert(0, (job, each.attempt + 1))
            return f"failed   {job.folder}: {reason} (attempt {each.attempt + 2} follows)"
        self.status.failed[job.folder] = reason
        return f"failed   {job.folder}: {reason}"

    def _start(self) -> Iterator[str]:
        for job, attempt in list(self.waiting):
            folder = self.output / job.folder
            if read_result(folder) is not None:
                self.waiting.remove((job, attempt))
                self.status.elsewhere.discard(job.folder)
                yield self._finish(job, folder / STDERR_FILE, "by another sweep")
            elif job.needs and job.needs not in self.status.finished and self._is_ours(job.needs):
                if job.needs in self.status.failed:
                    self.waiting.remove((job, attempt))
                    self.status.failed[job.folder] = f"its training failed: {job.needs}"
                    yield f"failed   {job.folder}: its training failed"
            elif self._is_elsewhere(job):
                continue
            else:
                if (place := self.devices.take(kind_of(job))) is None:
                    continue
                self.running.append(_Running(job, self._launch(job, place), place, attempt))
                self.waiting.remove((job, attempt))
                self.status.running[job.folder] = time.time()
                yield f"started  {job.folder}"

    def _is_ours(self, folder: str) -> bool:
        return any(job.folder == folder for job in self.status.jobs)

    def _is_elsewhere(self, job: Job) -> bool:
        """Whether another sweep is at a run; looked up now and then."""
        last = self.looked_at.get(job.folder, 0.0)
        if time.monotonic() - last < LOOK_AGAIN and job.folder in self.looked_at:
            return job.folder in self.status.elsewhere
        self.looked_at[job.folder] = time.monotonic()
        if is_in_use(self.output / job.folder):
            self.status.elsewhere.add(job.folder)
            return True
        self.status.elsewhere.discard(job.folder)
        return False

    def _leave_to_others(self, job: Job, attempt: int) -> None:
        self.status.elsewhere.add(job.folder)
        self.looked_at[job.folder] = time.monotonic()
        self.waiting.append((job, attempt))

    def _launch(self, job: Job, place: Place) -> subprocess.Popen:
        folder = self.output / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        command = job.command(self.python, self.output)
        environment = {**os.environ, **place.environment}
        if self.shown:
            return subprocess.Popen(command, cwd=ROOT, env=environment)
        with open(folder / STDERR_FILE, "w", encoding="utf-8") as stderr:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    def _stop_all(self) -> None:
        """Lets the runs end, which a terminal has told of Ctrl-C already; then makes them."""
        for send, seconds in ((0, 2.0), (signal.SIGINT, PATIENCE), (signal.SIGKILL, PATIENCE)):
            alive = [each.process for each in self.running if each.process.poll() is None]
            for process in alive:
                process.send_signal(send)  # 0 is no signal
            deadline = time.monotonic() + seconds
            for process in alive:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        for each in self.running:
            (self.output / each.job.folder / STDERR_FILE).unlink(missing_ok=True)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within, SIGTERM, as schedulers send it, is like Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _accuracy(result: Mapping) -> str:
    accuracy = result["results"].get("accuracy")
    return "done" if accuracy is None else f"accuracy {accuracy:.2f} %"


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code else "ended without a result"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


def jobs_by_state(status: Status) -> Counter:
    """How many jobs are finished, running, failed, elsewhere, and waiting."""
    counts = Counter(
        finished=len(status.finished),
        running=len(status.running),
        failed=len(status.failed),
        elsewhere=len(status.elsewhere),
    )
    counts["waiting"] = len(status.jobs) - counts.total()
    return counts
