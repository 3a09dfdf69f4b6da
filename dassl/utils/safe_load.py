"""Reads files of `torch.save` without running anything in them, also where they hold live objects.

torch's own `weights_only` reader does the work. Dassl.pytorch, among others, pickles live schedulers and
numpy's numbers into its checkpoints: each class that the reader does not allow is replaced by a placeholder.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from prompted_clip.console import MAY_PASS
from prompted_clip.errors import UserError
from prompted_clip.tensor_files import check_file, check_values


class Placeholder(dict):
    """Stands for an object of a class that is not allowed: a dictionary of its attributes.

    What the file would call is not called: its result is a placeholder, too.
    """

    class_name = ""  # what the file calls the class

    def __new__(cls, *args: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    # Like most objects, and unlike a dict, it can be a key and equals only itself.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # attributes, or attributes and slots
            if isinstance(part, dict):
                self.update(part)

    def __repr__(self) -> str:
        return f"<placeholder of {self.class_name[:200]!a}>"


class _Dtype:
    """numpy's dtype, of numbers only."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise UserError(f"numpy type {code[:20]!a} is not a number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            raise UserError("its numbers are big-endian")


def _numpy_scalar(dtype: Any, content: bytes) -> Any:
    return np.frombuffer(content, dtype.dtype, count=1)[0]


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return {}  # torch's reader adds items to dictionaries alone, not to subclasses


ALLOWED: dict[str, Any] = {
    "collections.defaultdict": _plain_dict,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}


def safe_load(fpath: str) -> Any:
    """The content of a file of `torch.save`, its tensors on the CPU; see `Placeholder`.

    Raises:
        ValueError: the file is damaged, not of `torch.save`, or holds what the reader does not allow.
    """
    try:
        # No placeholders in what torch wrote before version 1.6.
        names = get_unsafe_globals_in_checkpoint(fpath) if check_file(fpath) else []
        stand_ins = [
            (ALLOWED.get(name) or type("Placeholder", (Placeholder,), {"class_name": name}), name)
            for name in names
        ]
        with warnings.catch_warnings(), safe_globals([*stand_ins, _Dtype]):
            warnings.simplefilter("ignore")  # the error says it
            content = torch.load(fpath, map_location="cpu", weights_only=True)
        check_values(content, os.path.getsize(fpath), opaque=(Placeholder,))
        return content
    except Exception as error:  # a damaged file can break anything on the way
        if isinstance(error, OSError) and error.errno in MAY_PASS:  # the disk's fault, not the file's
            raise
        raise UserError(
            f"{fpath} is damaged or not a checkpoint, and was not loaded: {_reason(error)}. "
            "Where you trust the file, load it with torch and save its state dict alone."
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error's message, without torch's advice around it."""
    text = re.split(r"WeightsUnpickler error:|a trusted source\.\n", str(error))[-1].strip()
    line = (text or type(error).__name__).splitlines()[0]
    return line.partition(". Please use")[0][:200].rstrip(".")
