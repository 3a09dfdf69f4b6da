"""What lies in the folders of a dataset, kept on disk: a million names need not be listed at each start.

While a dataset is opened (`with opened(dataset_dir)`), `list_names`, `list_images` and `rows_of_folders` ask
its index; else, and for folders elsewhere, they list. One stat is made of each folder, and none of a file: a
file that is added, removed or renamed changes the times of its folder. (To count its files instead takes as
long as to list it.) A folder is listed again if its times are others than when it was listed, if it
had been changed within two seconds before (the next change could have had the same time), or if its file
system keeps no times.

The index is a file in the dataset's folder, or, where that cannot be written, in the user's cache folder: see
`places`. It stands under a checksum; one that is damaged, or of another version, is made anew. Datasets of
few files have none, as they are listed at once.
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

from dassl.data.packed_rows import END, Row, Rows, pack_names, unpack_names
from dassl.utils.tools import atomic_open

Item = TypeVar("Item")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LEAST = 10_000  # names, below which no index is kept
MAGIC = b"maple folder index, version 1\n"
SETTLED = 2_000_000_000  # nanoseconds after which the times of a folder tell a further change

_current: ContextVar[Index | None] = ContextVar("index", default=None)


class Listing(NamedTuple):
    """The packed names in a folder, sorted: first those of images, then the others."""

    images: bytes
    others: bytes


class _Entry(NamedTuple):
    times: tuple[int, int]  # when the folder was changed: its files, and anything about it; nanoseconds
    listed: int  # when it was listed; nanoseconds
    start: (
        int  # where in the packed names of all folders its images begin, its other names, and where they end
    )
    middle: int
    end: int


# What readers call --------------------------------------------------------------------------------------


def list_images(folder: str) -> list[str]:
    """The names of the images in a folder, sorted: files by their suffix, hidden ones left out.

    Raises:
        OSError: the folder cannot be listed.
    """
    return unpack_names(listing(folder).images)


def list_names(folder: str) -> list[str]:
    """All names in a folder. Raises an OSError if it cannot be listed."""
    return [name for packed in listing(folder) for name in unpack_names(packed)]


def listing(folder: str) -> Listing:
    """As `list_images` and `list_names`, packed."""
    index = _current.get()
    return _list(folder) if index is None else index.listing(folder)


def rows_of_folders(image_dir: str, classes: Sequence[Row]) -> Rows:
    """All images of class folders, as rows that take little memory: no object is made for an image.

    Args:
        image_dir: what the paths of the rows start from.
        classes: a folder, its label and its class name, in the order in which the rows are to come. Each
            folder once, relative to `image_dir`, with "/" between its parts.

    Raises:
        OSError: a folder cannot be listed.
    """
    groups, counts, names = [], [], []
    for folder, label, classname in progress(classes, "Listing images", "folder"):
        images = listing(os.path.join(image_dir, folder)).images
        if images:
            groups.append((f"{folder}/", label, classname))
            counts.append(images.count(END.encode()))
            names.append(images)
    return Rows(groups, np.repeat(np.arange(len(groups), dtype=np.int32), counts), b"".join(names))


def progress(items: Iterable[Item], what: str, unit: str) -> Iterable[Item]:
    """A bar for what takes more than two seconds, on a terminal only."""
    return tqdm(items, desc=what, unit=unit, delay=2, leave=False, disable=None)


@contextlib.contextmanager
def opened(dataset_dir: str, rebuild: bool = False) -> Iterator[Index]:
    """Lets the functions above ask the index of a dataset, and saves it where it learned something.

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
    """Where the index of a dataset may lie: in its folder, or in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(os.path.realpath(dataset_dir).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return [
        # In a folder of its own, so that writing it does not change the times of one that it lists.
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
        self._kept: dict[str, _Entry] = {}  # as read from disk
        self._names = memoryview(b"")
        self._seen: dict[str, tuple[tuple[int, int], int, Listing]] = {}  # as found now: times, when, names
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
        if key in self._seen:
            return self._seen[key][2]
        # Before listing: what is added meanwhile then makes the times differ.
        now, times = time.time_ns(), _times(folder)
        entry = self._kept.get(key)
        if entry is not None and entry.times == times and 0 < max(times) < entry.listed - SETTLED:
            found = self._names_of(entry)
            self._seen[key] = (times, entry.listed, found)
        else:
            found = _list(folder)
            self._seen[key] = (times, now, found)
            self.changed = True
        return found

    def save(self) -> None:
        """Writes the index, if it would be another than the one on disk and is large enough to be of use."""
        if not self.changed:
            return
        for key, entry in self._kept.items():
            if key not in self._seen:  # which another way to open the dataset looks at
                self._seen[key] = (entry.times, entry.listed, self._names_of(entry))
        packed = [part for _, _, found in self._seen.values() for part in found]
        if sum(part.count(END.encode()) for part in packed) < LEAST:
            return
        entries, start = [], 0
        for key, (times, listed, found) in self._seen.items():
            middle = start + len(found.images)
            end = middle + len(found.others)
            entries.append([key, *times, listed, start, middle, end])
            start = end
        table = json.dumps(entries).encode()
        content = b"".join([len(table).to_bytes(8, "little"), table, *packed])
        for path in places(self.root):
            try:
                with atomic_open(path, "wb") as file:
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
        end = 8 + int.from_bytes(content[:8], "little")
        self._names = content[end:]
        self._kept = {
            key: _Entry((changed, touched), *rest)
            for key, changed, touched, *rest in json.loads(bytes(content[8:end]))
        }
        return True

    def _names_of(self, entry: _Entry) -> Listing:
        images, others = self._names[entry.start : entry.middle], self._names[entry.middle : entry.end]
        return Listing(bytes(images), bytes(others))


def _times(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def _list(folder: str) -> Listing:
    images: list[str] = []
    others: list[str] = []
    for name in sorted(os.listdir(folder)):
        is_image = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        (images if is_image else others).append(name)
    return Listing(pack_names(images), pack_names(others))
