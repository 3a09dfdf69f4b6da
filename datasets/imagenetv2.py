"""`ImageNetV2` under its old module name, for datasets and scripts written for CoOp."""

from datasets.catalog import ImageNetV2 as ImageNetV2
