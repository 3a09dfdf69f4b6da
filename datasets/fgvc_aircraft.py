"""`FGVCAircraft` under its old module name, for datasets and scripts written for CoOp."""

from datasets.catalog import FGVCAircraft as FGVCAircraft
