"""What is checked of a file of tensors before it is read, and of the tensors in it.

torch compares no checksums, inflates what is compressed, and hashes keys that a few bytes describe and that
have more parts than there are seconds.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pickletools import genops, markobject
from typing import IO, Any

import torch
from torch import Tensor

from .errors import UserError

MAGIC = b"PK\x03\x04"  # how torch tells its archives from what it wrote before version 1.6
OLD_PICKLES = 5  # in a file from before
SLACK = 10_000  # what a small file may describe beyond its size
MOST_DEPTH = 1000
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def check_file(path: str | os.PathLike[str]) -> bool:
    """Refuses a file of `torch.save` that is damaged, or is small and would take no end of memory or time.

    Returns:
        Whether it is an archive; before torch 1.6 there were none.

    Raises:
        Exception: of many kinds, as the file may be anything.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:  # no checksums in it
            file.seek(0)
            for _ in range(OLD_PICKLES):
                check_pickle(file)
            return False
    with zipfile.ZipFile(path) as archive:
        check_zip(archive, archive.infolist())
    return True


def check_zip(archive: zipfile.ZipFile, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Compares the checksums of entries, which are neither compressed nor double, and checks their pickles.

    Raises:
        ValueError, zipfile.BadZipFile: they are not what they should be.
    """
    entries = list(entries)
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise UserError("it has several entries of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError("its parts are compressed, which torch.save does not do")
    if sum(entry.file_size for entry in entries) > os.path.getsize(str(archive.filename)):
        raise UserError("its parts are larger than the file")
    for entry in entries:
        with archive.open(entry) as part:
            try:
                while part.read(1 << 20):
                    pass
            except zipfile.BadZipFile:
                raise UserError(f"{entry.filename} does not have its checksum") from None
        if entry.filename.endswith(".pkl"):
            with archive.open(entry) as part:
                check_pickle(part)


def check_pickle(file: IO[bytes]) -> None:
    """Refuses a pickle whose tuples, by sharing their parts, have more of them than the pickle has bytes.

    A tuple that is a key is hashed part by part: twice the tuple below, 40 times over, takes years. Lists and
    dictionaries are no keys.

    Raises:
        ValueError: it has such tuples.
        pickle.UnpicklingError: it is damaged, or none.
    """
    try:
        _count_parts(file)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise pickle.UnpicklingError(str(error)) from error


def _count_parts(file: IO[bytes]) -> None:
    stack: list[Any] = []  # (parts, depth) of each object; None for a mark
    memo: dict[Any, tuple[int, int]] = {}
    argument: Any
    for opcode, argument, position in genops(file):
        name, taken = opcode.name, []
        if name == "POP" and stack[-1] is None:
            stack.pop()
            continue
        count = len(opcode.stack_before)
        if markobject in opcode.stack_before:
            count = opcode.stack_before.index(markobject)
            while (top := stack.pop()) is not None:
                taken.append(top)
        taken += [stack.pop() for _ in range(count)]
        if "PUT" in name:
            if argument > (position or 0) + SLACK:
                raise UserError("it numbers more objects than it has")
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = taken[0]
            stack += taken
        elif "GET" in name:
            stack.append(memo[argument])
        elif name == "DUP":
            stack += [*taken, *taken]
        elif name == "MARK":
            stack.append(None)
        elif name in ("LIST", "DICT"):
            stack.append((1, 1))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
            stack.append(taken[-1])
        elif opcode.stack_after:
            parts, depth = 1 + sum(part for part, _ in taken), 1 + max((deep for _, deep in taken), default=0)
            if parts > (position or 0) + SLACK or depth > MOST_DEPTH:
                raise UserError("its tuples have more parts than it has bytes, or nest too deep")
            stack.append((parts, depth))


def check_values(content: Any, size: int, opaque: tuple[type, ...] = ()) -> None:
    """Refuses content that has, by sharing, far more values or larger tensors than its file has bytes.

    Args:
        size: bytes of the file.
        opaque: values of these types are not looked into.

    Raises:
        ValueError: says which of the two it is.
    """
    todo, count, tensor_bytes = [(content, 0)], 0, 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if isinstance(value, Tensor):
            tensor_bytes += 0 if unusual(value) else value.numel() * value.element_size()
        elif isinstance(value, (Mapping, list, tuple, set)) and not isinstance(value, opaque):
            inner = [*value, *value.values()] if isinstance(value, Mapping) else value
            todo += [(each, depth + 1) for each in inner]
        if len(todo) + count > size + SLACK or depth > MOST_DEPTH:
            raise UserError("it holds more values than bytes, or nests them too deep")
    if tensor_bytes > 8 * size + (1 << 20):
        raise UserError("its tensors are larger than the file")


def without_wrappers(key: str) -> str:
    """The name of a tensor without what DataParallel and torch.compile put before or into it."""
    return key.replace("_orig_mod.", "").removeprefix("module.")


def unusual(value: Tensor) -> str:
    """The kind of a tensor whose numbers are not plainly in memory; "" for all others."""
    if value.is_meta:
        return "meta"
    if value.is_quantized:
        return "quantized"
    return "sparse or nested" if value.is_nested or value.layout != torch.strided else ""


def number_kind(dtype: torch.dtype) -> str:
    """Whether numbers are floating point, integers, or of a type that no other is turned into."""
    return "floating point" if dtype in FLOATS else "integers" if dtype in INTEGERS else str(dtype)


def misfit(value: Any, wanted: Tensor) -> str:
    """Why a value cannot be loaded into a tensor, but for its shape: "is ..."; "" where it can."""
    if not isinstance(value, Tensor):
        return "is not a tensor"
    if unusual(value) != unusual(wanted):
        return f"is a {unusual(value) or 'plain'} tensor"
    if number_kind(value.dtype) != number_kind(wanted.dtype):
        return f"is of {value.dtype}, and not of {number_kind(wanted.dtype)}"
    return ""


def is_finite(value: Tensor) -> Tensor:
    """Whether no number is NaN or infinite, as a tensor on the same device: there is no sync."""
    if value.numel() and value.dtype in FLOATS:
        return torch.stack(value.detach().aminmax()).isfinite().all()  # many times as fast on a CPU
    return value.isfinite().all()


def not_finite(tensors: Mapping[str, Any]) -> str:
    """The name of the first tensor with a NaN or an infinity in it; "" if there is none."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and not unusual(value) and not bool(is_finite(value)):
            return name
    return ""
