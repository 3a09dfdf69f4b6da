"""Copies what is printed to a log file."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import IO, Any, TextIO

from prompted_clip.errors import MissingFileError

from .tools import mkdir_if_missing

__all__ = ["Logger", "setup_logger"]


class Logger:
    """Stands in for `sys.stdout`: what is written goes there and to a file.

    The file and its folders appear with the first line. An existing one stays: the new one gets a time stamp.
    """

    def __init__(self, fpath: str | None = None) -> None:
        self.console: TextIO | None = sys.stdout
        self.fpath = fpath
        self.file: IO[str] | None = None

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name == "console":  # not there yet
            raise AttributeError(name)
        return getattr(self.console, name)  # encoding, isatty(), ...

    def write(self, msg: str) -> None:
        if self.console is not None:  # as where a program is started with its stdout closed
            self.console.write(msg)
        if self.file is None and self.fpath is not None and msg:
            self.file = _open_new(self.fpath)
        if self.file is not None:
            try:
                self.file.write(msg)
            except OSError as error:
                error.filename = self.file.name  # a full disk does not say whose
                raise

    def flush(self) -> None:
        if self.console is not None:
            self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Closes the file. What is written later goes to the console alone."""
        if self.file is not None:
            with suppress(OSError):  # of a full disk, which the line that was not written has told
                self.file.close()
        self.file = self.fpath = None


_current: Logger | None = None


def setup_logger(output: str | None = None) -> None:
    """From now on, what is printed also goes to a file. An earlier log file is closed.

    Args:
        output: a file that ends in `.txt` or `.log`, or a folder, for `log.txt` in it; None for no log.
    """
    global _current
    while isinstance(sys.stdout, Logger):
        sys.stdout = sys.stdout.console
    if _current is not None:  # sys.stdout may have been replaced in between
        _current.close()
        _current = None
    if output:
        fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        _current = Logger(fpath)
        sys.stdout = _current


def check_log() -> None:
    """Raises a FileNotFoundError where the log file was removed since it was opened, or its folder was."""
    if _current is None or _current.file is None:
        return
    path = _current.file.name
    if not os.path.exists(path) or os.fstat(_current.file.fileno()).st_nlink == 0:
        raise MissingFileError(
            f"{path} was removed while the run went on, alone or with its folder. The run is ended, as its "
            "results would be without their log: start it again, and leave its folder alone."
        )


def _open_new(fpath: str) -> IO[str]:
    mkdir_if_missing(os.path.dirname(fpath))
    stamped, attempt = fpath, 0
    while True:
        try:
            # Line by line: a killed run keeps its lines. What is no text in UTF-8 is escaped.
            return open(stamped, "x", encoding="utf-8", errors="backslashreplace", buffering=1)
        except FileExistsError:
            stamped = fpath + time.strftime("-%Y-%m-%d-%H-%M-%S") + (f"-{attempt}" if attempt else "")
            attempt += 1
