"""The benchmarks, registered by importing this package. Readers of own data lie in `dassl/data`."""

from dassl.data import folder_index as index  # noqa: F401  (its name for benchmarks/startup.py)
from dassl.data import own_data as own_data
from dassl.data import own_hub as own_hub
from dassl.data import own_table as own_table
from datasets import catalog as catalog
from datasets import shapes as shapes
