"""Attention of the classes' own tokens, whose number differs from class to class.

The tokens stand one behind the other, without padding, and attention needs them in a grid `(class longest)`.
One grid for all classes would mostly be padding (ImageNet's names have 1 to 11 tokens, and 2 in the mean), so
classes of about equal length share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

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

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues) -> Tensor:
        """Attention of each token to the prefix, and to its own class up to itself.

        Args:
            queries, keys, values: of all grids' tokens, `(group head token head_width)`.
            prefix: its keys and its values, each `(group head prefix head_width)`.

        Returns:
            `(group head token head_width)`, of this grid's tokens.
        """
        attended = F.scaled_dot_product_attention(
            self._put(queries), self._put(keys, prefix[0]), self._put(values, prefix[1]), self.sees
        )
        cells = attended.unflatten(0, (len(queries), -1)).transpose(1, 2).flatten(2, 3)
        return cells if self.cells is None else cells.index_select(2, self.cells)

    def attend_from_last(self, queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues) -> Tensor:
        """The same for the last token of each class: queries and result `(group head class head_width)`."""
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2).flatten(0, 1)[:, :, None],
            self._put(keys, prefix[0]),
            self._put(values, prefix[1]),
            None if self.last_sees is None else self.last_sees.repeat(len(queries), 1)[:, None, None],
        )
        return attended[:, :, 0].unflatten(0, (len(queries), -1)).transpose(1, 2)

    def _put(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """This grid's tokens in their cells, behind the prefix's.

        `(group head token head_width)` → `(group·class head length head_width)`.
        """
        x = x[:, :, self.start : self.stop]
        if self.tokens is not None:
            x = x.index_select(2, self.tokens)
        x = x.unflatten(2, (self.classes, self.longest)).transpose(1, 2)
        if prefix is not None:
            x = torch.cat([prefix[:, None].expand(-1, self.classes, -1, -1, -1), x], dim=3)
        return x.flatten(0, 1)


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
