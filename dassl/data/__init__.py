"""Data: datasets, samplers, transforms, and the manager that makes loaders of them."""

from dassl.data.data_manager import DataManager, DatasetWrapper, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]
