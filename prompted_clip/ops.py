"""The faster of torch's ways to compute a part of a block, and the checks of when it may be taken."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

HALF = (torch.float16, torch.bfloat16)
# oneDNN's linear layer, which torch.compile takes, too; None where torch was built without it.
ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
CPU = "/proc/cpuinfo"


def _is_amd() -> bool:
    """Whether the CPU is AMD's."""
    try:
        with open(CPU, encoding="utf-8") as file:  # of the first core alone: the whole takes its time
            return "AuthenticAMD" in file.read(200)
    except OSError:  # no Linux
        return "AuthenticAMD" in platform.processor()


# On an x86 CPU torch takes MKL for float32, which makes little of AMD's AVX-512, and least with few rows. On
# Intel's it is the faster one: `python -m benchmarks.step --ways ours other-linear`.
_ONEDNN_IS_FASTER = (
    ONEDNN_LINEAR is not None
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and _is_amd()
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`: `(... in)`, `(out in)`, `(out)` → `(... out)`.

    Frozen float32 weights are multiplied by oneDNN on AMD's CPUs with AVX-512, where that is faster than
    torch's choice. Sums are rounded in another order there.
    """
    if (
        not _ONEDNN_IS_FASTER
        or x.device.type != "cpu"
        or not x.dtype == weight.dtype == torch.float32
        or torch.compiler.is_compiling()
        or autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled() or not any(
        each is not None and each.requires_grad for each in (x, weight, bias)
    ):
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return F.linear(x, weight, bias)
    return _FrozenLinear.apply(x, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    """oneDNN's linear layer with a gradient of its input alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(grad_out, weight.t()), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Tensor | None) -> Tensor:
        (weight,) = ctx.saved_tensors
        return F.linear(tangent, weight)


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`; `mask` is added to the logits.

    In half precision a CPU computes it in float32: the backward pass is faster so, and rounds less. (Autocast
    would cast it back.) Forward-mode AD takes the kernel that supports it.
    """
    if queries.dtype in HALF and queries.device.type == "cpu" and not autocast_enabled("cpu"):
        upcast_mask = None if mask is None else mask.float()
        return attention(queries.float(), keys.float(), values.float(), upcast_mask).to(queries.dtype)
    if not torch.compiler.is_compiling() and any(
        forward_ad.unpack_dual(each).tangent is not None for each in (queries, keys, values)
    ):
        with allow_double_backward():
            return F.scaled_dot_product_attention(queries, keys, values, mask)
    return F.scaled_dot_product_attention(queries, keys, values, mask)


@contextmanager
def allow_double_backward() -> Iterator[None]:
    """Within, encoders are computed so that their gradients have gradients (`create_graph=True`).

    Torch's fused attention has no second derivative; its plain one, which is taken here, has.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


def differentiable_once(x: Tensor) -> Tensor:
    """Returns `x`; a backward pass with `create_graph=True` through it raises an error that says what to do.

    Not within `allow_double_backward`, nor wherever else torch's plain attention is the only one allowed.
    """
    fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
    if not fused or not x.requires_grad or torch.compiler.is_compiling():
        return x
    return _DifferentiableOnce.apply(x)


class _DifferentiableOnce(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "CLIP's fused attention has gradients, but no gradients of gradients (create_graph=True). "
                "Compute the forward pass within prompted_clip.allow_double_backward(), which costs time "
                "and memory."
            )
        return grad_out

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


def add_to(out: Tensor, residual: Tensor) -> Tensor:
    """`residual + out`, in the memory of `out`, which nobody else may hold.

    A tensor that is freed between two that the backward pass keeps seems to leave a hole in a CPU's heap.
    With this, and with the early release of what was normed, the process grows by 0.37 GiB in a step of MaPLe
    with 19 classes, and by 0.43 without them.
    """
    # Autocast multiplies in half precision, and the residual is float32; no view that an autograd function
    # returns may be written to.
    in_place = out.dtype == residual.dtype and not out._is_view()
    return out.add_(residual) if in_place else residual + out


def is_unmodified(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module does what its class does, and nothing more.

    Not so where it is of a subclass (parametrizations make one), has hooks, or its `forward` was replaced or
    compiled. Hooks for all modules (`register_module_forward_hook`) do not count: they see what is called.
    """
    return (
        type(module) is kind
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not module._backward_pre_hooks
        and not module._backward_hooks
        and "forward" not in vars(module)
        and getattr(module, "_compiled_call_impl", None) is None
    )


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a device; on "meta", for example, it never is."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
