"""Every registered benchmark on a tree of its real form; wrong trees are in test_datasets_wrong_trees.py."""

from __future__ import annotations

import importlib
import os
import random
import shutil
from pathlib import Path

import benchmark_trees as trees
import pytest
import yaml
from benchmark_trees import REGISTERED, TEST_ONLY, open_dataset, rows, sizes
from helpers import ROOT
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY
from datasets import catalog
from train import command_line

CONFIGS = {
    yaml.safe_load(path.read_text())["DATASET"]["NAME"]: path
    for path in sorted((ROOT / "configs" / "datasets").glob("*.yaml"))
}

# As published with CoOp: config file, folder, folder of the images, template.
PUBLISHED = {
    "ImageNet": ("imagenet", "imagenet", "images", "a photo of a {}."),
    "Caltech101": ("caltech101", "caltech-101", "101_ObjectCategories", "a photo of a {}."),
    "OxfordPets": ("oxford_pets", "oxford_pets", "images", "a photo of a {}, a type of pet."),
    "StanfordCars": ("stanford_cars", "stanford_cars", "", "a photo of a {}."),
    "OxfordFlowers": ("oxford_flowers", "oxford_flowers", "jpg", "a photo of a {}, a type of flower."),
    "Food101": ("food101", "food-101", "images", "a photo of {}, a type of food."),
    "FGVCAircraft": ("fgvc_aircraft", "fgvc_aircraft", "images", "a photo of a {}, a type of aircraft."),
    "SUN397": ("sun397", "sun397", "SUN397", "a photo of a {}."),
    "DescribableTextures": ("dtd", "dtd", "images", "{} texture."),
    "EuroSAT": ("eurosat", "eurosat", "2750", "a centered satellite photo of {}."),
    "UCF101": ("ucf101", "ucf101", "UCF-101-midframes", "a photo of a person doing {}."),
    "ImageNetV2": (
        "imagenetv2",
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        "a photo of a {}.",
    ),
    "ImageNetSketch": ("imagenet_sketch", "imagenet-sketch", "images", "a photo of a {}."),
    "ImageNetA": ("imagenet_a", "imagenet-adversarial", "imagenet-a", "a photo of a {}."),
    "ImageNetR": ("imagenet_r", "imagenet-rendition", "imagenet-r", "a photo of a {}."),
}


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    """ImageNetA and ImageNetR of three classes, as the others here have."""
    monkeypatch.setattr(catalog.ImageNetPart, "n_classes", 3)


# The catalogue ----------------------------------------------------------------------------------------------


