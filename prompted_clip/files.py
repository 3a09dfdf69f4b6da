"""Writes files whole or not at all, and tells one from another."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # on Windows, where an open file cannot be removed
    fcntl = None  # type: ignore[assignment]

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # of atomic_open


@contextmanager
def atomic_open(fpath: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name only when it is whole and on the disk.

    Its folders are made; a text file is UTF-8. Of several processes that write it, on any machine, the last
    one counts. What a killed one has left of the file is removed: it alone is not locked.
    """
    fpath = os.path.realpath(fpath)  # what a link points to is replaced, not the link
    folder, name = os.path.split(fpath)
    os.makedirs(folder, exist_ok=True)
    _remove_abandoned(folder, name)
    unfinished = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with named_in_errors(fpath), _open_locked(unfinished, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, fpath)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


@contextmanager
def named_in_errors(fpath: str | os.PathLike[str]) -> Iterator[None]:
    """Within, an OSError that names no file names this one: a full disk does not say what was written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(fpath)
        raise


def _open_locked(path: str, mode: str) -> IO[Any]:
    """Opens a new file, with a lock on it that ends with this process."""
    while True:
        file = open(path, mode, encoding=None if "b" in mode else "utf-8")  # noqa: SIM115  (the caller closes it)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path):
            return file
        file.close()  # another process has seen it before it was locked


def _remove_abandoned(folder: str, name: str) -> None:
    unfinished = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}\.tmp")
    for entry in filter(unfinished.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, entry)
        with suppress(OSError):  # its writer goes on
            if fcntl is None:
                os.unlink(path)
                continue
            with open(path, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes what `atomic_open` of killed runs has left in a folder and in those right below it.

    Only for the run that has locked the folder: the files of a run that goes on look the same.
    """
    for path in (*Path(folder).glob(".*.tmp"), *Path(folder).glob("*/.*.tmp")):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
