"""Images by their content: the sha256 of each file, which is read once and not at each start.

The hashes are kept beside the folder index of a dataset (see `folder_index.places`), and where neither place
can be written, in memory. A file counts as the same while its size and times are. The hashes have a checksum
of their own; damaged ones are computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

from tqdm import tqdm

from dassl.data.folder_index import SETTLED, places
from dassl.data.locks import sole_maker
from prompted_clip.console import MAY_PASS
from prompted_clip.files import atomic_open, sha256_of_file

THREADS = 8  # hashlib and the disk work outside of Python's lock


class _Entry(NamedTuple):
    size: int
    mtime: int  # nanoseconds, as the two others
    ctime: int
    hashed: int  # when it was
    sha256: str

    def is_of(self, status: os.stat_result) -> bool:
        return self[:3] == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether a change after hashing must have changed the times."""
        return self.hashed - max(self.mtime, self.ctime) > SETTLED


_Entries = dict[str, _Entry]
_in_memory: dict[str, _Entries] = {}  # by root


def content_sha256(paths: Sequence[str], root: str, hash_missing: bool = True) -> dict[str, str]:
    """The sha256 of each image file, by its path as given.

    A path that is no file, as datasets have whose images lie in memory or in an archive, is left out: such an
    image is known by its path alone.

    Args:
        paths: absolute, or from `root`.
        root: the dataset's folder.
        hash_missing: read what was never hashed; otherwise no image is opened, and those are left out.

    Raises:
        OSError: a file cannot be read.
    """
    root = os.path.abspath(root)
    known = _load(root)
    found: dict[str, str] = {}
    unknown: dict[str, tuple[str, os.stat_result]] = {}
    for path in dict.fromkeys(paths):
        file = os.path.join(root, path)
        try:
            status = os.stat(file)
        except ValueError:  # no path at all
            continue
        except OSError as error:  # not there
            if error.errno in MAY_PASS:
                raise
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        entry = known.get(_key(path, root))
        if entry is not None and entry.is_of(status) and (entry.is_settled or not hash_missing):
            found[path] = entry.sha256
        elif hash_missing:
            unknown[path] = file, status
    if unknown:
        new = _hash(unknown, root)
        found.update((path, new[_key(path, root)].sha256) for path in unknown)
        _save(root, new)
    return {path: found[path] for path in paths if path in found}


def _key(path: str, root: str) -> str:
    return os.path.relpath(os.path.join(root, path), root).replace(os.sep, "/")


def _hash(files: dict[str, tuple[str, os.stat_result]], root: str) -> _Entries:
    def entry(path: str) -> tuple[str, _Entry]:
        file, status = files[path]
        now, times = time.time_ns(), (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return _key(path, root), _Entry(*times, now, sha256_of_file(file))

    with ThreadPoolExecutor(THREADS) as pool:
        hashed = pool.map(entry, files)
        return dict(tqdm(hashed, "Hashing images", len(files), delay=2, leave=False, disable=None))


def _places(root: str) -> list[str]:
    return [f"{os.path.splitext(place)[0]}_content.json" for place in places(root)]


def _load(root: str) -> _Entries:
    entries: _Entries = {}
    for place in reversed(_places(root)):
        try:
            status = os.stat(place)
        except OSError:
            continue
        entries |= _read(place, status.st_mtime_ns, status.st_size, status.st_ino)
    return entries | _in_memory.get(root, {})


@lru_cache(maxsize=32)
def _read(place: str, *version: int) -> _Entries:
    """The hashes in a file; none if it is damaged. `version` tells one content of the file from the next."""
    try:
        with open(place, "rb") as file:
            checksum, _, content = file.read().partition(b"\n")
        if checksum.decode() != hashlib.sha256(content).hexdigest():
            return {}
        entries = {key: _Entry(*fields) for key, fields in json.loads(content).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    kinds = (int, int, int, int, str)  # somebody may have made the checksum anew
    return entries if all(tuple(map(type, entry)) == kinds for entry in entries.values()) else {}


def _save(root: str, new: _Entries) -> None:
    """Adds hashes to the file of a dataset, in which other processes may write, too."""
    for place in _places(root):
        try:
            with sole_maker(place, os.path.join(os.path.dirname(place), "lock")):
                content = json.dumps(_load(root) | new).encode()
                with atomic_open(place, "wb") as file:
                    file.writelines([hashlib.sha256(content).hexdigest().encode(), b"\n", content])
            return
        except OSError:
            continue
    _in_memory.setdefault(root, {}).update(new)
