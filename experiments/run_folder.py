"""The folder of a run: its files, and its state."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.escaping import printable
from prompted_clip.files import named_in_errors

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1  # of the project's JSON files
RESULT_FILE = "result.json"
TEST_FILE = "result_test.json"  # of a test in the folder of a training, whose result.json stays
PREDICTIONS_FILE = "predictions.csv.gz"  # of the tested images, beside result.json
TEST_PREDICTIONS_FILE = "predictions_test.csv.gz"  # beside result_test.json
PREDICTIONS_OF = {RESULT_FILE: PREDICTIONS_FILE, TEST_FILE: TEST_PREDICTIONS_FILE}
ERROR_FILE = "error.txt"  # the last stderr of a failed run
LOCK_FILE = ".lock"  # held by the run that writes into the folder
HOLDER_FILE = ".lock.holder"  # host, process and its start, of the run that holds it
MOST_BYTES = 2**28  # of a file of a run: more than the results of 100,000 classes
IN_USE = 75  # exit code of train.py where another run holds it


def state(folder: Path) -> tuple[str, str]:
    """finished, running, failed, interrupted or missing; and in words why, for a run that failed."""
    if (folder / RESULT_FILE).is_file():
        return "finished", ""
    if is_in_use(folder):
        return "running", ""
    reason = last_line(folder / ERROR_FILE)
    if reason:
        return "failed", reason
    return ("interrupted" if any(folder.glob("log.txt*")) else "missing"), ""


@contextmanager
def locked(folder: Path, timeout: float = 0.0) -> Iterator[None]:
    """Locks a folder and says beside the lock who holds it. A lock ends with its process, however that ends.

    Raises:
        filelock.Timeout: another run holds it, after `timeout` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE, timeout=timeout):
        holder = folder / HOLDER_FILE
        try:
            with named_in_errors(holder):
                holder.write_text(json.dumps([platform.node(), os.getpid(), _start_of(os.getpid())]))
            yield
        finally:
            holder.unlink(missing_ok=True)


def is_in_use(folder: Path) -> bool:
    """Whether a run writes into the folder now, of this machine or of another on the same disk.

    A run of this machine is looked up by its process: who takes a lock to look at it makes a run that starts
    in that moment believe that the folder is taken.
    """
    try:
        host, process, start = json.loads((folder / HOLDER_FILE).read_text())
    except (OSError, ValueError, TypeError):
        return False
    if host == platform.node() and start is not None:
        return _start_of(process) == start
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # in a folder that only others may write into
        return False


def _start_of(process: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None if unknown."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # it is gone, or this is not Linux
        return None


def last_line(path: Path) -> str:
    """The last line that is not empty, as it can be shown; "" without one."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, UserError):
        return ""
    return printable(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run; None where there is none that can be read."""
    try:
        content = json.loads(read_text(folder / RESULT_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("results"), dict) else None


def read_text(path: Path) -> str:
    """The text of a file; bytes that are no UTF-8 become U+FFFD.

    Raises:
        FileNotFoundError: it is no file; a named pipe, say, which has no end.
        ValueError: it is larger than any file of a run.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is no file.")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes; files of runs have at most {MOST_BYTES:,}."
        )
    return path.read_text(encoding="utf-8", errors="replace")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it holds something else, or another format than this project's.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{path} is none of this project's files: it has no `format`.")
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}; this version reads {FORMAT}.")
    return content
