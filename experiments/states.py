"""What became of a run that has no result, by what lies in its folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

FINISHED, RUNNING, FAILED = "finished", "running", "failed"
INTERRUPTED, MISSING = "interrupted", "missing"
NEEDS_AN_EYE = (FAILED, INTERRUPTED, RUNNING, MISSING)  # the most urgent first
ERROR_FILE, LOCK_FILE = "error.txt", ".lock"


def state_of(folder: Path | None) -> tuple[str, str]:
    """The state of a run without a result, and why it has none."""
    if folder is None or not folder.is_dir():
        return MISSING, "not started"
    if is_locked(folder / LOCK_FILE):
        return RUNNING, "a process works on it"
    if (folder / ERROR_FILE).is_file():
        return FAILED, last_line(folder / ERROR_FILE)
    if any(folder.glob("log.txt*")) or any(folder.glob("*/model*.pth.tar*")):
        return INTERRUPTED, "stopped before its result; it can go on"
    return MISSING, "not started"


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # in a folder of somebody else's, where nothing of ours can run
        return False
    lock.release()
    return False


def last_line(path: Path) -> str:
    """The last line of a file that says something, such as the error below a traceback."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
