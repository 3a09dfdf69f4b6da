"""Datasets: lists of `Datum`, grouped into splits by `DatasetBase`, found by name in `DATASET_REGISTRY`."""

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.build import DATASET_REGISTRY, build_dataset
from dassl.data.datasets.da import Office31, OfficeHome, VisDA17

__all__ = [
    "DATASET_REGISTRY",
    "DatasetBase",
    "Datum",
    "Office31",
    "OfficeHome",
    "VisDA17",
    "build_dataset",
]
