"""OpenAI's TorchScript archives → their tensors, without TorchScript.

Such an archive brings code along, which `torch.jit.load` runs. Here only `data.pkl` is read, the tree of
modules with their tensors; nothing that it names is called, save what puts a tensor together.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .tensor_files import check_zip

MOST_MODULES, LONGEST_NAME = 10_000, 1_000  # OpenAI's largest archive has some hundreds of modules
STORAGES = {
    "BoolStorage": torch.bool,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive; what `torch.save` writes has no constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive, by the names that its model's state dict has.

    Raises:
        pickle.UnpicklingError: the archive names something else than modules and tensors.
        Exception: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        content, storages = f"{root}/data.pkl", f"{root}/data/"
        read = [e for e in archive.infolist() if e.filename == content or e.filename.startswith(storages)]
        check_zip(archive, read)  # the code beside them is compressed, and not read
        return dict(_tensors(_Unpickler(archive, root).load()))


class _Module:
    """What stands in for a module of the archive: its attributes."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive = archive
        self.root = root
        self.storages: dict[str, bytearray] = {}  # each is read once, however often it is named
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle":  # marks the type of a list
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """One storage, flat; the device that it was saved on does not matter."""
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            self.storages[key] = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(self.storages[key], dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _tensors(root: _Module) -> Iterator[tuple[str, Tensor]]:
    todo, count = [("", root)], 0
    while todo:
        prefix, module = todo.pop()
        count += 1
        if count > MOST_MODULES or len(prefix) > LONGEST_NAME:  # of modules that hold one below several times
            raise UserError("its modules hold each other too often")
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _Module):
                todo.append((f"{prefix}{name}.", value))
