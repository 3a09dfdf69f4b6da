"""The base class of datasets: reads the split, draws the shots, selects base or new classes."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Collection
from typing import Any

from dassl.data import folder_index, splits
from dassl.data.class_names import few
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.few_shot_list import Sample, read_sample
from dassl.data.locks import unfinished_folder
from dassl.data.splits import Shuffle, Split, to_datums, to_rows
from prompted_clip.errors import MissingFileError, UserError


class FewShotDataset(DatasetBase):
    """A dataset in a folder under `DATASET.ROOT`. Subclasses say what is in it, see `datasets/catalog.py`.

    Reads `DATASET.ROOT`, `DATASET.NUM_SHOTS` (-1: all training images), `DATASET.SUBSAMPLE_CLASSES` (all,
    base or new), `SEED`, and `DATASET.FEW_SHOT_LIST`, the `few_shot.json` of a run whose images are used
    whatever the shots and the seed are. Without it, the shots depend only on the split, `NUM_SHOTS` and
    `SEED`. `DATASET.REBUILD_INDEX` lists all folders again: see `folder_index.py`. The static methods are
    API: datasets written for CoOp call each other by them.

    Raises:
        FileNotFoundError: no such folder, or a split file that lists images that are not there.
        ValueError: a wrong setting or split file.
    """

    test_only = False  # nothing to train on: no shots are drawn, and `train_x` is empty

    # Relative here; absolute on an instance.
    dataset_dir = ""
    image_dir = ""
    split_file = ""
    template = "a photo of a {}."
    novel_labels: Collection[int] = ()  # the `new` labels; if empty, the second half

    def __init__(self, cfg: Any) -> None:
        name, shots, subsample = type(self).__name__, cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES
        if type(shots) is not int or (shots != -1 and shots < 1):
            raise UserError(
                f"DATASET.NUM_SHOTS is {shots!r}; allowed are 1 and more, or -1 for all training images."
            )
        splits.check_subsample(subsample)

        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, self.image_dir)
        self.split_path = os.path.join(self.dataset_dir, self.split_file)
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        if not os.path.isdir(self.dataset_dir):
            self._create()
        for folder in (self.dataset_dir, self.image_dir):
            if not os.path.isdir(folder):
                raise MissingFileError(
                    f"{name}: no folder {folder} (DATASET.ROOT is {cfg.DATASET.ROOT!r}). "
                    f"Expected are the images under {self.image_dir} and {self.beside_images()}."
                )

        # REBUILD_INDEX is this project's own key: other configurations lack it.
        with folder_index.opened(self.dataset_dir, getattr(cfg.DATASET, "REBUILD_INDEX", False)):
            split = self.find_split(random.Random(cfg.SEED).shuffle)
        self.sample = self._draw(split, cfg)
        if not self.test_only:
            print(
                f"Sample of all classes: {len(self.sample.train):,} images to train on, "
                f"{len(self.sample.val):,} to validate; sha256 {self.sample.sha256}"
            )
            self._print_short_classes()
        parts = (self.sample.train, self.sample.val, split.test)
        train_x, val_x, test_x = splits.subsample_classes(
            *(to_datums(rows, self.image_dir) for rows in parts),
            subsample=subsample,
            novel=self.novel_labels,
        )
        super().__init__(train_x=[] if self.test_only else train_x, val=val_x, test=test_x)

    def _draw(self, split: Split, cfg: Any) -> Sample:
        name, shots, seed = type(self).__name__, cfg.DATASET.NUM_SHOTS, cfg.SEED
        listed = getattr(cfg.DATASET, "FEW_SHOT_LIST", "")
        if self.test_only or (shots == -1 and not listed):
            return Sample(name, -1, seed, split.train, split.val)
        if listed:
            print(f"Reading the few-shot data from {listed}")
            return read_sample(listed, name, split)
        cache = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}.json")
        return Sample(name, shots, seed, *splits.few_shot(split.train, split.val, shots, seed, cache))

    def _print_short_classes(self) -> None:
        if self.sample.shots == -1:
            return
        counts = Counter((label, name) for _, label, name in self.sample.train)
        short = [f"{name} ({count})" for (_, name), count in counts.items() if count < self.sample.shots]
        if short:
            print(f"Fewer than {self.sample.shots} shots: {len(short)} classes have no more, {few(short)}")

    def make(self, folder: str) -> None:
        """Creates the dataset as `folder`, if the project can draw it; by default it does nothing."""

    def beside_images(self) -> str:
        """What the folder holds besides images, for error messages."""
        return f"the split file {self.split_path}"

    def make_split(self, shuffle: Shuffle) -> Split:
        """Splits the images of a folder that has no split file. `shuffle` shuffles a list in place."""
        raise MissingFileError(
            f"{type(self).__name__}: no split file {self.split_path}. Put the published one there."
        )

    def find_split(self, shuffle: Shuffle) -> Split:
        """Reads the split file; where there is none, makes the split and saves it."""
        if os.path.exists(self.split_path):
            print(f"Reading split from {self.split_path}")
            split = splits.load_split(self.split_path)
            splits.check_images(split, self.image_dir, self.split_path)
            return split
        split = self.make_split(shuffle)
        splits.check_labels(split, self.dataset_dir)
        splits.check_images(split, self.image_dir, self.dataset_dir)
        try:
            splits.write_shared_json(split._asdict(), self.split_path, self.dataset_dir, replace=False)
            print(f"Saved split to {self.split_path}")
        except FileExistsError:  # another process was faster: both use its split
            split = splits.load_split(self.split_path)
        except OSError as error:
            print(f"Split not saved, so a run with another seed will have another split: {error}")
        return split

    def _create(self) -> None:
        if type(self).make is FewShotDataset.make:
            return
        # Under another name until it is complete, so that a part of it is never used.
        with unfinished_folder(self.dataset_dir) as part:
            try:
                self.make(part)
                if os.path.isdir(part):
                    os.rename(part, self.dataset_dir)
            except OSError:
                if not os.path.isdir(self.dataset_dir):  # else another run was faster, with the same folder
                    raise

    @staticmethod
    def read_split(filepath: str, path_prefix: str) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Reads a split file whose paths start from `path_prefix`."""
        print(f"Reading split from {filepath}")
        split = splits.load_split(filepath)
        splits.check_images(split, path_prefix, filepath)
        return (
            to_datums(split.train, path_prefix),
            to_datums(split.val, path_prefix),
            to_datums(split.test, path_prefix),
        )

    @staticmethod
    def save_split(
        train: list[Datum], val: list[Datum], test: list[Datum], filepath: str, path_prefix: str
    ) -> None:
        """Writes a split file with paths relative to `path_prefix`."""
        split = Split(to_rows(train, path_prefix), to_rows(val, path_prefix), to_rows(test, path_prefix))
        splits.write_json(split._asdict(), filepath)
        print(f"Saved split to {filepath}")

    @staticmethod
    def split_trainval(trainval: list[Datum], p_val: float = 0.2) -> tuple[list[Datum], list[Datum]]:
        """Holds out the share `p_val` of each class, drawn from Python's global random numbers."""
        return splits.split_trainval(trainval, [item.label for item in trainval], random.shuffle, p_val)

    subsample_classes = staticmethod(splits.subsample_classes)
