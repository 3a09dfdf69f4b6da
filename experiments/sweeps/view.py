"""How a sweep stands: a live table on a terminal, a line for each change elsewhere."""

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

from experiments.sweeps.queue import Status, jobs_by_state

SHOWN_RUNNING = 12
REFRESH = 1.0  # seconds
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
                self.live.update(Text(""), refresh=True)
                self.live = None

    def __call__(self, status: Status, event: str) -> None:
        if event and not (event.startswith("started") and self.live):
            self.console.print(
                f"[{self._done(status)}] {event}{self._left(status)}", markup=False, highlight=False
            )
        if self.live and (event or time.time() - self.drawn > REFRESH):
            self.drawn = time.time()
            self.live.update(self._table(status), refresh=True)

    def _done(self, status: Status) -> str:
        counts = jobs_by_state(status)
        return f"{counts['finished'] + counts['failed']}/{len(status.jobs)}"

    def _left(self, status: Status) -> str:
        remaining = status.remaining()
        if self.live or not remaining:
            return ""
        return f"; {in_words(remaining)} left"

    def _table(self, status: Status) -> Group:
        counts = jobs_by_state(status)
        remaining = status.remaining()
        numbers = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        left = f", {in_words(remaining)} left" if remaining is not None else ""
        head = Text(f"{numbers}; {in_words(time.time() - self.start)} gone{left}")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(len(status.jobs), counts["finished"] + counts["failed"], width=24), head)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for folder, since in list(status.running.items())[:SHOWN_RUNNING]:
            table.add_row(folder, in_words(time.time() - since), progress_of(self.output / folder))
        for folder in sorted(status.elsewhere)[: SHOWN_RUNNING // 2]:
            table.add_row(folder, "", "another sweep is at it")
        return Group(bar, table)


def progress_of(folder: Path) -> str:
    """What the newest log of a run tells of its progress: "epoch [2/5] batch [40/96], 0:00:12 left"."""
    logs = sorted(folder.glob("log.txt*"), key=lambda log: log.stat().st_mtime)
    if not logs:
        return ""
    with open(logs[-1], "rb") as file:
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
