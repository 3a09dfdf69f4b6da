"""Few-shot samples, base and new classes and generated splits, exactly as recorded from the reference."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from dassl.data.datasets import DATASET_REGISTRY

GOLDEN = Path(__file__).parent / "golden" / "fewshot"
FOLDERS = {"OxfordPets": "oxford_pets", "EuroSAT": "eurosat", "DescribableTextures": "dtd"}


def recorded(name: str) -> dict:
    return json.loads((GOLDEN / f"public_{name}.json").read_text())


def open_dataset(name: str, root: Path, shots: int = -1, seed: int = 1, subsample: str = "all"):
    cfg = SimpleNamespace(
        SEED=seed,
        DATASET=SimpleNamespace(NAME=name, ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample),
    )
    return DATASET_REGISTRY.get(name)(cfg)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def rows(items, image_dir: str) -> list[list]:
    return [[os.path.relpath(item.impath, image_dir), item.label, item.classname] for item in items]


def split_file(name: str, root: Path) -> Path:
    return root / FOLDERS[name] / f"split_zhou_{name}.json"


def draw_tree(golden: dict, root: Path) -> None:
    """The recorded split file and an empty file for each of its images."""
    name = golden["dataset"]
    for part in golden["split"].values():
        for path, _, _ in part:
            touch(root / FOLDERS[name] / golden["image_dir"] / path)
    split_file(name, root).write_text(json.dumps(golden["split"]))


def log_as_recorded(printed: str) -> list[str]:
    """The lines that the reference prints too; the hash of the sample is our own."""
    lines = printed.splitlines()
    assert sum(line.startswith("Sample of all classes: ") for line in lines) == 1
    return [line for line in lines if not line.startswith("Sample of all classes: ")]


@pytest.mark.parametrize("name", ["OxfordPets", "EuroSAT"])
@pytest.mark.parametrize("keep_cache", [True, False])
def test_samples_as_recorded(name, keep_cache, tmp_path, capsys):
    golden = recorded(name)
    draw_tree(golden, tmp_path)
    assert len(golden["samples"]) == 27
    for sample in golden["samples"]:
        random.seed(99)  # what was drawn before must not matter
        before = random.getstate()
        dataset = open_dataset(name, tmp_path, sample["shots"], sample["seed"], sample["subsample"])
        assert random.getstate() == before
        case = f"seed {sample['seed']}, {sample['shots']} shots, {sample['subsample']}"
        assert rows(dataset.train_x, dataset.image_dir) == sample["train"], case
        assert rows(dataset.val, dataset.image_dir) == sample["val"], case
        assert len(dataset.test) == sample["test_n"], case
        assert sorted({item.label for item in dataset.test}) == sample["test_labels"], case
        assert dataset.classnames == sample["classnames"], case
        assert dataset.num_classes == sample["num_classes"], case
        log = log_as_recorded(capsys.readouterr().out)
        if keep_cache:
            assert [line for line in log if not line.startswith("Fewer than")] == [
                line.replace("<ROOT>", str(tmp_path)).replace(".pkl", ".json") for line in sample["log"]
            ]
        else:
            cache = Path(dataset.split_fewshot_dir) / f"shot_{sample['shots']}-seed_{sample['seed']}.json"
            cache.unlink()


def draw_textures(golden: dict, root: Path) -> None:
    for folder in golden["classes"]:
        for number in range(golden["files_per_class"]):
            touch(root / "dtd" / "images" / folder / f"{folder}_{number:04d}.jpg")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("listing", [sorted, lambda names: sorted(names, reverse=True)])
def test_split_made_from_class_folders(seed, listing, tmp_path, monkeypatch):
    golden = recorded("DTD_generated_split")
    draw_textures(golden, tmp_path)
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda path: listing(listdir(path)))
    by_name = {"key": lambda entry: entry.name, "reverse": listing(["a", "b"]) == ["b", "a"]}
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scandir(path), **by_name))

    random.seed(99)
    first = open_dataset("DescribableTextures", tmp_path, shots=2, seed=seed)
    run = next(run for run in golden["runs"] if run["listing"] == "sorted" and run["seed"] == seed)
    assert json.loads(split_file("DescribableTextures", tmp_path).read_text()) == run["split_written"]

    # The reference draws the shots of the first run from where the splitting left off; here all runs agree.
    cache = Path(first.split_fewshot_dir) / f"shot_2-seed_{seed}.json"
    cache.unlink()
    again = open_dataset("DescribableTextures", tmp_path, shots=2, seed=seed)
    assert rows(again.train_x, again.image_dir) == rows(first.train_x, first.image_dir)
    assert rows(again.val, again.image_dir) == rows(first.val, first.image_dir)


@pytest.mark.parametrize("seed", [1, 2])
def test_split_made_from_pet_annotations(seed, tmp_path, capsys):
    golden = recorded("OxfordPets_generated_split")
    for list_file in ("trainval.txt", "test.txt"):
        touch(tmp_path / "oxford_pets" / "annotations" / list_file)
        (tmp_path / "oxford_pets" / "annotations" / list_file).write_text(golden[list_file])
        for line in golden[list_file].splitlines():
            touch(tmp_path / "oxford_pets" / "images" / f"{line.split()[0]}.jpg")
    fresh, existing = (run for run in golden["runs"] if run["seed"] == seed)
    assert existing["split_existed"]

    first = open_dataset("OxfordPets", tmp_path, shots=2, seed=seed)
    assert json.loads(split_file("OxfordPets", tmp_path).read_text()) == fresh["split_written"]
    expected_log = [line.replace("<ROOT>", str(tmp_path)).replace(".pkl", ".json") for line in fresh["log"]]
    assert log_as_recorded(capsys.readouterr().out) == expected_log

    (Path(first.split_fewshot_dir) / f"shot_2-seed_{seed}.json").unlink()
    second = open_dataset("OxfordPets", tmp_path, shots=2, seed=seed)
    for dataset in (first, second):
        assert rows(dataset.train_x, dataset.image_dir) == existing["train"]
        assert rows(dataset.val, dataset.image_dir) == existing["val"]


def test_caltech_leaves_out_two_folders_and_renames_four(tmp_path):
    folders = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes"]
    for folder in folders:
        for number in range(4):
            touch(tmp_path / "caltech-101" / "101_ObjectCategories" / folder / f"image_{number}.jpg")
    touch(tmp_path / "caltech-101" / "101_ObjectCategories" / "accordion" / "Thumbs.db")
    touch(tmp_path / "caltech-101" / "101_ObjectCategories" / "README.txt")
    dataset = open_dataset("Caltech101", tmp_path)
    assert dataset.classnames == ["face", "leopard", "motorbike", "accordion", "airplane"]
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [10, 5, 5]


def test_eurosat_renames_its_folders(tmp_path):
    for folder in ("SeaLake", "Highway", "Forest"):
        for number in range(4):
            touch(tmp_path / "eurosat" / "2750" / folder / f"{folder}_{number}.jpg")
    assert open_dataset("EuroSAT", tmp_path).classnames == ["Forest", "Highway or Road", "Sea or Lake"]
