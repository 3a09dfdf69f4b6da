"""What a backbone is."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """A network from images to features; a subclass sets `_out_features`."""

    _out_features: int

    @property
    def out_features(self) -> int:
        """Width of the features."""
        return self._out_features
