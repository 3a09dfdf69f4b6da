"""Test images on disk as the model's input needs them, resized and cropped, for all runs to come.

A split is one file, `<DATASET.NAME>_224x224_<digest>.npy`: an array `(image height width 3)` of uint8, as it
comes out of Pillow's resize and crop, and behind it a CRC-32 of each crop. It is written whole, then renamed,
and from then on only read, as a memory map that all processes of a machine share. The digest stands for all
that decides its pixels. A crop that was damaged since is decoded again.
"""

from __future__ import annotations

import io
import math
import os
import platform
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torchvision
from PIL import Image, features
from torchvision import transforms as T
from tqdm import tqdm

from dassl.data.image_cache import GB
from dassl.data.locks import sole_maker
from dassl.data.transforms.fused import Compose
from dassl.utils.tools import atomic_open

DECODERS = ("jpg", "libjpeg_turbo", "jpg_2000", "webp", "libtiff")


def crop_settings(transform: Any) -> tuple[Any, ...] | None:
    """What `build_transform`'s test transform does up to its crop; None for any other transform."""
    if type(transform) is not Compose:
        return None
    steps = list(transform.transforms[:3])
    if [type(step) for step in steps] != [T.Resize, T.CenterCrop, T.ToTensor]:
        return None
    resize, crop, _ = steps
    return tuple(crop.size), resize.size, resize.interpolation.value, resize.max_size, resize.antialias


class CropCache:
    """The crops of a split's images, once `fill` was called.

    Args:
        folder: made when it is needed.
        budget: bytes that all files of crops in the folder may take.
        name: of the dataset.
        settings: what `crop_settings` returns.
    """

    def __init__(self, folder: str, budget: float, name: str, settings: tuple[Any, ...]) -> None:
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.budget = budget
        self.name = re.sub(r"[^A-Za-z0-9-]", "-", name)
        self.settings = settings
        self._paths: Sequence[str] = ()
        self._file = ""
        self._crops: Any = None
        self._checksums: Any = None  # `(image)`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_crops": None, "_checksums": None}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a spawned worker maps the file by itself
        self.__dict__.update(state)
        self._open()

    def read(self, index: int, path: str) -> np.ndarray | None:
        """The crop `(height width 3)` of the image at `path`, read-only; None if it has to be decoded."""
        if self._crops is None or self._paths[index] != path:
            return None
        crop = self._crops[index]
        return crop if zlib.crc32(crop) == self._checksums[index] else None

    def fill(self, paths: Sequence[str], crop: Callable[[str], Image.Image], threads: int) -> None:
        """Opens the split's file; where there is none, makes it.

        Args:
            paths: of all images, in the order of the split.
            crop: decodes, resizes and crops an image.
        """
        if self._paths:
            return
        self._paths = paths
        try:
            self._file = os.path.join(self.folder, self._file_name())
            if not self._open():
                with sole_maker(self._file, f"{self._file}.lock"):  # other runs wait, and find the file
                    if not self._open():
                        self._write(crop, threads)
                        self._open()
        except FileNotFoundError:  # an image; the error comes when it is its turn
            return
        except OSError as error:
            print(
                f"Note: DATALOADER.TEST_CACHE {self.folder} cannot be used ({error.args[-1]}); choose "
                'another folder, or "" for none. Test images are decoded each time.',
                flush=True,
            )

    def _file_name(self) -> str:
        height, width = self.settings[0]
        versions = [PIL.__version__, torchvision.__version__, *map(features.version, DECODERS)]
        digest = blake2b(repr((self.settings, versions, platform.machine())).encode(), digest_size=8)
        folder = cache(os.path.realpath)  # a link in the path may point elsewhere tomorrow
        for path in self._paths:
            stat = os.stat(path)
            # ctime too: an archive that is unpacked over another sets mtime, but cannot set that.
            above, name = os.path.split(path)
            facts = (folder(above), name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(ascii(facts).encode())
        return f"{self.name}_{height}x{width}_{digest.hexdigest()}.npy"

    def _header(self) -> bytes:
        header = io.BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": self._shape()}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()

    def _shape(self) -> tuple[int, ...]:
        return len(self._paths), *self.settings[0], 3

    def _open(self) -> bool:
        header, shape = self._header(), self._shape()
        try:
            with open(self._file, "rb") as file:
                known = file.read(len(header)) == header
                file.seek(len(header) + math.prod(shape))
                checksums = file.read()
            if known and len(checksums) == 4 * len(self._paths):  # or it is damaged, or of an older version
                self._checksums = np.frombuffer(checksums, "<u4")
                crops = np.memmap(self._file, np.uint8, "r", len(header), shape)
                self._crops = crops.view(np.ndarray)
        except (OSError, ValueError):  # not there
            return False
        return self._crops is not None

    def _write(self, crop: Callable[[str], Image.Image], threads: int) -> None:
        taken = sum(file.stat().st_size for file in Path(self.folder).glob("*.npy"))
        if taken + math.prod(self._shape()) > self.budget:
            raise OSError(f"it is full: raise DATALOADER.TEST_CACHE_GB, now {self.budget / GB:g}")
        with atomic_open(self._file, "wb") as file, ThreadPoolExecutor(threads) as pool:
            file.write(self._header())
            checksums = []
            crops = pool.map(lambda path: np.asarray(crop(path)), self._paths)
            for pixels in tqdm(crops, "Decoding", len(self._paths), delay=2, leave=False, disable=None):
                file.write(np.ascontiguousarray(pixels).data)
                checksums.append(zlib.crc32(np.ascontiguousarray(pixels).data))
            file.write(np.array(checksums, "<u4").tobytes())
