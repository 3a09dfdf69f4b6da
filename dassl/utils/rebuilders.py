"""What a checkpoint's pickle may call, and what is called in its place.

That is what rebuilds tensors, plain containers, numpy's numbers and arrays. These functions trust none of
their arguments, least of all sizes.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .inert_pickle import Name, RefusedError, Tables

STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
_FACTORIES = {"builtins.dict": dict, "builtins.list": list, "builtins.int": int, "builtins.float": float}


@dataclass
class Storage:
    """The memory of tensors, as the file declares it."""

    content: Tensor  # (bytes), uint8
    dtype: torch.dtype


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, *rest: Any, dtype: Any = None
) -> Tensor:
    """A tensor on a storage, unless it would reach beyond it. Backward hooks (in `rest`) are left out."""
    if not isinstance(storage, Storage) or not all(
        type(number) is int and number >= 0 for number in (offset, *size, *stride)
    ):
        raise ValueError("a tensor without storage, or of a negative shape")
    if len(rest) > 1 and rest[1]:
        raise ValueError("a tensor with metadata")
    flat = storage.content.view(dtype or storage.dtype)
    steps = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    end = offset + (steps + 1 if math.prod(size) else 0)
    if end > flat.numel():
        raise ValueError("a tensor that reaches beyond its storage")
    tensor = torch.empty(0, dtype=flat.dtype).set_(flat.untyped_storage(), offset, tuple(size), tuple(stride))
    return tensor.requires_grad_(bool(requires_grad))


def _tensor_v1(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    return _tensor(storage, offset, size, stride, False)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    *metadata: Any,
) -> Tensor:
    return _tensor(storage, offset, size, stride, requires_grad, hooks, *metadata, dtype=dtype)


def _parameter(data: Any, requires_grad: Any, *hooks_and_state: Any) -> torch.nn.Parameter:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return torch.nn.Parameter(data.detach(), bool(requires_grad))


def _tensor_with_attributes(function: Any, kind: Any, args: Any, attributes: Any) -> Tensor:
    """A tensor, whatever subclass and attributes it had."""
    if not isinstance(function, Name) or function.full not in _TENSOR_REBUILDERS:
        raise RefusedError(
            f"calls {function!r}" if isinstance(function, Name) else "calls what is not a function"
        )
    return _TENSOR_REBUILDERS[function.full](*args)


class _Dtype:
    """numpy's dtype, of numbers and texts only."""

    def __init__(self, code: Any, *flags: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,9}", code):
            raise ValueError("a numpy type that is neither number nor text")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Protocol 2 has no bytes and writes them as text."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _raw(content: Any) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    return np.frombuffer(_raw(content), dtype.dtype, count=1)[0]


def _numpy_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if not isinstance(kind, Name) or kind.full != "numpy.ndarray":
        raise ValueError("a subclass of numpy's array")
    return np.empty(0)


def _set_state(instance: Any, state: Any) -> bool:
    """Fills what numpy's rebuilders have begun. False: the object is not one of these."""
    if isinstance(instance, _Dtype):
        instance.set_state(state)
    elif type(instance) is np.ndarray:
        array: Any = instance
        _, shape, dtype, fortran_order, content = state
        content = _raw(content)
        if math.prod(shape) * dtype.dtype.itemsize != len(content) or any(n < 0 for n in shape):
            raise ValueError("a numpy array whose shape does not fit its content")
        array.__setstate__((1, tuple(shape), dtype.dtype, bool(fortran_order), content))
    else:
        return False
    return True


def _size(numbers: Any = ()) -> torch.Size:
    return torch.Size([int(number) for number in numbers])


def _device(kind: Any, index: Any = None) -> torch.device:
    return torch.device(str(kind)) if index is None else torch.device(str(kind), int(index))


def _defaultdict(factory: Any = None, *content: Any) -> defaultdict[Any, Any]:
    return defaultdict(_FACTORIES.get(factory.full) if isinstance(factory, Name) else None, *content)


_TENSOR_REBUILDERS: dict[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
TABLES = Tables(
    rebuilders={
        **_TENSOR_REBUILDERS,
        "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
        "torch.Size": _size,
        "torch.device": _device,
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": Counter,
        "collections.defaultdict": _defaultdict,
        "builtins.set": set,
        "builtins.frozenset": frozenset,
        "builtins.complex": complex,
        "builtins.bytes": _bytes,
        "_codecs.encode": _bytes,
        "numpy.dtype": _Dtype,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
        "numpy.core.multiarray._reconstruct": _numpy_array,
        "numpy._core.multiarray._reconstruct": _numpy_array,
    },
    constants={
        str(dtype): dtype for dtype in (*STORAGE_DTYPES.values(), torch.uint16, torch.uint32, torch.uint64)
    },
    set_state=_set_state,
)
