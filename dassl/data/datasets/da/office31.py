"""Office-31, Saenko et al., Adapting Visual Category Models to New Domains, ECCV 2010."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY

from .office_home import OfficeHome


@DATASET_REGISTRY.register()
class Office31(OfficeHome):
    """31 classes in 3 domains; images are `<ROOT>/office31/<domain>/<class>/<image>`."""

    dataset_dir = "office31"
    domains = ("amazon", "webcam", "dslr")

    def _class_name(self, folder: str) -> str:
        return folder
