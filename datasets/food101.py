"""`Food101` under its old module name, for datasets and scripts written for CoOp."""

from datasets.catalog import Food101 as Food101
