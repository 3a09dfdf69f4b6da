"""Caches the file names in the folders of a dataset on disk, instead of listing a million at each start.

While a dataset is opened (`with opened(dataset_dir)`), `list_names`, `list_images` and `rows_of_folders` ask
its index; otherwise, and for folders elsewhere, they list. Each folder costs one `stat`, and files none:
adding, removing or renaming a file changes the times of its folder. (Counting files takes as long as listing
them.) A folder is listed again if its times differ from those in the index, if it was changed less than two
seconds before it was listed (the next change could have the same time), or if its file system has no times.

The index is a file in the dataset's folder or, if that is read-only, in the user's cache (see `places`).
It has a checksum; a damaged one, or one of another version, is rebuilt. Datasets of few files have none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dassl.data.locks import sole_maker
from dassl.data.packed_rows import END, Row, Rows, pack_names, unpack_names
from dassl.utils.tools import atomic_open
from prompted_clip.errors import MissingFileError
from prompted_clip.images import IMAGE_SUFFIXES

Item = TypeVar("Item")

LEAST = 10_000  # names: datasets with fewer have no index
MAGIC = b"maple folder index, version 3\n"
SETTLED = 2_000_000_000  # nanoseconds after which a further change of a folder changes its times

_current: ContextVar[Index | None] = ContextVar("index", default=None)


class Listing(NamedTuple):
    """The packed names in a folder, sorted: first those of images, then the others."""

    images: bytes
    others: bytes


class _Entry(NamedTuple):
    times: tuple[int, int]  # mtime and ctime of the folder; nanoseconds
    listed: int  # when it was listed; nanoseconds
    start: int  # of its images in the packed names of all folders
    middle: int  # of its other names
    end: int


# What readers call --------------------------------------------------------------------------------------


def list_images(folder: str) -> list[str]:
    """The names of the images in a folder, sorted: files by their suffix, without hidden ones.

    Raises:
        OSError: the folder cannot be listed, or an image in it is a link to nothing.
    """
    return unpack_names(_images(folder))


def list_names(folder: str) -> list[str]:
    """All names in a folder. Raises an OSError if it cannot be listed."""
    return [name for packed in listing(folder) for name in unpack_names(packed)]


def listing(folder: str) -> Listing:
    """The names in a folder, packed; see `list_images` and `list_names`."""
    index = _current.get()
    return _list(folder) if index is None else index.listing(folder)


def rows_of_folders(image_dir: str, classes: Sequence[Row]) -> Rows:
    """All images of class folders as packed rows, without a Python object per image.

    Args:
        image_dir: what the paths of the rows start from.
        classes: folder, label and class name, in the order of the rows. Folders are unique, relative to
            `image_dir`, with "/" as separator.

    Raises:
        OSError: a folder cannot be listed, or an image in it is a link to nothing.
    """
    groups, counts, names = [], [], []
    for folder, label, classname in progress(classes, "Listing images", "folder"):
        images = _images(os.path.join(image_dir, folder))
        if images:
            groups.append((f"{folder}/", label, classname))
            counts.append(images.count(END.encode()))
            names.append(images)
    return Rows(groups, np.repeat(np.arange(len(groups), dtype=np.int32), counts), b"".join(names))


def _images(folder: str) -> bytes:
    found = listing(folder)
    for name in filter(_is_image, unpack_names(found.others)):
        path = os.path.join(folder, name)
        if os.path.islink(path) and not os.path.exists(path):
            raise MissingFileError(f"{path} is a link to nothing. Mend or remove it.")
    return found.images


def progress(items: Iterable[Item], what: str, unit: str) -> Iterable[Item]:
    """`items` with a progress bar, shown on a terminal after two seconds."""
    return tqdm(items, desc=what, unit=unit, delay=2, leave=False, disable=None)


@contextlib.contextmanager
def opened(dataset_dir: str, rebuild: bool = False) -> Iterator[Index]:
    """A context in which the functions above use the index of a dataset; saves it at the end if it changed.

    Args:
        rebuild: list all folders again.
    """
    index = Index(dataset_dir, rebuild)
    token = _current.set(index)
    try:
        yield index
    finally:
        _current.reset(token)
    index.save()


# The index ----------------------------------------------------------------------------------------------


def places(dataset_dir: str) -> list[str]:
    """The possible paths of the index of a dataset: in its folder, and in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(os.path.realpath(dataset_dir).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return [
        # In a separate folder, so that writing it does not change the times of a listed one.
        os.path.join(dataset_dir, ".folder_index", "folders.bin"),
        os.path.join(cache, "maple-prompt-learning", "folder_index", f"{key}.bin"),
    ]


class Index:
    """The names in the folders below `root`. Folders are known by their paths relative to it.

    Args:
        rebuild: take nothing from an index on disk.
    """

    def __init__(self, root: str, rebuild: bool = False) -> None:
        self.root = os.path.abspath(root)
        self.changed = rebuild
        self._cached: dict[str, _Entry] = {}  # as read from disk
        self._names = memoryview(b"")
        self._current_listings: dict[
            str, tuple[tuple[int, int], int, Listing]
        ] = {}  # as found now: times, when, names
        if not rebuild:
            # The newest: a dataset's folder may have been writable once, and is not any more.
            for path in sorted(filter(os.path.isfile, places(self.root)), key=os.path.getmtime, reverse=True):
                if self._load(path):
                    break

    def listing(self, folder: str) -> Listing:
        """The names in a folder; from the index, if nothing can have changed since they were listed."""
        path = os.path.abspath(folder)
        if path != self.root and not path.startswith(os.path.join(self.root, "")):
            return _list(folder)
        key = os.path.relpath(path, self.root).replace(os.sep, "/")
        if key in self._current_listings:
            return self._current_listings[key][2]
        # Before listing: what is added meanwhile then makes the times differ.
        now, times = time.time_ns(), _times(folder)
        entry = self._cached.get(key)
        if entry is not None and entry.times == times and 0 < max(times) < entry.listed - SETTLED:
            found = self._names_of(entry)
            self._current_listings[key] = (times, entry.listed, found)
        else:
            found = _list(folder)
            self._current_listings[key] = (times, now, found)
            self.changed = True
        return found

    def save(self) -> None:
        """Writes the index, if it would be another than the one on disk and is large enough to be of use."""
        if not self.changed:
            return
        for key, entry in self._cached.items():
            if key not in self._current_listings:  # which another way to open the dataset looks at
                self._current_listings[key] = (entry.times, entry.listed, self._names_of(entry))
        packed = [part for _, _, found in self._current_listings.values() for part in found]
        if sum(part.count(END.encode()) for part in packed) < LEAST:
            return
        entries, start = [], 0
        for key, (times, listed, found) in self._current_listings.items():
            middle = start + len(found.images)
            end = middle + len(found.others)
            entries.append([key, *times, listed, start, middle, end])
            start = end
        table = json.dumps(entries).encode()
        content = b"".join([len(table).to_bytes(8, "little"), table, *packed])
        for path in places(self.root):
            try:
                lock = os.path.join(os.path.dirname(path), "lock")
                with sole_maker(path, lock), atomic_open(path, "wb") as file:
                    file.writelines([MAGIC, hashlib.sha256(content).digest(), content])
                return
            except OSError as error:
                reason = error
        print(f"The index of {self.root} is not saved, so that its folders are listed each time: {reason}")

    def _load(self, path: str) -> bool:
        try:
            with open(path, "rb") as file:
                whole = memoryview(file.read())
        except OSError:
            return False
        head = len(MAGIC) + hashlib.sha256().digest_size
        content = whole[head:]
        if whole[: len(MAGIC)] != MAGIC or hashlib.sha256(content).digest() != whole[len(MAGIC) : head]:
            print(f"The index {path} is damaged or of another version; the folders are listed again.")
            self.changed = True
            return False
        try:
            end = 8 + int.from_bytes(content[:8], "little")
            self._cached = {
                key: _Entry((changed, touched), *rest)
                for key, changed, touched, *rest in json.loads(bytes(content[8:end]))
            }
            self._names = content[end:]
            whole_names = all(self._is_whole(entry) for entry in self._cached.values())
        except (ValueError, TypeError, RecursionError):
            whole_names = False
        if not whole_names:  # somebody has made the checksum anew
            print(f"The index {path} is not in its form; the folders are listed again.")
            self._cached, self.changed = {}, True
        return whole_names

    def _is_whole(self, entry: _Entry) -> bool:
        """Whether an entry's numbers are some, and what they point to is text; a ValueError says no, too."""
        numbers = (*entry.times, *entry[1:])
        ordered = 0 <= entry.start <= entry.middle <= entry.end <= len(self._names)
        str(bytes(self._names[entry.start : entry.end]), "utf-8", "surrogatepass")
        return ordered and all(type(number) is int for number in numbers)

    def _names_of(self, entry: _Entry) -> Listing:
        images, others = self._names[entry.start : entry.middle], self._names[entry.middle : entry.end]
        return Listing(bytes(images), bytes(others))


def _times(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def _list(folder: str) -> Listing:
    images: list[str] = []
    others: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        (images if _is_image(entry.name) and entry.is_file() else others).append(entry.name)
    return Listing(pack_names(images), pack_names(others))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
