"""Data: datasets, samplers, transforms, and the manager that makes loaders of them.

Names are imported when they are used: transforms need torchvision, which takes seconds to import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dassl.data.data_manager import LOADER_REGISTRY, DataManager, DatasetWrapper, build_data_loader

__all__ = ["LOADER_REGISTRY", "DataManager", "DatasetWrapper", "build_data_loader"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dassl.data import data_manager

        return getattr(data_manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
