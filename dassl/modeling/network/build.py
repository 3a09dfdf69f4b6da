"""The registry of networks."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Builds a network by its name; `kwargs` go to it. Raises ValueError for an unknown name."""
    network_class = NETWORK_REGISTRY.get(name)
    if verbose:
        print(f"Network: {name}")
    return network_class(**kwargs)
