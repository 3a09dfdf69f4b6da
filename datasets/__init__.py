"""The benchmarks, and own data. Importing this package registers them."""

from datasets import catalog as catalog
from datasets import own as own
from datasets import shapes as shapes
