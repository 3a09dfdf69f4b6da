"""The benchmarks, and own data. Importing this package registers them."""

from datasets import catalog as catalog
from datasets import hub as hub
from datasets import own as own
from datasets import own_table as own_table
from datasets import shapes as shapes
