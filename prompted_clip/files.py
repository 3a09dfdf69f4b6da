"""Writes files whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # of atomic_open


@contextmanager
def atomic_open(fpath: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name only when it is whole and on the disk.

    Its folders are made; a text file is UTF-8. Of several processes that write it, on any machine, the last
    one counts. What a killed one leaves is found again by `remove_unfinished`.
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
    except BaseException as error:
        with suppress(OSError):
            os.unlink(unfinished)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = fpath  # a full disk does not say whose
        raise


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes what `atomic_open` of killed runs has left in a folder and in those right below it.

    Only for the run that has locked the folder: the files of a run that goes on look the same.
    """
    for path in (*Path(folder).glob(".*.tmp"), *Path(folder).glob("*/.*.tmp")):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
