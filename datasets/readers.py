"""Splits made from a dataset's own files, where there is no split file.

Always from sorted names, so that the same images and seed give the same split on every file system.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Mapping

from dassl.data.datasets import Datum
from datasets.splits import Row, Shuffle, Split, split_trainval, to_datums

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def class_folders(
    image_dir: str,
    shuffle: Shuffle,
    ignored: Collection[str] = (),
    class_names: Mapping[str, str] | None = None,
    p_trn: float = 0.5,
    p_val: float = 0.2,
) -> Split:
    """Splits a folder that holds a folder of images for each class.

    Args:
        ignored: folders left out.
        class_names: the names of those classes whose folder is called otherwise.

    Raises:
        ValueError: a class is too small to be split.
    """
    names = class_names or {}
    folders = sorted(
        entry.name
        for entry in os.scandir(image_dir)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in ignored
    )
    if not folders:
        raise ValueError(f"{image_dir} holds no folders; expected one for each class.")
    print(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and {1 - p_trn - p_val:.0%} test")
    split = Split([], [], [])
    for label, folder in enumerate(folders):
        images = [
            name
            for name in sorted(os.listdir(os.path.join(image_dir, folder)))
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        shuffle(images)
        rows = [(f"{folder}/{name}", label, names.get(folder, folder)) for name in images]
        n_train, n_val = round(len(rows) * p_trn), round(len(rows) * p_val)
        parts = rows[:n_train], rows[n_train : n_train + n_val], rows[n_train + n_val :]
        if not all(parts):
            raise ValueError(
                f"{os.path.join(image_dir, folder)} has {len(rows)} images, too few to be split into "
                f"{p_trn:.0%} train, {p_val:.0%} val and the rest test."
            )
        for collected, part in zip(split, parts, strict=True):
            collected += part
    return split


def read_and_split_data(
    image_dir: str,
    p_trn: float = 0.5,
    p_val: float = 0.2,
    ignored: Collection[str] = (),
    new_cnames: Mapping[str, str] | None = None,
) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """`class_folders` as datasets written for CoOp call it, shuffled by Python's global random numbers."""
    split = class_folders(image_dir, random.shuffle, ignored, new_cnames, p_trn, p_val)
    return (
        to_datums(split.train, image_dir),
        to_datums(split.val, image_dir),
        to_datums(split.test, image_dir),
    )


def pet_annotations(dataset_dir: str, shuffle: Shuffle) -> Split:
    """Splits by Oxford Pets' own lists. A line is image, class from 1, species, breed."""

    def read(list_file: str) -> list[Row]:
        path = os.path.join(dataset_dir, "annotations", list_file)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"There is no split file, and no {path} to make it from. Put one of them there."
            )
        rows = []
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    name, label, _, _ = line.split()
                    rows.append((f"{name}.jpg", int(label) - 1, name.rpartition("_")[0].lower()))
                except ValueError as error:
                    raise ValueError(
                        f"{path}, line {number} is {line.strip()!r}; expected 'name class species breed'."
                    ) from error
        return rows

    trainval, test = read("trainval.txt"), read("test.txt")
    train, val = split_trainval(trainval, [label for _, label, _ in trainval], shuffle)
    return Split(train, val, test)
