"""Which of torch's ways of computing is taken, where it has several and its own choice is the slower one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .perceptron import autocasts

HALF = (torch.float16, torch.bfloat16)
# oneDNN's product, which torch.compile takes for linear layers, too; None where torch was built without it.
ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_TAKES_ONEDNN = (
    ONEDNN_LINEAR is not None
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`, but without autograd: `(... in)`, `(out in)`, `(out)` → `(... out)`.

    On an x86 CPU torch takes MKL for float32, which makes little of AVX-512 where it is not Intel's, and
    least with few rows. oneDNN, which torch takes for bfloat16, is quicker. Their sums are rounded otherwise.
    """
    if _TAKES_ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`.

    In half precision a CPU computes it in float32: the backward pass is quicker so, and rounds less. Autocast
    would cast it back.
    """
    if queries.dtype not in HALF or queries.device.type != "cpu" or autocasts("cpu"):
        return F.scaled_dot_product_attention(queries, keys, values, mask)
    wide = None if mask is None else mask.float()
    attended = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float(), wide)
    return attended.to(queries.dtype)
