"""Datasets written for CoOp run here, and `datasets/` needs no more of Dassl than upstream has."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmark_trees import REGISTERED

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from datasets.dtd import DescribableTextures
from datasets.oxford_pets import OxfordPets

PROJECT = Path(__file__).parents[1]


def config(root, shots=2, subsample="all", seed=1):
    dataset = SimpleNamespace(ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
    return SimpleNamespace(SEED=seed, DATASET=dataset)


class Flowers(DatasetBase):
    """As such datasets are written: everything by hand, with the static methods of OxfordPets."""

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.image_dir = os.path.join(root, "flowers", "jpg")
        split_path = os.path.join(root, "flowers", "split.json")
        if os.path.exists(split_path):
            train, val, test = OxfordPets.read_split(split_path, self.image_dir)
        else:
            images = [
                Datum(
                    impath=os.path.join(self.image_dir, name), label=int(name[0]), classname=f"kind {name[0]}"
                )
                for name in sorted(os.listdir(self.image_dir))
            ]
            test = images[::3]
            train, val = OxfordPets.split_trainval(
                [image for image in images if image not in test], p_val=0.25
            )
            OxfordPets.save_split(train, val, test, split_path, self.image_dir)
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        val = self.generate_fewshot_dataset(val, num_shots=min(cfg.DATASET.NUM_SHOTS, 4))
        train, val, test = OxfordPets.subsample_classes(
            train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES
        )
        super().__init__(train_x=train, val=val, test=test)


def impaths(items) -> list[str]:
    return [item.impath for item in items]


def test_foreign_dataset(tmp_path):
    folder = tmp_path / "flowers" / "jpg"
    folder.mkdir(parents=True)
    for label in range(3):
        for number in range(6):
            (folder / f"{label}_{number}.jpg").touch()
    random.seed(5)
    first = Flowers(config(tmp_path))
    saved = json.loads((tmp_path / "flowers" / "split.json").read_text())
    assert [len(saved[part]) for part in ("train", "val", "test")] == [9, 3, 6]
    assert sorted(saved["test"]) == [[f"{y}_{n}.jpg", y, f"kind {y}"] for y in range(3) for n in (0, 3)]
    assert first.classnames == ["kind 0", "kind 1", "kind 2"]
    assert len(first.train_x) == 6

    new = Flowers(config(tmp_path, subsample="new"))
    assert new.classnames == ["kind 2"]
    assert {item.label for item in new.train_x + new.val + new.test} == {0}
    base = Flowers(config(tmp_path, subsample="base"))
    assert base.classnames == ["kind 0", "kind 1"]


def test_foreign_and_own_sampling_agree(tmp_path):
    """A dataset that samples by the engine, from the seeded global stream, draws what ours draw."""
    folder = tmp_path / "oxford_pets" / "images"
    folder.mkdir(parents=True)
    rows = [[f"{label}_{number}.jpg", label, f"kind {label}"] for number in range(9) for label in (1, 0, 2)]
    for path, _, _ in rows:
        (folder / path).touch()
    split_path = tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json"
    split_path.write_text(json.dumps({"train": rows[:15], "val": rows[15:21], "test": rows[21:]}))
    ours = OxfordPets(config(tmp_path, shots=3, seed=7))

    random.seed(7)
    train, val, _ = OxfordPets.read_split(str(split_path), str(folder))
    assert impaths(ours.generate_fewshot_dataset(train, num_shots=3)) == impaths(ours.train_x)
    assert impaths(ours.generate_fewshot_dataset(val, num_shots=3)) == impaths(ours.val)


def test_read_and_split_data_as_others_call_it(tmp_path):
    for folder in ("b", "a", "left out"):
        (tmp_path / folder).mkdir()
        for number in range(10):
            (tmp_path / folder / f"{number}.jpg").touch()
    random.seed(1)
    train, val, test = DescribableTextures.read_and_split_data(
        str(tmp_path), ignored=["left out"], new_cnames={"b": "better"}
    )
    assert [len(part) for part in (train, val, test)] == [10, 4, 6]
    assert {(item.label, item.classname) for item in train} == {(0, "a"), (1, "better")}
    random.seed(1)
    assert impaths(
        DescribableTextures.read_and_split_data(str(tmp_path), ignored=["left out"])[0]
    ) == impaths(train)
    assert len(DescribableTextures.read_and_split_data(str(tmp_path), p_trn=0.2, p_val=0.2)[2]) == 18


def test_wrong_subsample_of_a_foreign_dataset():
    with pytest.raises(ValueError, match="allowed are all, base and new"):
        OxfordPets.subsample_classes([], [], subsample="novel")


@pytest.mark.parametrize("name", REGISTERED)
def test_all_have_the_static_methods(name):
    dataset = DATASET_REGISTRY.get(name)
    first = Datum(impath="x/1.jpg", label=4, classname="four")
    second = Datum(impath="x/2.jpg", label=7, classname="seven")
    (kept,) = dataset.subsample_classes([second, first], subsample="new")
    assert [(item.impath, item.label, item.classname) for item in kept] == [("x/2.jpg", 0, "seven")]
    (same,) = dataset.subsample_classes([second, first])
    assert same == [second, first]
