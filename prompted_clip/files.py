"""Writes files whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any


@contextmanager
def atomic_open(fpath: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name only when it is whole and on the disk.

    Its folders are made; a text file is UTF-8. Of several processes that write it, on any machine, the last
    one counts.
    """
    fpath = os.path.realpath(fpath)  # what a link points to is replaced, not the link
    folder, name = os.path.split(fpath)
    os.makedirs(folder, exist_ok=True)
    unfinished = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, fpath)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
