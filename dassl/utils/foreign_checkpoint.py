"""Reads files of `torch.save` that hold more than plain data, without running anything in them.

Dassl.pytorch, among others, pickles live schedulers and numpy's numbers into its checkpoints.
"""

from __future__ import annotations

import io
import mmap
import os
import zipfile
from typing import Any

import numpy as np
import torch

from .inert_pickle import Name, RefusedError, unpickle
from .rebuilders import STORAGE_DTYPES, TABLES, Storage

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens a file of torch.save before 1.6


def read_foreign_checkpoint(fpath: str) -> Any:
    """Reads a file of `torch.save`, in its zip or its older form.

    Objects of classes that are not known become `Placeholder`s.

    Raises:
        ValueError: the file calls a function that does not rebuild tensors or plain containers, or it is
            damaged or no checkpoint at all.
    """
    try:
        with open(fpath, "rb") as file:
            is_zip = file.read(2) == b"PK"
        return _read_zip(fpath) if is_zip else _read_legacy(fpath)
    except RefusedError as error:
        raise ValueError(
            f"{fpath} {error}; it was not loaded. Where you trust the file, load it with torch and save its"
            " state dict alone"
        ) from error
    except Exception as error:  # a broken file can break anything on the way
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{fpath} is not a checkpoint, or it is damaged: {reason}") from error


class _Storages:
    """Resolves a pickle's persistent ids: storages, each made once and shared by its tensors."""

    def __init__(self, limit: int) -> None:
        self.made: dict[str, Storage] = {}
        self.left = limit

    def __call__(self, reference: Any) -> Any:
        if reference[0] == "module":  # a class, with its source code
            return reference[1]
        kind, dtype_name, key, _, count = reference[:5]
        if kind != "storage" or not isinstance(dtype_name, Name) or any(reference[5:]):
            raise ValueError("an unknown kind of storage")
        dtype = STORAGE_DTYPES[dtype_name.full]
        if key not in self.made:
            size = int(count) * dtype.itemsize
            self.left -= size
            if size < 0 or self.left < 0:
                raise ValueError("storages larger than the file")
            self.made[str(key)] = Storage(self.content(str(key), size), dtype)
        return self.made[key]

    def content(self, key: str, size: int) -> torch.Tensor:
        """The bytes of a storage, or room for them."""
        return torch.empty(size, dtype=torch.uint8)


class _ZipStorages(_Storages):
    def __init__(self, archive: zipfile.ZipFile, folder: str, limit: int) -> None:
        super().__init__(limit)
        self.archive = archive
        self.folder = folder

    def content(self, key: str, size: int) -> torch.Tensor:
        content = super().content(key, size)
        with self.archive.open(f"{self.folder}data/{key}") as entry:
            _fill(content, entry.read())
        return content


def _read_zip(fpath: str) -> Any:
    with zipfile.ZipFile(fpath) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch.save does not do")
        names = archive.namelist()
        folder = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if folder is None:
            raise ValueError("there is no data.pkl in it")
        if f"{folder}constants.pkl" in names:
            raise ValueError("it is a TorchScript archive")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        storages = _ZipStorages(archive, folder, os.path.getsize(fpath))
        return unpickle(io.BytesIO(archive.read(f"{folder}data.pkl")), TABLES, storages)


def _read_legacy(fpath: str) -> Any:
    with open(fpath, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if unpickle(stream, TABLES) != _LEGACY_MAGIC:
            raise ValueError("torch.save did not write it")
        unpickle(stream, TABLES)  # version of the form
        if not unpickle(stream, TABLES)["little_endian"]:
            raise ValueError("its numbers are big-endian")
        storages = _Storages(limit=len(stream))
        content = unpickle(stream, TABLES, storages)
        keys = unpickle(stream, TABLES)
        if set(keys) != set(storages.made):
            raise ValueError("storages are missing")
        for key in keys:
            storage = storages.made[key]
            count = int.from_bytes(stream.read(8), "little")
            _fill(storage.content, stream.read(count * storage.dtype.itemsize))
        return content


def _fill(storage: torch.Tensor, content: bytes) -> None:
    if len(content) != storage.numel():
        raise ValueError("a storage is not as long as declared")
    if content:
        storage.numpy()[:] = np.frombuffer(content, np.uint8)
