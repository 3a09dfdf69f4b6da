"""Test images on disk as the pixels that the model's input is made of, for all runs to come.

A test image is resized and cropped in the same way each time. The crop is kept as it comes out of Pillow, in
uint8; what follows it, conversion and normalisation, is done each time as without the cache.

    <DATASET.NAME>_224x224_<digest>.crops    crops one behind the other, as many bytes each
                               ... .index    for each crop a `RECORD`

The digest is of all that decides pixels: the transform, and the versions of Pillow, its decoders and
torchvision. All runs, splits, methods and seeds share these files. They only grow, and are right at each
moment: a crop is written before its record, and a record counts only if crop and record have the checksums
that it says. So a run that is killed, a disk that is full, or a power cut leave at worst a crop that is made
once more.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock
from PIL import Image, features
from torchvision import transforms as T

from dassl.data.image_cache import GB
from dassl.data.transforms.fused import Compose

LAYOUT = 1  # of the files
RECORD = struct.Struct("<16sII")  # key of the image, checksum of its crop, checksum of these and of the place
LOCKED = 5.0  # seconds to wait for others that write; each takes less than a thousandth of that
DECODERS = ("jpg", "libjpeg_turbo", "jpg_2000", "webp", "libtiff")


def crop_settings(transform: Any) -> tuple[Any, ...] | None:
    """What the plain test transform does up to its crop; None for another transform.

    Plain is what `build_transform` makes for testing: resize, crop, to a tensor, and then what it likes.
    """
    if type(transform) is not Compose:
        return None
    steps = list(transform.transforms[:3])
    if [type(step) for step in steps] != [T.Resize, T.CenterCrop, T.ToTensor]:
        return None
    resize, crop, _ = steps
    return tuple(crop.size), resize.size, resize.interpolation.value, resize.max_size, resize.antialias


class CropCache:
    """Crops of test images by file, in a folder.

    An image is known by its path below the root of the datasets, its size in bytes and its time of change: a
    changed image is another one. Processes that read wait for nobody. Where the folder cannot be written or
    is full, one line says so; what is there is still read, and the other images are decoded.

    Worker processes of a loader each have their own copy of this object, and the files in common.

    Args:
        folder: made when it is needed.
        budget: bytes that all crops in the folder may take, those of other datasets too.
        name: of the dataset.
        root: folder that the datasets lie in; it may be moved. Images elsewhere are known by their full path.
        settings: what `crop_settings` gives.
    """

    def __init__(self, folder: str, budget: float, name: str, root: str, settings: tuple[Any, ...]) -> None:
        self.settings = settings
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.budget = budget
        height, width = settings[0]
        versions = [PIL.__version__, torchvision.__version__, *map(features.version, DECODERS)]
        versions.append(platform.machine())
        digest = blake2b(repr((LAYOUT, settings, versions)).encode(), digest_size=6).hexdigest()
        stem = f"{re.sub(r'[^A-Za-z0-9-]', '-', name)}_{height}x{width}_{digest}"
        self.file = os.path.join(self.folder, stem)
        self._root = os.path.join(os.path.abspath(os.path.expanduser(root)), "")
        self._shape = (height, width, 3)
        self._places: dict[bytes, tuple[int, int]] = {}  # key of an image → its crop's place and checksum
        self._known = 0  # records that were read
        self._crops = np.empty((0, *self._shape), dtype=np.uint8)
        self._stopped = torch.zeros(1, dtype=torch.bool).share_memory_()  # writing, in all workers

    def __getstate__(self) -> dict[str, Any]:
        # For a worker that is not forked: it opens the files by itself.
        return {**self.__dict__, "_places": {}, "_known": 0, "_crops": self._crops[:0].copy()}

    def read(self, path: str, make: Callable[[], Image.Image]) -> np.ndarray:
        """The crop of an image, `(height width 3)` in uint8; not to be changed, and not copied from the disk.

        Args:
            make: decodes, resizes and crops the image. It is called where there is no crop yet.
        """
        key = self._key(path)  # of the file as it is before it is read
        crop = None if key is None else self._find(key)
        if crop is None:
            crop = np.asarray(make())
            if key is not None:
                self._keep(key, crop)
        return crop

    def refresh(self) -> None:
        """Reads what was added to the index, by whomever."""
        try:
            with open(f"{self.file}.index", "rb") as file:
                file.seek(self._known * RECORD.size)
                added = file.read()
        except OSError:
            return
        last = self._known + len(added) // RECORD.size - 1
        whole = added[: len(added) // RECORD.size * RECORD.size]
        for place, (key, checksum, own) in enumerate(RECORD.iter_unpack(whole), self._known):
            if own == _checksum_of_record(key, checksum, place):
                self._places[key] = place, checksum
            elif place == last:  # may be in the middle of being written
                return
            self._known = place + 1

    def _key(self, path: str) -> bytes | None:
        path = os.path.abspath(path)
        try:
            status = os.stat(path)
        except OSError:
            return None  # who reads the image will say what is wrong
        below = path.removeprefix(self._root).replace(os.sep, "/")
        facts = f"{below}\0{status.st_size}\0{status.st_mtime_ns}"
        return blake2b(facts.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    def _find(self, key: bytes) -> np.ndarray | None:
        if key not in self._places:
            self.refresh()
        place, checksum = self._places.get(key, (-1, 0))
        if place < 0:
            return None
        try:
            if place >= len(self._crops):
                self._crops = self._map()
            crop = self._crops[place]
        except (OSError, ValueError, IndexError):  # the file is gone, empty or shorter than the index says
            crop = None
        if crop is None or crc32(crop.data) != checksum:
            del self._places[key]
            return None
        return crop

    def _map(self) -> np.ndarray:
        """All crops that there are now, `(crop height width 3)`: the pages of the file itself."""
        file = f"{self.file}.crops"
        count = os.path.getsize(file) // int(np.prod(self._shape))
        return np.memmap(file, np.uint8, "r", shape=(count, *self._shape)).view(np.ndarray)

    def _keep(self, key: bytes, crop: np.ndarray) -> None:
        if self._stopped or crop.shape != self._shape:
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
            with FileLock(f"{self.file}.lock", timeout=LOCKED, poll_interval=0.001):
                self.refresh()
                if key not in self._places:
                    self._append(key, np.ascontiguousarray(crop))
        except (OSError, NotImplementedError) as error:  # the second from a file system without locks
            reason = getattr(error, "strerror", None) or error
            self._stop(
                f"DATALOADER.TEST_CACHE {self.folder} cannot be written ({reason}); choose another folder, "
                'or "" for none.'
            )

    def _append(self, key: bytes, crop: np.ndarray) -> None:
        if self._taken() + crop.nbytes > self.budget:
            self._stop(
                f"DATALOADER.TEST_CACHE {self.folder} is full; raise DATALOADER.TEST_CACHE_GB (now "
                f"{self.budget / GB:g}), or delete files there."
            )
            return
        index = f"{self.file}.index"
        place = os.path.getsize(index) // RECORD.size if os.path.exists(index) else 0
        checksum = crc32(crop.data)
        _write(f"{self.file}.crops", place * crop.nbytes, crop.data)
        record = RECORD.pack(key, checksum, _checksum_of_record(key, checksum, place))
        _write(index, place * RECORD.size, record)
        self._places[key] = place, checksum

    def _taken(self) -> int:
        with os.scandir(self.folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.endswith(".crops"))

    def _stop(self, message: str) -> None:
        if not self._stopped:
            self._stopped.fill_(True)
            print(f"Note: {message} Test images that are not there are decoded each time.", flush=True)


def _checksum_of_record(key: bytes, checksum: int, place: int) -> int:
    return crc32(struct.pack("<16sIQ", key, checksum, place))


def _write(path: str, offset: int, content: Any) -> None:
    """Writes into the middle of a file, which is made where there is none."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:
        file.seek(offset)
        file.write(content)
