"""The published split files, where they lie beside the repository: published numbers, and the lists behind.

They are not part of the repository, and neither are images; so that all images are there is not checked here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import benchmark_trees as trees
import pytest
from benchmark_trees import open_dataset
from helpers import ROOT

from dassl.data import splits
from dassl.data.datasets import DATASET_REGISTRY

SHARED = ROOT.parent / "shared"
pytestmark = pytest.mark.skipif(
    not (SHARED / "splits").is_dir(), reason="the published split files are not in ../shared/splits"
)
# Name → its name in the papers' tables, and its id in the list of sources.
SPLITS = {
    "Caltech101": ("Caltech101", "caltech101"),
    "OxfordPets": ("OxfordPets", "oxford_pets"),
    "StanfordCars": ("StanfordCars", "stanford_cars"),
    "OxfordFlowers": ("Flowers102", "oxford_flowers"),
    "DescribableTextures": ("DTD", "dtd"),
    "EuroSAT": ("EuroSAT", "eurosat"),
    "UCF101": ("UCF101", "ucf101"),
}


def published(name: str) -> splits.Split:
    return splits.load_split(str(SHARED / "splits" / f"split_zhou_{name}.json"))


def make_folder(name: str, root: Path) -> Path:
    dataset = DATASET_REGISTRY.get(name)
    (root / dataset.dataset_dir / dataset.image_dir).mkdir(parents=True)
    return root / dataset.dataset_dir


@pytest.fixture
def no_images(monkeypatch):
    monkeypatch.setattr(splits, "check_images", lambda *args: None)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.usefixtures("no_images")
def test_counts(name, tmp_path):
    in_tables, in_sources = SPLITS[name]
    tables = json.loads((SHARED / "published" / "tables.json").read_text())["test_sizes"]
    sources = json.loads((SHARED / "sources.json").read_text())["datasets"]
    (counts,) = (entry["counts"] for entry in sources if entry["id"] == in_sources)
    split_file = f"split_zhou_{name}.json"
    shutil.copy(SHARED / "splits" / split_file, make_folder(name, tmp_path) / split_file)

    whole, base, new = (
        open_dataset(name, tmp_path, subsample=subsample) for subsample in ("all", "base", "new")
    )
    sizes = {"train": len(whole.train_x), "val": len(whole.val), "test": len(whole.test)}
    assert {**sizes, "classes": whole.num_classes} == counts
    assert [len(whole.train_x), len(base.test), len(new.test)] == tables[in_tables]
    assert base.classnames + new.classnames == whole.classnames
    shots = open_dataset(name, tmp_path, shots=16, subsample="base")
    assert len(shots.train_x) == 16 * base.num_classes
    assert len(shots.val) == 4 * base.num_classes


@pytest.mark.parametrize("name", ["OxfordPets", "StanfordCars", "OxfordFlowers", "UCF101"])
@pytest.mark.usefixtures("no_images")
def test_own_lists_lead_to_the_published_rows(name, tmp_path):
    """The lists that a published split was made from, written back, give its images, labels and names."""
    split = published(name)
    folder = make_folder(name, tmp_path)
    trees.WRITERS[name](folder, split.train + split.val, split.test)
    if name == "OxfordFlowers":
        shutil.copy(SHARED / "splits" / "cat_to_name.json", folder)
    open_dataset(name, tmp_path)
    made = splits.load_split(str(folder / f"split_zhou_{name}.json"))
    assert sorted(made.train + made.val + made.test) == sorted(split.train + split.val + split.test)
    assert [len(part) for part in made] == [len(part) for part in split]
    if name != "OxfordFlowers":  # whose test images are drawn
        assert made.test == split.test


@pytest.mark.parametrize("name", ["Caltech101", "DescribableTextures", "EuroSAT"])
def test_class_folders_lead_to_the_published_names(name, tmp_path):
    image_dir = make_folder(name, tmp_path) / DATASET_REGISTRY.get(name).image_dir
    expected = {(path.split("/")[0], label, class_name) for path, label, class_name in published(name).train}
    ignored = ["BACKGROUND_Google", "Faces_easy"] if name == "Caltech101" else []
    for folder in [*ignored, *(folder for folder, _, _ in expected)]:
        (image_dir / folder).mkdir()
        for number in range(4):
            (image_dir / folder / f"{number}.jpg").touch()
    dataset = open_dataset(name, tmp_path)
    made = {(Path(item.impath).parent.name, item.label, item.classname) for item in dataset.train_x}
    assert made == expected


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"])
def test_the_class_list_of_imagenet(name, tmp_path):
    folder = make_folder(name, tmp_path)
    image_dir = folder / DATASET_REGISTRY.get(name).image_dir
    shutil.copy(SHARED / "splits" / "imagenet_classnames.txt", folder / "classnames.txt")
    lines = (folder / "classnames.txt").read_text().splitlines()
    names = dict(line.split(" ", 1) for line in lines)
    wnids = list(names)
    if name in ("ImageNetA", "ImageNetR"):
        letter = name[-1].lower()
        present = set((SHARED / "splits" / f"timm_imagenet_{letter}_synsets.txt").read_text().split())
        wnids = [wnid for wnid in names if wnid in present]
        assert len(wnids) == 200
    folders = [str(label) for label in range(1000)] if name == "ImageNetV2" else wnids
    for part in ("train", "val") if name == "ImageNet" else ("",):
        for one in folders:
            (image_dir / part / one).mkdir(parents=True)
            (image_dir / part / one / "a.JPEG").touch()
    whole, base = open_dataset(name, tmp_path), open_dataset(name, tmp_path, subsample="base")
    assert whole.classnames == [names[wnid] for wnid in wnids]
    assert [Path(item.impath).parent.name for item in whole.test] == folders
    assert base.classnames == whole.classnames[: len(wnids) // 2]
