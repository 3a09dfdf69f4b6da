"""The registry of heads."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry

HEAD_REGISTRY = Registry("HEAD")


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Builds a head by its name; `kwargs` go to it. Raises ValueError for an unknown name."""
    head_class = HEAD_REGISTRY.get(name)
    if verbose:
        print(f"Head: {name}")
    return head_class(**kwargs)
