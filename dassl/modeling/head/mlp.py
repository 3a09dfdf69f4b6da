"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dassl.utils.tools import check_availability
from prompted_clip.errors import UserError

from .build import HEAD_REGISTRY

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
}


class MLP(nn.Module):
    """Linear, batch norm, activation and dropout for each hidden layer.

    Args:
        in_features: width of the features that come in.
        hidden_layers: width of each layer; a number for a single one.
        activation: "relu" or "leaky_relu".
        bn: with batch norm.
        dropout: share that is dropped; 0 for no dropout.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: Sequence[int] | int = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise UserError(
                "MODEL.HEAD.HIDDEN_LAYERS is empty; an mlp head needs at least one width, as in (512,)"
            )
        check_availability(activation, ACTIVATIONS, "MODEL.HEAD.ACTIVATION")
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.out_features = in_features
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """From features `(batch in_features)` to `(batch out_features)`."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    return MLP(**kwargs)
