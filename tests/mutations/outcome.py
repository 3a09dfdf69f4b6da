"""What becomes of a mutated input: it is taken, or refused in one line; anything else is a fault."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prompted_clip.console import MOST, explain

from .nonsense import Nonsense

SECONDS = 20  # a case that takes longer hangs
FINE = ("taken", "refused")


class Outcome(NamedTuple):
    """One of: taken, refused, traceback, nonsense, hang, outside, code ran."""

    kind: str
    words: str = ""


def outcome_of(case: object, seed: int) -> Outcome:
    """Runs a case in a folder of its own.

    Args:
        case: called with random numbers and the folder.
    """
    with tempfile.TemporaryDirectory() as name:
        above = Path(name)
        folder, marker = above / "inside", above / "ran"
        folder.mkdir()
        found = _run(case, random.Random(seed), folder, marker)
        if marker.exists():
            return Outcome("code ran", found.words)
        outside = [path.name for path in above.iterdir() if path != folder]
        return Outcome("outside", ", ".join(outside)) if outside else found


def _run(case: object, rng: random.Random, folder: Path, marker: Path) -> Outcome:
    printed = io.StringIO()
    try:
        with _time_limit(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            case(rng, folder, marker)  # type: ignore[operator]
    except TimeoutError:
        return Outcome("hang", f"over {SECONDS} s")
    except Nonsense as fault:
        return Outcome("nonsense", str(fault))
    except Exception as error:
        known = explain(error)
        if known is None:
            return Outcome("traceback", "".join(traceback.format_exception(error)[-3:]))
        if "\n" in known[1].strip() or len(known[1]) > 2 * MOST:
            return Outcome("traceback", f"a message of {len(str(error))} characters: {known[1][:200]!r}")
        return Outcome("refused", known[1])
    return Outcome("taken")


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
