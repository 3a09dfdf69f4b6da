"""Datasets for domain adaptation: labelled images of the source domains, unlabelled ones of the target."""

from .office31 import Office31
from .office_home import OfficeHome
from .visda17 import VisDA17

__all__ = ["Office31", "OfficeHome", "VisDA17"]
