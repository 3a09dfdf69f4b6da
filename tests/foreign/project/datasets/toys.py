"""Folders of images, one a class; few-shot images are kept as a pickle of Datums."""

import os
import pickle

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import listdir_nohidden, mkdir_if_missing


@DATASET_REGISTRY.register()
class Toys(DatasetBase):
    dataset_dir = "toys"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)
        train, test = self.read_data("train"), self.read_data("test")

        preprocessed = os.path.join(
            self.split_fewshot_dir, f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}.pkl"
        )
        if os.path.exists(preprocessed):
            print(f"Loading preprocessed few-shot data from {preprocessed}")
            with open(preprocessed, "rb") as file:
                train = pickle.load(file)["train"]
        else:
            train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
            print(f"Saving preprocessed few-shot data to {preprocessed}")
            with open(preprocessed, "wb") as file:
                pickle.dump({"train": train}, file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=train, val=test[::2], test=test)

    def read_data(self, split):
        folder = os.path.join(self.dataset_dir, split)
        items = []
        for label, name in enumerate(listdir_nohidden(folder, sort=True)):
            for image in listdir_nohidden(os.path.join(folder, name), sort=True):
                path = os.path.join(folder, name, image)
                items.append(Datum(impath=path, label=label, classname=name))
        return items
