"""The registry of backbones."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Builds a backbone by its name; `kwargs` go to it. Raises ValueError for an unknown name."""
    backbone_class = BACKBONE_REGISTRY.get(name)
    if verbose:
        print(f"Backbone: {name}")
    return backbone_class(**kwargs)
