"""Sequence packing: the classes' suffixes share rows of one input, and segment ids keep them apart.

A class has a few tokens of its own, and to attend class by class would be thousands of calls with next to
nothing to do. So neighbouring classes are packed into bins of equal size, which attend to themselves and to
the shared prefix in one call, under a mask. Padding costs little beside what the blocks do with each token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .ops import attention
from .transformer import Positions, take

# Tokens of a bin; and up to how many take one bin. A GPU minds small calls more than work.
BIN_ON_CPU, BIN = 64, 128
ONE_BIN_ON_CPU, ONE_BIN = 128, 512
ALIGNED = 16  # elements between the rows of a mask, as a GPU's kernels want them
PREFIX, PADDING = -1, -2  # segment ids of what is no class

Made = TypeVar("Made")


def pack(lengths: Sequence[int], on_cpu: bool) -> tuple[int, list[int]]:
    """The size of a bin, and the row at which each class begins; with the least padding.

    Args:
        lengths: tokens of each class, which follow each other and are not cut.
    """
    total, least = sum(lengths), BIN_ON_CPU if on_cpu else BIN
    if total <= (ONE_BIN_ON_CPU if on_cpu else ONE_BIN):
        return total, _starts(lengths, total)[0]
    least = max([least, *lengths])
    size = min(range(least, least + least // 2), key=lambda size: _starts(lengths, size)[1])
    return size, _starts(lengths, size)[0]


def _starts(lengths: Sequence[int], size: int) -> tuple[list[int], int]:
    """The row at which each class begins in bins of that size, and the rows of all bins."""
    starts, row = [], 0
    for length in lengths:
        if row % size + length > size:  # it would not fit
            row += size - row % size
        starts.append(row)
        row += length
    return starts, -(-row // size) * size if row else 0


class PackedLayout:
    """Which token stands in which row: bin after bin of suffixes, then the shared prefix.

    Args:
        lengths: tokens of each whole sentence, longest first.
        shared: how many of them, from SOS on, all sentences share.
        order: the class of each sentence, `(sentence)`; "class" is its place in `lengths` below.

    Attributes:
        bins, size: the number of bins, and the rows of each.
        prefix_start: the first row of the prefix.
        segment_ids: the class of each row, `PREFIX` or `PADDING`: `(row)`.
        position_ids: its position in the sentence, `(row)`; 0 in padding.
        classes: which of all sentences has the token, `(row)`; any in the prefix and in padding.
        rows: the row of each position of each class, be it shared or the class's own: `(class position)`; 0
            after its end.
        last_rows: the row of EOT, `(class)`.
    """

    def __init__(self, lengths: Sequence[int], shared: int, order: Tensor) -> None:
        device = order.device
        self.shared = shared
        self.order = order
        self.size, starts = pack([length - shared for length in lengths], device.type == "cpu")
        self.bins = -(-(starts[-1] + lengths[-1] - shared) // self.size)
        self.prefix_start = self.bins * self.size
        segment_ids = [PADDING] * self.prefix_start + [PREFIX] * shared
        position_ids = [0] * self.prefix_start + list(range(shared))
        prefix = range(self.prefix_start, self.prefix_start + shared)
        rows = []
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            own = range(start, start + length - shared)
            segment_ids[own.start : own.stop] = [number] * len(own)
            position_ids[own.start : own.stop] = range(shared, length)
            rows.append([*prefix, *own, *[0] * (max(lengths) - length)])
        self.segment_ids = torch.tensor(segment_ids, device=device)
        self.position_ids = torch.tensor(position_ids, device=device)
        self.classes = order[self.segment_ids.clamp(min=0)]
        self.rows = torch.tensor(rows, device=device)
        last = [row[length - 1] for row, length in zip(rows, lengths, strict=True)]
        self.last_rows = torch.tensor(last, device=device)
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[PackedLayout], Made]) -> Made:
        """What `make` returns for this layout, made once, so that no device is waited for in each step."""
        if key not in self._made:
            with torch.inference_mode(False):  # a tensor made in inference mode is of no use in training
                self._made[key] = make(self)
        return self._made[key]

    def attention(self, like: Tensor) -> PackedAttention:
        """How its rows attend, in the dtype of `like`."""
        return self.once(("attention", like.dtype), lambda layout: PackedAttention(layout, like))

    def source_rows(self, other: PackedLayout, inserted: int) -> Tensor:
        """The row of this layout that holds what stands in each row of another: `(row)`.

        Args:
            inserted: tokens after SOS that only the other has; any row for these.
        """

        def make(_: PackedLayout) -> Tensor:
            positions = (other.position_ids - inserted * (other.position_ids > 0)).clamp(min=0)
            return self.rows[other.segment_ids.clamp(min=0), positions]

        return self.once(("source", other.shared, inserted), make)


class PackedAttention:
    """Attention of packed suffixes and their prefix; an `Attend` of a `Transformer`.

    Args:
        like: of the dtype that is computed in.
    """

    def __init__(self, layout: PackedLayout, like: Tensor) -> None:
        self.layout = layout
        segments, positions, start = layout.segment_ids, layout.position_ids, layout.prefix_start
        if layout.bins == 1:
            self.mask = additive_mask(allowed(segments, positions, segments, positions), like)
            return
        bins = (layout.bins, layout.size)
        of_bins, of_positions = segments[:start].view(bins), positions[:start].view(bins)
        of_prefix, prefix_positions = segments[start:], positions[start:]
        keys = torch.cat([of_bins, of_prefix.expand(layout.bins, -1)], dim=1)
        key_positions = torch.cat([of_positions, prefix_positions.expand(layout.bins, -1)], dim=1)
        self.mask = additive_mask(allowed(of_bins, of_positions, keys, key_positions), like)[:, None]
        self.prefix_mask = additive_mask(
            allowed(of_prefix, prefix_positions, of_prefix, prefix_positions), like
        )

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, positions: Positions | None = None
    ) -> Tensor:
        """`(group head row head_width)` each → the same, or some rows of suffixes alone."""
        layout, start = self.layout, self.layout.prefix_start
        if layout.bins == 1:
            mask = take(self.mask, positions, dim=0)
            return attention(take(queries, positions, dim=2), keys, values, mask)
        groups = len(queries)

        def by_bin(x: Tensor) -> Tensor:
            return x[:, :, :start].unflatten(2, (layout.bins, -1)).transpose(1, 2).flatten(0, 1)

        def with_prefix(x: Tensor) -> Tensor:
            prefix = x[:, None, :, start:].expand(-1, layout.bins, -1, -1, -1).flatten(0, 1)
            return torch.cat([by_bin(x), prefix], dim=2)

        mask = self.mask.repeat(groups, 1, 1, 1)
        attended = attention(by_bin(queries), with_prefix(keys), with_prefix(values), mask)
        attended = attended.transpose(1, 2).unflatten(0, (groups, -1)).flatten(1, 2)
        if positions is not None:
            return take(attended, positions).transpose(1, 2)
        prefix = attention(queries[:, :, start:], keys[:, :, start:], values[:, :, start:], self.prefix_mask)
        return torch.cat([attended, prefix.transpose(1, 2)], dim=1).transpose(1, 2)


def allowed(
    query_segments: Tensor, query_positions: Tensor, key_segments: Tensor, key_positions: Tensor
) -> Tensor:
    """Whether a query sees a key: of its segment or of the prefix, and not after it: `(... query key)`.

    Each argument is `(... token)`.
    """
    same = query_segments[..., :, None] == key_segments[..., None, :]
    seen = same | (key_segments == PREFIX)[..., None, :]
    return seen & (key_positions[..., None, :] <= query_positions[..., :, None])


def additive_mask(seen: Tensor, like: Tensor) -> Tensor:
    """The mask that is added to logits: 0 where a key is seen, else −inf."""
    *rows, columns = seen.shape
    padded = -(-columns // ALIGNED) * ALIGNED
    return like.new_zeros(*rows, padded)[..., :columns].masked_fill_(~seen, -torch.inf)
