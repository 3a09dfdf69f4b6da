"""VisDA-2017, from drawn to real images, Peng et al., https://arxiv.org/abs/1710.06924."""

from __future__ import annotations

import os.path as osp

from yacs.config import CfgNode

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.build import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class VisDA17(DatasetBase):
    """12 classes in 2 domains, whose images `<ROOT>/visda17/{train,validation}/image_list.txt` lists.

    A line of a list is `<class>/<image> <label>`. The labelled domain is always synthetic, the other real.
    """

    dataset_dir = "visda17"
    domains = ("synthetic", "real")

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = osp.join(osp.abspath(osp.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        synthetic, real = self._read_data("synthetic"), self._read_data("real")
        super().__init__(train_x=synthetic, train_u=real, test=list(real))

    def _read_data(self, dname: str) -> list[Datum]:
        """All images of a domain; each is of domain 0, as there is one source."""
        folder = osp.join(self.dataset_dir, "train" if dname == "synthetic" else "validation")
        items = []
        with open(osp.join(folder, "image_list.txt"), encoding="utf-8") as file:
            for line in file:
                image, label = line.strip().rsplit(" ", 1)
                items.append(Datum(osp.join(folder, image), int(label), 0, image.split("/")[0]))
        return items
