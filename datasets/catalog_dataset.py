"""`dassl.data.few_shot_dataset` under its old names."""

from dassl.data.few_shot_dataset import FewShotDataset as CatalogDataset

__all__ = ["CatalogDataset"]
