"""`dassl.data.own_data` under its old module name."""

from dassl.data.own_data import ClassNames as ClassNames
from dassl.data.own_data import OwnDataset as OwnDataset
from dassl.data.own_data import OwnFolder as folder  # noqa: F401
