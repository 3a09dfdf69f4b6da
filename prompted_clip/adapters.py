"""What a method adds to CLIP's blocks, or puts in place of CLIP's tensors; owned by its learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from .errors import UserError

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockAdapter:
    """What is added inside one transformer block; None for nothing.

    Each is a function, or a module of the learner, that maps positions one by one, `(... width)` →
    `(... width)`: the text encoder computes a prefix that all classes share once, and a last block only
    computes the positions that are read. Dropout in it draws one mask for the shared prefix.

    Attributes:
        query, key, value: of the normed input `ln_1(x)`, added to each projection before the heads are split.
        out: of the joined heads, added to the attention's output projection.
        mlp: of `ln_2(h)`, added beside the MLP, where `h` is the output of the attention's residual.
        block: of the block's input `x` and of `ln_1(x)`, added beside the whole block.
    """

    query: Map | None = None
    key: Map | None = None
    value: Map | None = None
    out: Map | None = None
    mlp: Map | None = None
    block: Callable[[Tensor, Tensor], Tensor] | None = None

    def is_in_attention(self) -> bool:
        """Whether something is added inside the attention."""
        return any(each is not None for each in (self.query, self.key, self.value, self.out))


@dataclass(frozen=True)
class Adapters:
    """What a method adds to one encoder.

    Attributes:
        blocks: the adapter of each block from the first on; None, or none at all, for a block without one.
        tensors: tensors to compute with instead of CLIP's, by CLIP's names, such as
            `transformer.resblocks.0.ln_1.weight` or `visual.ln_post.bias`; each of the shape of CLIP's.
    """

    blocks: Sequence[BlockAdapter | None] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def put_at(root: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    """Has `root` own a module or a parameter under a dotted name, as CLIP's modules have them."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    setattr(root, last, value)


@contextmanager
def replaced_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, `module` computes with `tensors`, by the names of its state dict; then with its own again.

    Raises:
        ValueError: the module has no such parameter, or one of another shape.
    """
    places = []
    for name, tensor in tensors.items():
        path, _, key = name.rpartition(".")
        try:
            owner = module.get_submodule(path)
            own = owner._parameters[key]
        except (AttributeError, KeyError):
            raise UserError(f"Adapters.tensors[{name!r}]: CLIP has no parameter of that name.") from None
        if own is None or own.shape != tensor.shape:
            shape = None if own is None else tuple(own.shape)
            raise UserError(f"Adapters.tensors[{name!r}] is {tuple(tensor.shape)}; CLIP's is {shape}.")
        places.append((owner._parameters, key, own, tensor))
    try:
        for parameters, key, _, tensor in places:
            # As torch.func.functional_call does; what is learned is float32, and is cast where it enters.
            parameters[key] = tensor.to(parameters[key].dtype)  # type: ignore
        yield
    finally:
        for parameters, key, own, _ in places:
            parameters[key] = own
