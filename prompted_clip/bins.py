"""Attention of the classes' own tokens, whose number differs from class to class.

A class has a few tokens, and to attend class by class would be thousands of calls with next to nothing to do.
So neighbouring classes share a bin: a row of tokens, which attend to each other in one call, and a mask keeps
classes apart. What is computed in vain is little beside what the blocks do with each token. All bins have
equal length, filled up with padding, so that they are a view of the tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .kernels import attention

# Tokens of a bin; and up to how many need no more than one. A GPU minds small calls more than work.
BIN_ON_CPU, BIN = 64, 128
ONE_BIN_ON_CPU, ONE_BIN = 128, 512
ALIGNED = 16  # so many elements apart are the rows of a mask, as a GPU's kernels want them
PREFIX, PADDING = -1, -2  # of what is no class

KeysValues = tuple[Tensor, Tensor]


def pack(lengths: Sequence[int], on_cpu: bool) -> tuple[int, list[int]]:
    """How long a bin is, and at which row of all bins each class begins; with as little padding as can be.

    Args:
        lengths: tokens of each class, which stand one behind the other.
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


@dataclass(frozen=True)
class Layout:
    """The rows in which the own tokens of some classes stand, bin after bin.

    Attributes:
        bins, size: their number, and the rows of each.
        rows: of each token, `(token)`.
        tokens: the token that stands in each row, `(row)`; in padding, the first.
        of_class: `(row)`; or `PADDING`.
        place: in the sentence, `(row)`.
        ends: rows of EOT, `(class)`.
        classes: those of each bin, as many in each, `(slot)`; where there are fewer, the first.
        slots: of each class among them, `(class)`.
        attentions: made so far, by the number of prompts that stand last, and type.
    """

    bins: int
    size: int
    rows: Tensor
    tokens: Tensor
    of_class: Tensor
    place: Tensor
    ends: Tensor
    classes: Tensor
    slots: Tensor
    attentions: dict[tuple[int, torch.dtype], Attention] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, lengths: Sequence[int], prefix: int, device: torch.device) -> Layout:
        """Of classes with so many tokens, which follow the prefix."""
        size, starts = pack(lengths, device.type == "cpu")
        bins = -(-(starts[-1] + lengths[-1]) // size) if starts else 0
        tokens = [
            (number, start + offset, prefix + offset)
            for number, (start, length) in enumerate(zip(starts, lengths, strict=True))
            for offset in range(length)
        ]
        classes, rows, place = torch.tensor(tokens, dtype=torch.long).view(-1, 3).unbind(dim=1)
        ends = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
        held = Counter(start // size for start in starts)  # classes of each bin
        most = max(held.values(), default=0)
        slots = [number * most + slot for number in range(bins) for slot in range(held[number])]
        of_slots = [0] * (bins * most)
        for number, slot in enumerate(slots):
            of_slots[slot] = number

        def in_rows(values: Tensor, padding: int) -> Tensor:
            return torch.full((bins * size,), padding).index_copy(0, rows, values).to(device)

        def placed(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long).to(device)

        return cls(
            bins,
            size,
            rows=rows.to(device),
            tokens=in_rows(torch.arange(len(rows)), 0),
            of_class=in_rows(classes, PADDING),
            place=in_rows(place, 0),
            ends=placed(ends),
            classes=placed(of_slots),
            slots=placed(slots),
        )

    def attention(self, places: Tensor, ending: int, like: Tensor) -> Attention:
        """How these tokens attend, and the prefix behind them; made once, for each type.

        Args:
            places: in the sentence, of the prefix's tokens as they stand, see `prompts_last`.
            ending: how many of them are prompts that stand last.
            like: of the type that is computed in.
        """
        key = ending, like.dtype
        if key not in self.attentions:
            with torch.inference_mode(False):  # what is made in inference mode is of no use in training
                self.attentions[key] = self._attention(places, like)
        return self.attentions[key]

    def _attention(self, places: Tensor, like: Tensor) -> Attention:
        if self.bins <= 1:
            prefix = torch.full_like(places, PREFIX)
            of_class, place = torch.cat([self.of_class, prefix]), torch.cat([self.place, places])
            return AtOnce(additive(sees(of_class, place), like), self.ends)
        among_prefix = additive(places <= places[:, None], like)
        return InBins(self, among_prefix, self._mask(len(places), like))

    def _mask(self, prefix: int, like: Tensor) -> Tensor:
        """`(bin 1 size, size + prefix)`: the prefix is last, and seen by all."""
        shape = (self.bins, self.size)
        among = sees(self.of_class.view(shape), self.place.view(shape))
        seen = torch.cat([among, among.new_ones(*shape, prefix)], dim=-1)
        return additive(seen, like)[:, None]


def prompts_last(prefix: Tensor, ending: int) -> Tensor:
    """The prefix in the order in which it stands: of `ending` prompts behind SOS, these are last."""
    return torch.cat([prefix[:1], prefix[1 + ending :], prefix[1 : 1 + ending]])


def sees(of_class: Tensor, place: Tensor) -> Tensor:
    """Whether a token, `(... token)`, sees another: of its class or of the prefix, and not behind it."""
    same = (of_class[..., None, :] == of_class[..., None]) | (of_class == PREFIX)[..., None, :]
    return same & (place[..., None, :] <= place[..., None])


def additive(seen: Tensor, like: Tensor) -> Tensor:
    """The mask that is added to logits."""
    *rows, columns = seen.shape
    padded = -(-columns // ALIGNED) * ALIGNED
    return like.new_zeros(*rows, padded)[..., :columns].masked_fill_(~seen, -torch.inf)


class Attention(Protocol):
    """How tokens of classes, and of the prefix behind them, attend in each block.

    Queries, keys and values are `(group head token head_width)`, as are results. A prefix that is given is
    not among them; that which is among them sees itself.
    """

    def of_tokens(
        self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None
    ) -> Tensor: ...

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        """Of the last token of each class alone, and their queries."""
        ...


@dataclass(frozen=True)
class AtOnce:
    """All tokens and the prefix attend in one call.

    Attributes:
        mask: `(token, token)`; the prefix is last, given or not.
        ends: the last token of each class, `(class)`.
    """

    mask: Tensor
    ends: Tensor

    def of_tokens(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        return self._attend(queries, keys, values, given, self.mask[: queries.shape[2]])

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        return self._attend(queries, keys, values, given, self.mask[self.ends])

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None, mask: Tensor
    ) -> Tensor:
        if given is not None:
            keys, values = torch.cat([keys, given[0]], dim=2), torch.cat([values, given[1]], dim=2)
        return attention(queries, keys, values, mask)


@dataclass(frozen=True)
class InBins:
    """Each bin attends to itself and to the prefix, which attends to itself.

    Attributes:
        prefix_mask: `(prefix prefix)`.
        mask: `(bin 1 size, size + prefix)`.
    """

    layout: Layout
    prefix_mask: Tensor
    mask: Tensor

    def of_tokens(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        count = self.layout.bins * self.layout.size
        keys, values, prefix = self._parts(keys, values, given)
        attended = [self._of_bins(queries[:, :, :count], keys, values, prefix, self.mask)]
        if given is None:
            of_prefix = queries[:, :, count:]
            mask = self.prefix_mask[: of_prefix.shape[2]]
            of_prefix = attention(of_prefix, *prefix, mask)
            attended.append(of_prefix.transpose(1, 2))
        return torch.cat(attended, dim=1).transpose(1, 2)

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        layout = self.layout
        rows = layout.ends[layout.classes]  # of the classes of each bin, as many in each
        mask = self.mask[:, 0].flatten(0, 1)[rows].unflatten(0, (layout.bins, 1, -1))
        queries = queries.index_select(2, layout.classes)
        attended = self._of_bins(queries, *self._parts(keys, values, given), mask)
        return attended.transpose(1, 2).index_select(2, layout.slots)

    def _of_bins(
        self, queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues, mask: Tensor
    ) -> Tensor:
        """`(group token head head_width)`."""
        groups = len(queries)
        queries, keys, values = (self._by_bin(each) for each in (queries, keys, values))
        bins = self.layout.bins
        before = [each[:, None].expand(-1, bins, -1, -1, -1).flatten(0, 1) for each in prefix]
        keys, values = (torch.cat(each, dim=2) for each in zip((keys, values), before, strict=True))
        attended = attention(queries, keys, values, mask.repeat(groups, 1, 1, 1))
        return attended.transpose(1, 2).unflatten(0, (groups, -1)).flatten(1, 2)

    def _by_bin(self, x: Tensor) -> Tensor:
        """`(group head token head_width)` → `(group·bin head size head_width)`."""
        return x.unflatten(2, (self.layout.bins, -1)).transpose(1, 2).flatten(0, 1)

    def _parts(
        self, keys: Tensor, values: Tensor, given: KeysValues | None
    ) -> tuple[Tensor, Tensor, KeysValues]:
        if given is not None:
            return keys, values, given
        count = self.layout.bins * self.layout.size
        return keys[:, :, :count], values[:, :, :count], (keys[:, :, count:], values[:, :, count:])
