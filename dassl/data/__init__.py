"""Data: datasets, samplers, transforms, and the manager that makes loaders of them."""

from dassl.data.data_manager import LOADER_REGISTRY, DataManager, DatasetWrapper, build_data_loader

__all__ = ["LOADER_REGISTRY", "DataManager", "DatasetWrapper", "build_data_loader"]
