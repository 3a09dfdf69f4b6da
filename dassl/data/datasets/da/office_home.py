"""Office-Home, Venkateswara et al., CVPR 2017, https://arxiv.org/abs/1706.07522."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

from yacs.config import CfgNode

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.utils import listdir_nohidden


@DATASET_REGISTRY.register()
class OfficeHome(DatasetBase):
    """65 classes in 4 domains; images are `<ROOT>/office_home/<domain>/<class>/<image>`."""

    dataset_dir = "office_home"
    domains: Sequence[str] = ("art", "clipart", "product", "real_world")

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = osp.join(osp.abspath(osp.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        source = self._read_data(cfg.DATASET.SOURCE_DOMAINS)
        target = self._read_data(cfg.DATASET.TARGET_DOMAINS)
        super().__init__(train_x=source, train_u=target, test=list(target))

    def _read_data(self, input_domains: Sequence[str]) -> list[Datum]:
        """All images of some domains, numbered as given; classes are numbered in the order of their names."""
        items = []
        for domain, name in enumerate(input_domains):
            folder = osp.join(self.dataset_dir, name)
            for label, class_name in enumerate(listdir_nohidden(folder, sort=True)):
                for image in listdir_nohidden(osp.join(folder, class_name), sort=True):
                    path = osp.join(folder, class_name, image)
                    items.append(Datum(path, label, domain, self._class_name(class_name)))
        return items

    def _class_name(self, folder: str) -> str:
        return folder.lower()
