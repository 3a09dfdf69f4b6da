"""`Caltech101` under its old module name, for datasets and scripts written for CoOp."""

from datasets.catalog import Caltech101 as Caltech101
