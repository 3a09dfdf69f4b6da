"""`UCF101` under its old module name, for datasets and scripts written for CoOp."""

from datasets.catalog import UCF101 as UCF101
