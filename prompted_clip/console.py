"""What a command prints, on any system, and its exit code."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable

from .errors import DownloadError, UserError
from .escaping import printable

FAILED, USERS_MISTAKE, STOPPED = 1, 2, 130  # exit codes
MOST = 2_000  # characters of a message
# A full disk, a shared disk that hiccups, too many open files: another attempt may succeed.
MAY_PASS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT),
}
# A DataLoader raises a worker's error again with the worker's traceback as its message.
OF_WORKER = re.compile(r"(?<=Error: )\[Errno (\d+)\] .*(?=\s*\Z)")


def prepare_stdout() -> None:
    """Has stdout and stderr print each line at once, also into a pipe, and any character on any code page.

    What the code page lacks is escaped: "\\u2603".
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def run_command(name: str, run: Callable[[], int | None], speaks: Callable[[], bool] = lambda: True) -> int:
    """Runs a command and returns its exit code; an error that is no bug is one line on stderr.

    Args:
        speaks: whether this process, of several, says why they end.

    Returns:
        What `run` returns, 0 for None; 2 for what the user has to mend; 1 where another attempt may succeed;
        130 after Ctrl-C.
    """
    prepare_stdout()
    try:
        return run() or 0
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt as stop:
        if speaks():
            print(f"{name}: {str(stop) or 'interrupted; the same command goes on.'}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        if speaks():
            print(f"{name}: {known[1]}", file=sys.stderr)
        return known[0]


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an error that is no bug: bad input, or a machine that lacks something."""
    message = printable(shortened(str(error)))
    if isinstance(error, DownloadError):
        return FAILED, message
    if isinstance(error, OSError):
        number = error.errno
        if number is None and (found := OF_WORKER.search(str(error))):
            number, message = int(found[1]), printable(shortened(found[0]))
        if number is not None:
            return (FAILED if number in MAY_PASS else USERS_MISTAKE), message
    if isinstance(error, UserError):
        return USERS_MISTAKE, message
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return FAILED, (
            f"out of memory ({shortened(message.split('. ')[0], 200)}). Give a smaller "
            "DATALOADER.TRAIN_X.BATCH_SIZE, DATALOADER.TEST.BATCH_SIZE or MODEL.TEXT_CHUNK."
        )
    if isinstance(error, RuntimeError) and message.startswith("DataLoader worker"):
        return FAILED, (
            f"{shortened(message, 300)} The system ended a worker, mostly for want of memory: give fewer "
            "DATALOADER.NUM_WORKERS."
        )
    return None


def shortened(text: str, most: int = MOST) -> str:
    """The text, with its middle left out where it is longer."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _is_out_of_memory(error: BaseException) -> bool:
    # By name: torch may not be loaded.
    name = type(error).__name__
    return name == "OutOfMemoryError" or (name == "RuntimeError" and "not enough memory" in str(error))
