"""The runs of a sweep on this machine: a queue over its GPUs, or over processes on its CPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from experiments.run_folder import ERROR_FILE, IN_USE, ROOT, is_in_use, last_line, read_result
from experiments.sweeps.devices import Devices, Place
from experiments.sweeps.job import Job

STDERR_FILE = ".stderr"  # of the attempt that runs; ERROR_FILE if it fails
POLL = 0.2  # seconds
LOOK_AGAIN = 5.0  # seconds, at runs that another sweep makes
PATIENCE = 20.0  # seconds that runs have to end after Ctrl-C, until they are killed
KILLED = re.compile(r"exitcode\s*: -(\d+)")
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

    def __post_init__(self) -> None:
        self.by_folder = {job.folder: job for job in self.jobs}
        self._kinds = [(job.folder, kind_of(job)) for job in self.jobs]

    def remaining(self) -> float | None:
        """Seconds that are left, from finished runs of the same kind; None if unknown.

        A kind without a finished run counts as the average of those that train, or of those that test.
        """
        expected = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        usual: dict[bool, list[float]] = {}
        for kind, values in self.seconds.items():
            usual.setdefault(kind[-1], []).extend(values)
        averages = {trains: sum(values) / len(values) for trains, values in usual.items()}
        left, now = 0.0, time.time()
        for folder, kind in self._kinds:
            if folder in self.finished or folder in self.failed:
                continue
            each = expected.get(kind, averages.get(kind[-1]))
            if each is None:
                return None
            started = self.running.get(folder)
            left += max(0.0, each - (now - started)) if started else each
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

    A job with a result is never run again, and a failure stops no other job. A run that another sweep works
    on is left to it. Each round reads only files of jobs that could start now, and looks at what waits only
    where a run has ended: a sweep may have thousands.

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
        self.jobs = {job.folder: job for job in jobs}
        self.waiting = dict.fromkeys(self.jobs, 0)  # attempts that failed, by folder
        self.running: list[_Running] = []
        self.looked_at: dict[str, float] = {}  # when a run of another sweep was looked at
        self.looked = 0.0  # when all that waits was
        self.has_changed = True  # since then

    def run(self, changed: Callable[[Status, str], None]) -> Status:
        """Runs everything; returns how it ended.

        Args:
            changed: called with each event in words, and with "" now and then.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM. The runs have ended by then.
        """
        if found := self._finished_before():
            changed(self.status, f"with a result from before: {found} of {len(self.status.jobs)} runs")
        with _terminated_like_interrupted():
            try:
                while self.waiting or self.running:
                    for event in chain(self._collect(), self._start()):
                        self.has_changed = True
                        changed(self.status, event)
                    changed(self.status, "")
                    time.sleep(POLL)
            except BaseException:
                self._stop_all()
                raise
        return self.status

    def _finished_before(self) -> int:
        """Takes out what has a result, and learns from it how long and how large such runs are."""
        for job in self.jobs.values():
            if (result := read_result(self.output / job.folder)) is not None:
                self._finish(job, "")
                self.devices.learn(kind_of(job), result)
                if seconds := result.get("seconds", {}).get("total"):
                    self.status.seconds.setdefault(kind_of(job), []).append(seconds)
        return len(self.status.finished)

    def _collect(self) -> Iterator[str]:
        """Takes note of the processes that have ended."""
        for each in [each for each in self.running if each.process.poll() is not None]:
            code, job = each.process.returncode, each.job
            self.running.remove(each)
            self.devices.free(each.place)
            self.has_changed = True
            took = time.time() - self.status.running.pop(job.folder)
            result = read_result(self.output / job.folder)
            if result is not None and code == 0:
                self.status.seconds.setdefault(kind_of(job), []).append(took)
                self.devices.learn(kind_of(job), result)
                yield self._finish(job, f"in {took:.0f} s: {says_accuracy(result)}")
            elif code == IN_USE:
                self._leave_to_others(job, each.attempt)
            else:
                stderr = self.output / job.folder / STDERR_FILE
                yield self._fail(job, each.attempt, _reason(code, stderr), may_retry=code != USER_ERROR)

    def _start(self) -> Iterator[str]:
        """Starts what there is room for. Looks at what waits only where something has changed."""
        others_may_have_ended = self.status.elsewhere and time.monotonic() - self.looked > LOOK_AGAIN
        if not self.has_changed and not others_may_have_ended:
            return
        self.has_changed = False
        full = set()  # kinds of runs that no device has room for
        for folder, attempt in list(self.waiting.items()):
            job, kind = self.jobs[folder], kind_of(self.jobs[folder])
            if job.needs in self.jobs and job.needs not in self.status.finished:
                if job.needs in self.status.failed:
                    yield self._fail(job, self.retries, f"its training failed: {job.needs}")
                continue
            if kind in full or self._is_left_to_others(folder):
                continue
            if (place := self.devices.take(kind)) is None:
                full.add(kind)
                continue
            event = self._start_in(place, job, attempt)
            if folder not in self.status.running:
                self.devices.free(place)
            if event:
                yield event
        self.looked = time.monotonic()

    def _start_in(self, place: Place, job: Job, attempt: int) -> str:
        """Starts a job, unless another sweep has done so; returns what happened, in words."""
        if read_result(self.output / job.folder) is not None:
            return self._finish(job, "by another sweep")
        if is_in_use(self.output / job.folder):
            self._leave_to_others(job, attempt)
            return ""
        try:
            process = self._launch(job, place)
        except OSError as error:  # a folder that cannot be written, a full disk
            return self._fail(job, attempt, str(error))
        del self.waiting[job.folder]
        self.running.append(_Running(job, process, place, attempt))
        self.status.elsewhere.discard(job.folder)
        self.status.running[job.folder] = time.time()
        return f"started  {job.folder}"

    def _finish(self, job: Job, how: str) -> str:
        self.waiting.pop(job.folder, None)
        for name in (STDERR_FILE, ERROR_FILE):
            with suppress(OSError):
                (self.output / job.folder / name).unlink(missing_ok=True)
        self.status.elsewhere.discard(job.folder)
        self.status.finished.add(job.folder)
        return f"finished {job.folder} {how}"

    def _fail(self, job: Job, attempt: int, reason: str, may_retry: bool = True) -> str:
        folder = self.output / job.folder
        with suppress(OSError):
            if last_line(folder / STDERR_FILE) != reason and folder.is_dir():
                with open(folder / STDERR_FILE, "a", encoding="utf-8") as stderr:
                    stderr.write(f"{reason}\n")
            os.replace(folder / STDERR_FILE, folder / ERROR_FILE)
        self.waiting.pop(job.folder, None)
        self.status.elsewhere.discard(job.folder)
        if attempt < self.retries and may_retry:
            self.waiting = {job.folder: attempt + 1, **self.waiting}
            return f"failed   {job.folder}: {reason} (attempt {attempt + 2} follows)"
        self.status.failed[job.folder] = reason
        return f"failed   {job.folder}: {reason}"

    def _is_left_to_others(self, folder: str) -> bool:
        return time.monotonic() - self.looked_at.get(folder, -LOOK_AGAIN) < LOOK_AGAIN

    def _leave_to_others(self, job: Job, attempt: int) -> None:
        """Puts a run of another sweep at the end; it is looked at again in a few seconds."""
        self.status.elsewhere.add(job.folder)
        self.looked_at[job.folder] = time.monotonic()
        self.waiting.pop(job.folder, None)
        self.waiting[job.folder] = attempt

    def _launch(self, job: Job, place: Place) -> subprocess.Popen:
        folder = self.output / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        command = job.command(self.python, self.output)
        environment = {**os.environ, **place.environment}
        if self.shown:
            return subprocess.Popen(command, cwd=ROOT, env=environment)
        environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # as the file is read
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
        """Lets the runs end, which a terminal has told of Ctrl-C already; interrupts, then kills the rest."""
        for stop, seconds in ((_leave_alone, 2.0), (_interrupt, PATIENCE), (subprocess.Popen.kill, PATIENCE)):
            alive = [each.process for each in self.running if each.process.poll() is None]
            for process in alive:
                stop(process)
            deadline = time.monotonic() + seconds
            for process in alive:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        for each in self.running:
            with suppress(OSError):
                (self.output / each.job.folder / STDERR_FILE).unlink(missing_ok=True)


def _leave_alone(process: subprocess.Popen) -> None:
    pass


def _interrupt(process: subprocess.Popen) -> None:
    """Sends Ctrl-C; SIGTERM where that is ignored, as by a sweep in the background of a shell script."""
    if os.name == "nt" or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        process.terminate()
    else:
        process.send_signal(signal.SIGINT)


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


def says_accuracy(result: Mapping) -> str:
    accuracy = result["results"].get("accuracy")
    return "done" if accuracy is None else f"accuracy {accuracy:.2f} %"


def _reason(code: int, stderr: Path) -> str:
    """Why a run has no result: the signal that killed it, else the last line that it printed to stderr."""
    number = -code if code < 0 else code - 128  # a shell's exit code of a killed command
    if code > 0 and not 0 < number < signal.NSIG:
        killed = KILLED.search(_text(stderr)) if code == 1 else None  # by torchrun, of one of its processes
        if killed is None:
            return last_line(stderr) or f"exit code {code}"
        number = int(killed[1])
    if code == 0:
        return "ended without a result"
    name = signal.Signals(number).name
    return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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
