"""Published numbers, halves and names of the benchmarks.

`published_counts.json` has the images per class and part of seven published split files, and no names. It was
made from them by

    counts = [Counter(label for _, label, _ in split[part]) for part in ("train", "val", "test")]
    [[count[label] for count in counts] for label in sorted(counts[0])]

The split files themselves are not part of the repository, and neither are images. Tests that need them are
skipped where they do not lie in ../shared/splits.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import benchmark_trees as trees
import pytest
from benchmark_trees import open_dataset
from helpers import ROOT

from dassl.data import splits
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.splits import Split
from datasets import catalog
from datasets.sources import known

PARTS = Split._fields
COUNTS = json.loads((ROOT / "tests/published_counts.json").read_text(encoding="utf-8"))
COUNTS.pop("about")
SIZES = json.loads((ROOT / "experiments/results/published.json").read_text(encoding="utf-8"))["test_sizes"]
SHARED = ROOT.parent / "shared"
needs_split_files = pytest.mark.skipif(
    not (SHARED / "splits").is_dir(), reason="the published split files are not in ../shared/splits"
)


def published(name: str) -> splits.Split:
    return splits.load_split(str(SHARED / "splits" / f"split_zhou_{name}.json"))


def make_folder(name: str, root: Path) -> Path:
    dataset = DATASET_REGISTRY.get(name)
    (root / dataset.dataset_dir / dataset.image_dir).mkdir(parents=True)
    return root / dataset.dataset_dir


@pytest.fixture
def no_images(monkeypatch):
    monkeypatch.setattr(splits, "check_images", lambda *args: None)


def split_of(name: str) -> dict[str, list[tuple[str, int, str]]]:
    """A split with the published numbers of images per class and part."""
    return {
        part: [
            (f"{label:03d}/{part}_{number:04d}.jpg", label, f"class {label:03d}")
            for label, counts in enumerate(COUNTS[name])
            for number in range(counts[position])
        ]
        for position, part in enumerate(PARTS)
    }


def counts_of(split: Split) -> list[list[int]]:
    counts = [Counter(label for _, label, _ in part) for part in split]
    return [[count[label] for count in counts] for label in sorted(counts[0])]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.usefixtures("no_images")
def test_counts_and_halves(name, tmp_path):
    """Our reading and halving of a split of these sizes give the numbers of both tables."""
    folder = make_folder(name, tmp_path)
    (folder / f"split_zhou_{name}.json").write_text(json.dumps(split_of(name)), encoding="utf-8")
    whole, base, new = (
        open_dataset(name, tmp_path, subsample=subsample) for subsample in ("all", "base", "new")
    )
    assert known()[name].counts == {
        "train": len(whole.train_x),
        "val": len(whole.val),
        "test": len(whole.test),
        "classes": whole.num_classes,
        "test_base": len(base.test),
        "test_new": len(new.test),
    }
    sizes = {"base": len(base.test), "new": len(new.test), "all": len(whole.test)}
    assert SIZES[known()[name].config] == sizes
    assert base.classnames + new.classnames == whole.classnames
    assert len(base.classnames) - len(new.classnames) in (0, 1)
    shots = open_dataset(name, tmp_path, shots=16, subsample="base")
    assert len(shots.train_x) == 16 * base.num_classes
    assert len(shots.val) == 4 * base.num_classes


def test_the_two_files_of_published_numbers_agree():
    """Also for the benchmarks of which no split file is at hand."""
    counts = {known()[name].config: known()[name].counts for name in known() if known()[name].counts}
    for config, sizes in SIZES.items():
        assert sizes["all"] == sizes["base"] + sizes["new"] == counts[config]["test"]
        assert (sizes["base"], sizes["new"]) == (counts[config]["test_base"], counts[config]["test_new"])
    assert len(SIZES) == 11


@pytest.mark.parametrize("name", ["OxfordPets", "UCF101"])
@pytest.mark.usefixtures("no_images")
def test_a_fifth_is_held_out_as_published(name, tmp_path):
    """The benchmark's own lists of this size give the published numbers of each class."""
    split = split_of(name)
    folder = make_folder(name, tmp_path)
    trainval, test = split["train"] + split["val"], split["test"]
    if name == "UCF101":  # the names of its folders are those of its classes
        letters = [chr(65 + label // 26) + chr(97 + label % 26) for label in range(len(COUNTS[name]))]
        trainval, test = (
            [(f"{letters[label]}/{path[4:]}", label, letters[label]) for path, label, _ in rows]
            for rows in (trainval, test)
        )
    else:  # file names start with the class
        trainval, test = (
            [(f"kind{label}_{path[4:].replace('_', '')}", label, f"kind{label}") for path, label, _ in rows]
            for rows in (trainval, test)
        )
    trees.WRITERS[name](folder, trainval, test)
    open_dataset(name, tmp_path)
    assert counts_of(splits.load_split(str(folder / f"split_zhou_{name}.json"))) == COUNTS[name]


@pytest.mark.parametrize("name", ["Caltech101", "DescribableTextures", "EuroSAT"])
def test_class_folders_are_divided_as_published(name, tmp_path):
    for label, counts in enumerate(COUNTS[name]):
        (tmp_path / f"{label:03d}").mkdir()
        for number in range(sum(counts)):
            (tmp_path / f"{label:03d}" / f"{number:04d}.jpg").touch()
    split = catalog.readers.class_folders(str(tmp_path), random.Random(1).shuffle)
    assert counts_of(split) == COUNTS[name]


# From the published split files themselves ------------------------------------------------------------------


@needs_split_files
@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_are_those_of_the_published_file(name):
    assert counts_of(published(name)) == COUNTS[name]


@needs_split_files
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


@needs_split_files
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


@needs_split_files
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