def test_the_fifteen_are_registered_and_have_a_tree_to_be_tested_on():
    assert set(PUBLISHED) <= set(REGISTERED)
    assert set(REGISTERED) == set(trees.ROWS), (
        "a dataset in datasets/catalog.py needs a tree in benchmark_trees.py"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_folders_and_templates_are_the_published_ones(name):
    config, folder, image_folder, template = PUBLISHED[name]
    dataset = DATASET_REGISTRY.get(name)
    assert (dataset.dataset_dir, dataset.image_dir, dataset.template) == (folder, image_folder, template)
    assert dataset.split_file in ("", f"split_zhou_{name}.json")
    assert CONFIGS[name].read_text() == f'DATASET:\n  NAME: "{name}"\n'
    assert CONFIGS[name].stem == config
    assert getattr(importlib.import_module(f"datasets.{config}"), name) is dataset, "its old module"


@pytest.mark.parametrize("name", REGISTERED)
def test_the_table_in_the_docs_is_true(name):
    dataset = DATASET_REGISTRY.get(name)
    (line,) = (
        line
        for line in (ROOT / "docs" / "datasets.md").read_text().splitlines()
        if line.startswith(f"| `{name}` |")
    )
    for word in (CONFIGS[name].stem, f"{dataset.dataset_dir}/", dataset.image_dir, dataset.template):
        assert word in line
    for file in (dataset.split_file, *getattr(dataset, "own_lists", ())):
        assert file in line


# Right trees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTERED)
def test_opens_what_its_own_files_describe(name, tmp_path):
    root = tmp_path / "mes données"
    trees.draw_tree(name, root)
    dataset = open_dataset(name, root)
    trainval, test = trees.trainval_and_test(trees.ROWS[name])
    n = len(trees.CLASSES[name])
    assert dataset.classnames == list(trees.CLASSES[name].values())
    if name in TEST_ONLY:
        assert sizes(dataset) == (0, 0, len(trees.ROWS[name]))
        assert rows(dataset.test, dataset.image_dir) == trees.ROWS[name]
    elif name == "ImageNet":
        assert sizes(dataset) == (5 * n, 2 * n, 2 * n)
        assert rows(dataset.train_x, dataset.image_dir) == trainval
        assert rows(dataset.test, dataset.image_dir) == rows(dataset.val, dataset.image_dir) == test
    else:
        assert sizes(dataset) == (4 * n, n, 2 * n)
        everything = [*dataset.train_x, *dataset.val, *dataset.test]
        assert sorted(rows(everything, dataset.image_dir)) == sorted(trees.ROWS[name])
        if name in trees.WRITERS and name != "OxfordFlowers":
            assert rows(dataset.test, dataset.image_dir) == test, "the test images are published"
    assert all(os.path.isfile(item.impath) for item in [*dataset.train_x, *dataset.val, *dataset.test])


@pytest.mark.parametrize("name", REGISTERED)
def test_shots_and_halves(name, tmp_path):
    trees.draw_tree(name, tmp_path)
    classes = list(trees.CLASSES[name].values())
    n_base = (len(classes) + 1) // 2
    for subsample, names in (("base", classes[:n_base]), ("new", classes[n_base:])):
        dataset = open_dataset(name, tmp_path, shots=2, subsample=subsample)
        assert dataset.classnames == names
        assert {item.label for item in dataset.test} == set(range(len(names)))
        assert len(dataset.train_x) == (0 if name in TEST_ONLY else 2 * len(names))


@pytest.mark.parametrize("name", REGISTERED)
def test_order_of_the_file_system_does_not_matter(name, tmp_path, monkeypatch):
    folder = trees.draw_tree(name, tmp_path)
    before = open_dataset(name, tmp_path)
    for made in folder.glob("split_*"):
        made.unlink()
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    monkeypatch.setattr(
        os, "scandir", lambda path: sorted(scandir(path), key=lambda entry: entry.name, reverse=True)
    )
    after = open_dataset(name, tmp_path)
    for part in ("train_x", "val", "test"):
        assert rows(getattr(after, part), after.image_dir) == rows(getattr(before, part), before.image_dir)


@pytest.mark.parametrize("name", REGISTERED)
def test_links_to_the_dataset_and_in_it(name, tmp_path):
    real = trees.draw_tree(name, tmp_path / "real")
    expected = open_dataset(name, tmp_path / "real")
    for made in real.glob("split_*"):
        made.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for entry in list(os.scandir(expected.image_dir)):
        target = elsewhere / entry.name
        shutil.move(entry.path, target)
        Path(entry.path).symlink_to(target)
    linked = tmp_path / "root" / real.name
    linked.parent.mkdir()
    linked.symlink_to(real)
    dataset = open_dataset(name, linked.parent)
    assert rows(dataset.train_x, dataset.image_dir) == rows(expected.train_x, expected.image_dir)
    assert rows(dataset.test, dataset.image_dir) == rows(expected.test, expected.image_dir)


@pytest.mark.parametrize("name", TEST_ONLY)
def test_test_only_datasets_leave_no_files(name, tmp_path, capsys):
    folder = trees.draw_tree(name, tmp_path)
    before = sorted(folder.rglob("*"))
    assert sizes(open_dataset(name, tmp_path, shots=16))[:2] == (0, 0)
    assert sorted(folder.rglob("*")) == before
    assert "shot" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ImageNetV2", "ImageNetSketch"])
def test_eval_only_on_a_dataset_without_training_images(name, tmp_path, golden_checkpoint, capsys):
    folder = trees.draw_tree(name, tmp_path)
    for path in (folder / DATASET_REGISTRY.get(name).image_dir).rglob("*.jpg"):
        Image.new("RGB", (8, 8), (200, 30, 30)).save(path)
    options = f"""--root {tmp_path} --seed 1 --trainer ZeroshotCLIP --output-dir {tmp_path / "run"}
        --dataset-config-file {CONFIGS[name]} --eval-only DATASET.NUM_SHOTS 16 USE_CUDA False
        MODEL.BACKBONE.NAME ViT-B/16
        MODEL.BACKBONE.PATH {golden_checkpoint("tiny_public")} DATALOADER.NUM_WORKERS 0"""
    assert command_line([*options.split(), "INPUT.SIZE", "(32, 32)"]) == 0
    assert "* total: 21" in capsys.readouterr().out

    options = options.replace("ZeroshotCLIP", "CoOp").replace(
        str(tmp_path / "run"), str(tmp_path / "training")
    )
    training = [word for word in options.split() if word != "--eval-only"]
    assert command_line([*training, "INPUT.SIZE", "(32, 32)"]) == 2
    assert f"CoOp needs train_x images; {name} has none." in capsys.readouterr().err


def test_flowers_are_divided_by_label_in_order_of_first_appearance(tmp_path):
    """As the reference does."""
    folder = trees.draw_tree("OxfordFlowers", tmp_path)
    (folder / "cat_to_name.json").write_text('{"1": "rose", "2": "lily", "3": "tulip"}')
    dataset = open_dataset("OxfordFlowers", tmp_path, seed=5)
    shuffle = random.Random(5).shuffle
    expected = []
    for label in (2, 1, 0):  # image_00001.jpg is of the last class
        numbers = [3 * k + 3 - label for k in range(7)]
        shuffle(numbers)
        expected += [f"image_{number:05d}.jpg" for number in numbers[:4]]
    assert [os.path.basename(item.impath) for item in dataset.train_x] == expected
    assert dataset.classnames == ["rose", "lily", "tulip"]


def test_class_list_as_others_read_it(tmp_path):
    folder = trees.draw_tree("ImageNet", tmp_path)
    names = DATASET_REGISTRY.get("ImageNet").read_classnames(str(folder / "classnames.txt"))
    assert names == trees.CLASSES["ImageNet"]
    with pytest.raises(
        FileNotFoundError, match=r"There is no .*/nowhere\.txt\. ImageNet's class list goes there"
    ):
        DATASET_REGISTRY.get("ImageNet").read_classnames(str(folder / "nowhere.txt"))
