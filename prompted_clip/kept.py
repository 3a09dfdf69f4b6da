"""What comes before the first learned tensor is the same in each step: it is computed once, and kept."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapters
from .prompting import Prompts

BLOCK = re.compile(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.")
AFTER_BLOCKS = ("ln_final.", "text_projection", "visual.ln_post.", "visual.proj")


def constant_blocks(prompts: Prompts, adapters: Adapters, blocks: int) -> int:
    """How many blocks of an encoder stand before the first one that a method puts something into."""
    first = blocks if prompts.tokens is None else min(blocks, prompts.first_block)
    first = min([first, *(k for k, tokens in enumerate(prompts.deep, 1) if tokens is not None)])
    first = min([first, *(k for k, adapter in enumerate(adapters.blocks) if adapter is not None)])
    for name in adapters.tensors:
        if not name.startswith(AFTER_BLOCKS):
            found = BLOCK.match(name)
            first = min(first, int(found[1]) if found else 0)
    return first


class Kept:
    """Tensors that are computed from frozen ones alone, until one of these is replaced or written into.

    What is written through `.data` is not noticed. A copy keeps nothing.

    Attributes:
        keeps_fake: whether tensors without values are kept, too: for one who counts operations in a mode of
            such tensors, and throws the model away with it.
    """

    keeps_fake = False

    def __init__(self) -> None:
        self._sources: list[Any] = []
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, sources: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns; kept where all `sources` are frozen.

        Args:
            key: of all else that it depends on.
        """
        if any(each.requires_grad or each.is_inference() for each in sources) or is_traced():
            return compute()
        known = [(reference(), place, version) for reference, place, version in self._sources]
        now = [(each, each.data_ptr(), each._version) for each in sources]
        if [(id(each), *rest) for each, *rest in known] != [(id(each), *rest) for each, *rest in now]:
            self._tensors.clear()
            self._sources = [(weakref.ref(each), place, version) for each, place, version in now]
        device = sources[0].device.type
        key = (key, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        if key not in self._tensors:
            if device == "cuda" and torch.cuda.is_current_stream_capturing():
                return compute()  # its memory would belong to the graph
            with torch.inference_mode(False), torch.no_grad():
                tensor = compute()
            if type(tensor) is not Tensor and not self.keeps_fake:  # of a mode that only pretends to compute
                return compute()
            self._tensors[key] = tensor
        return self._tensors[key]

    def __deepcopy__(self, memo: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> Any:
        return Kept, ()


@dataclass(frozen=True)
class KeptImages:
    """A batch of images that an image encoder has run as far as nothing learns: taken in place of pixels.

    Attributes:
        numbers: of the images, `(batch)`; `(view batch)` for a method that takes several views.
        block: that they enter next, counted from 0.
        all_states: of all images that are kept, `(image length width)`; of block 0 the embeddings, before
            `ln_pre`.
        all_features: gives CLIP's own features of all of them, `(image feature)`, of any norm.
    """

    numbers: Tensor
    block: int
    all_states: Tensor
    all_features: Callable[[], Tensor]

    @property
    def states(self) -> Tensor:
        """`(batch length width)`."""
        return self.all_states.index_select(0, self.numbers)

    @property
    def features(self) -> Tensor:
        """CLIP's own, `(batch feature)`, of any norm."""
        return self.all_features().index_select(0, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, view: int) -> KeptImages:
        return replace(self, numbers=self.numbers[view])

    # As of the tensors that a CUDA graph replays a step with.

    @property
    def shape(self) -> torch.Size:
        return self.numbers.shape

    def clone(self) -> KeptImages:
        return replace(self, numbers=self.numbers.clone())

    def copy_(self, other: KeptImages) -> None:
        self.numbers.copy_(other.numbers)


def is_traced() -> bool:
    """Whether someone records the computation, for whom it has to be whole."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
