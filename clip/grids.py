"""Attention of the classes' own tokens, whose number differs from class to class.

The tokens stand one behind the other, without padding, and attention needs them in a grid `(class longest)`.
One grid for all classes would mostly be padding (ImageNet's names have 1 to 11 tokens, and 2 in the mean), so
classes of about equal length share one. Where there are few tokens, nothing of this pays: they attend in one
go, with a mask that keeps classes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Cells of padding that a grid may have: so few cost less than one more grid.
MOST_PADDING = 256

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Grid:
    """Neighbouring classes, whose tokens are those from `start` to `stop`.

    Attributes:
        longest: tokens of its longest class.
        sees: what the tokens of a class attend to, the prefix first, `(longest, prefix + longest)`.
        tokens: the token of each cell, counted from `start`, `(class·longest)`: behind the last of a class it
            is that one again, which nobody attends to there. None where the tokens fill the grid.
        cells: the cell of each token, `(token)`; None as well.
        last_sees: what the last token of each class attends to, `(class, prefix + longest)`; None for all,
            as in a grid that is full.
    """

    start: int
    stop: int
    classes: int
    longest: int
    sees: Tensor
    tokens: Tensor | None = None
    cells: Tensor | None = None
    last_sees: Tensor | None = None

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, prefix_logits: Tensor, prefix_values: Tensor
    ) -> Tensor:
        """Attention of each token to the prefix, and to its own class up to itself.

        Args:
            queries: of all grids' tokens, scaled, `(group head token head_width)`.
            keys, values: of the same shape.
            prefix_logits: `(group head token prefix)`.
            prefix_values: `(group head prefix head_width)`.

        Returns:
            `(group head token head_width)`, of this grid's tokens.
        """
        logits = self._cells(queries) @ self._cells(keys).transpose(-1, -2)
        prefix = prefix_values.shape[2]
        logits = logits.masked_fill(~self.sees[:, prefix:], -torch.inf)
        weights = torch.cat([self._cells(prefix_logits), logits], dim=-1).softmax(dim=-1)
        to_prefix, to_own = weights.split([prefix, self.longest], dim=-1)
        attended = (to_own @ self._cells(values)).flatten(2, 3) + to_prefix.flatten(2, 3) @ prefix_values
        return attended if self.cells is None else attended.index_select(2, self.cells)

    def attend_from_last(self, queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues) -> Tensor:
        """The same for the last token of each class: queries and result `(group head class head_width)`.

        Args:
            keys, values: of all grids' tokens, `(group head token head_width)`.
            prefix: its keys and its values, each `(group head prefix head_width)`.
        """
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2).flatten(0, 1)[:, :, None],
            self._with_prefix(keys, prefix[0]),
            self._with_prefix(values, prefix[1]),
            None if self.last_sees is None else self.last_sees.repeat(len(queries), 1)[:, None, None],
        )
        return attended[:, :, 0].unflatten(0, (len(queries), -1)).transpose(1, 2)

    def _cells(self, x: Tensor) -> Tensor:
        """`(group head token n)` → this grid's, in their cells: `(group head class longest n)`."""
        x = x[:, :, self.start : self.stop]
        if self.tokens is not None:
            x = x.index_select(2, self.tokens)
        return x.unflatten(2, (self.classes, self.longest))

    def _with_prefix(self, x: Tensor, prefix: Tensor) -> Tensor:
        """This grid's cells behind the prefix: `(group·class head length head_width)`."""
        before = prefix[:, None].expand(-1, self.classes, -1, -1, -1)
        return torch.cat([before, self._cells(x).transpose(1, 2)], dim=3).flatten(0, 1)


class Attention(Protocol):
    """How tokens of classes, and of the prefix behind them, attend in each block.

    Queries, keys and values are `(group head token head_width)`, as are results. A prefix that is given is
    not among them; that which is among them sees itself.
    """

    def of_tokens(
        self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None
    ) -> Tensor: ...

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        """Of the last token of each class, whose queries alone are given."""
        ...


@dataclass(frozen=True)
class AtOnce:
    """All tokens attend in one go, and a mask keeps classes apart.

    Attributes:
        mask: added to the logits, `(token, token)`; the prefix is last, given or not.
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
        return F.scaled_dot_product_attention(queries, keys, values, mask)


@dataclass(frozen=True)
class InGrids:
    """Classes of about equal length attend in a grid, to the prefix and to themselves.

    Attributes:
        count: tokens of the classes, which the prefix follows if it is not given.
        prefix_sees: what the prefix sees of itself, `(prefix prefix)`.
    """

    grids: list[Grid]
    count: int
    prefix_sees: Tensor

    def of_tokens(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        keys, values, prefix = self._parts(keys, values, given)
        own = queries[:, :, : self.count] * queries.shape[-1] ** -0.5
        prefix_logits = own @ prefix[0].transpose(-1, -2)  # without a copy of the prefix for each class
        attended = [grid.attend(own, keys, values, prefix_logits, prefix[1]) for grid in self.grids]
        if given is None:
            of_prefix = queries[:, :, self.count :]
            sees = self.prefix_sees[: of_prefix.shape[2]]
            attended.append(F.scaled_dot_product_attention(of_prefix, *prefix, sees))
        return torch.cat(attended, dim=2)

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor, given: KeysValues | None) -> Tensor:
        keys, values, prefix = self._parts(keys, values, given)
        each = zip(self.grids, queries.split([grid.classes for grid in self.grids], dim=2), strict=True)
        return torch.cat([grid.attend_from_last(own, keys, values, prefix) for grid, own in each], dim=2)

    def _parts(
        self, keys: Tensor, values: Tensor, given: KeysValues | None
    ) -> tuple[Tensor, Tensor, KeysValues]:
        if given is not None:
            return keys, values, given
        count = self.count
        return keys[:, :, :count], values[:, :, :count], (keys[:, :, count:], values[:, :, count:])


def similar_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cuts classes into neighbours for a grid each: number of classes, and length of the longest.

    Args:
        lengths: tokens of each class, longest first.
    """
    grids: list[tuple[int, int]] = []
    padding = MOST_PADDING + 1  # the first class begins a grid
    for length, equal in groupby(lengths):
        count = len(list(equal))
        longest = grids[-1][1] if grids else length
        padding += count * (longest - length)
        if padding > MOST_PADDING:
            grids.append((count, length))
            padding = 0
        else:
            grids[-1] = (grids[-1][0] + count, longest)
    return grids
