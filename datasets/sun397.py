"""`SUN397` under its old module name, for datasets and scripts written for CoOp."""

from datasets.catalog import SUN397 as SUN397
