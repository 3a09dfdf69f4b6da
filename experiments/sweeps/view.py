"""How a sweep stands: a live table on a terminal; elsewhere a line for each event, and for progress."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.sweeps.job import Job
from experiments.sweeps.queue import Status, jobs_by_state

SHOWN_RUNNING = 12
REFRESH = 2.0  # seconds
HEARTBEAT = 15.0  # seconds between lines on the progress of runs, where there is no terminal
TAIL = 4096  # bytes of a log that are looked at for its progress
PROGRESS = re.compile(r"^epoch \[\d+/\d+\] batch \[\d+/\d+\]|^Evaluate on|^Loading CLIP|^Building")
ETA = re.compile(r"eta (\S+)")


class View:
    """Shows a sweep's status. Call it with each change in words, or with "" now and then."""

    def __init__(self, output: Path, console: Console | None = None) -> None:
        self.output = output
        self.console = console or Console(soft_wrap=True)
        self.start = time.time()
        self.live: Live | None = None
        self.drawn = 0.0
        self.printed = time.time()
        self.last_printed = ""
        self.told: list[str] = []  # events; a terminal shows those of REFRESH seconds at once

    @contextmanager
    def shown(self) -> Iterator[View]:
        """Within, a terminal has the live table."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(console=self.console, auto_refresh=False) as self.live:
            try:
                yield self
            finally:
                self._tell()
                self.live.update(Text(""), refresh=True)
                self.live = None

    def __call__(self, status: Status, event: str) -> None:
        if event and not (event.startswith("started") and self.live):
            self.told.append(f"[{self._done(status)}] {event}{self._left(status)}")
        if not self.live:
            self._tell()
            if time.time() - self.printed > HEARTBEAT:
                self._print_progress(status)
        elif time.time() - self.drawn > REFRESH:
            self._tell()
            self.drawn = time.time()
            self.live.update(self._table(status), refresh=True)

    def _tell(self) -> None:
        """Prints the events that were not printed yet."""
        if self.told:
            self.console.print("\n".join(self.told), markup=False, highlight=False)
            self.told.clear()
            self.printed = time.time()

    def _print_progress(self, status: Status) -> None:
        """Prints a line on each running run, if there is news."""
        self.printed = time.time()
        rows = [f"{name}: {what}" for name, _, what in self._running(status) if what]
        text = "\n".join(f"[{self._done(status)}] running  {row}" for row in rows)
        if text and text != self.last_printed:
            self.console.print(text, markup=False, highlight=False)
        self.last_printed = text

    def _running(self, status: Status) -> Iterator[tuple[str, str, str]]:
        """The name of each running run, how long it takes already, and how far it is."""
        for folder, since in list(status.running.items())[:SHOWN_RUNNING]:
            elapsed = in_words(time.time() - since)
            yield name_of(status.by_folder[folder]), elapsed, progress_of(self.output / folder, since)
        for folder in sorted(status.elsewhere)[: SHOWN_RUNNING // 2]:
            yield name_of(status.by_folder[folder]), "", "another sweep runs it"

    def _done(self, status: Status) -> str:
        counts = jobs_by_state(status)
        return f"{counts['finished'] + counts['failed']}/{len(status.jobs)}"

    def _left(self, status: Status) -> str:
        remaining = None if self.live else status.remaining()
        return f"; {in_words(remaining)} left" if remaining else ""

    def _table(self, status: Status) -> Group:
        counts = jobs_by_state(status)
        remaining = status.remaining()
        numbers = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        left = f", {in_words(remaining)} left" if remaining is not None else ""
        head = Text(f"{numbers}; {in_words(time.time() - self.start)} elapsed{left}")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(len(status.jobs), counts["finished"] + counts["failed"], width=24), head)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for row in self._running(status):
            table.add_row(*row)
        return Group(bar, table)


def name_of(job: Job) -> str:
    """A name that only this run has: "MaPLe, shapes, base, 16 shots, seed 1"."""
    planned = job.planned
    words = [planned.method, planned.curve, "" if planned.value is None else f"{planned.value:g}"]
    words += [planned.dataset, planned.classes, f"{planned.shots} shots", f"seed {planned.seed}"]
    return ", ".join(word for word in words if word)


def progress_of(folder: Path, since: float = 0.0) -> str:
    """What the newest log of a run says of its progress: "epoch [2/5] batch [40/96], 0:00:12 left".

    Args:
        since: when the run was started; older logs are of earlier attempts.
    """
    logs = {log: log.stat().st_mtime for log in folder.glob("log.txt*")}
    newest = max(logs, key=lambda log: logs[log], default=None)
    if newest is None or logs[newest] < since:
        return ""
    with open(newest, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        tail = file.read().decode("utf-8", errors="replace")
    lines = [line for line in tail.splitlines() if PROGRESS.match(line)]
    if not lines:
        return ""
    eta = ETA.search(lines[-1])
    what = lines[-1].partition(" time ")[0]
    return f"{what}, {eta[1]} left" if eta else what


def in_words(seconds: float) -> str:
    """A duration: "0:02:05"."""
    return str(datetime.timedelta(seconds=round(seconds)))
