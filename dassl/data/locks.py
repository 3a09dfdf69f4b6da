"""One process at a time makes what all of a dataset's runs share; what a killed one left is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator

from filelock import FileLock, Timeout

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # file systems


@contextlib.contextmanager
def sole_maker(path: str, lock: str) -> Iterator[None]:
    """Waits for other processes that make the file `path`, then removes what killed ones left of it.

    That is `.<name>.<random>.tmp`, as `atomic_open` writes it, or an older version's `.part`. Where the file
    system has no locks, nobody waits, and nothing is removed.

    Args:
        lock: a file that all who make it lock; its folder is made.

    Raises:
        OSError: the lock's folder cannot be written.
    """
    os.makedirs(os.path.dirname(lock), exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire()
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    try:
        if held.is_locked:
            _remove_unfinished(os.path.realpath(path))
        yield
    finally:
        held.release()


@contextlib.contextmanager
def unfinished_folder(path: str) -> Iterator[str]:
    """A name `<path>.<random>.part` to make a folder under, before it is renamed; removed if it is not.

    Its maker locks a file beside it. Folders of killed makers, which nobody locks, are removed.
    """
    above, name = os.path.split(path)
    os.makedirs(above, exist_ok=True)
    pattern = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{32}}\.part\.lock")
    for entry in filter(pattern.fullmatch, os.listdir(above)):
        lock = os.path.join(above, entry)
        with contextlib.suppress(Timeout, OSError, NotImplementedError), FileLock(lock, timeout=0):
            _remove(lock.removesuffix(".lock"))
            _remove(lock)
    part = f"{path}.{uuid.uuid4().hex}.part"
    held = FileLock(f"{part}.lock")
    with contextlib.suppress(NotImplementedError):
        held.acquire()
    try:
        yield part
    finally:
        _remove(part)
        held.release()
        _remove(f"{part}.lock")


def _remove_unfinished(path: str) -> None:
    folder, name = os.path.split(path)
    unfinished = re.compile(rf"\.?{re.escape(name)}(\.[0-9a-f]{{32}}\.(part|tmp))+")
    for entry in filter(unfinished.fullmatch, os.listdir(folder) if os.path.isdir(folder) else []):
        _remove(os.path.join(folder, entry))


def _remove(place: str) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(place)
