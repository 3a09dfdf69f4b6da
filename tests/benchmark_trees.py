"""Small trees in the form of the real benchmarks: their folders, their own lists, and empty files for images.

`ROWS[name]` are the rows of a split file: 7 images a class, the first 5 for training or validation. A writer
turns such rows, or those of a published split file, into the lists that the dataset comes with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.io import savemat

from dassl.data.datasets import DATASET_REGISTRY
from datasets import catalog

Rows = list[tuple[str, int, str]]  # path, label, class name

REGISTERED = [
    name
    for name, value in vars(catalog).items()
    if value is DATASET_REGISTRY._obj_map.get(name) and value.__module__ == catalog.__name__
]
TEST_ONLY = [name for name in REGISTERED if DATASET_REGISTRY.get(name).test_only]
WITH_SPLIT_FILE = [name for name in REGISTERED if DATASET_REGISTRY.get(name).split_file]

# Folder or part of a file name → class name, in the order of the labels.
CLASSES = {
    "Caltech101": {"Faces": "face", "Leopards": "leopard", "accordion": "accordion"},
    "OxfordPets": {"Abyssinian": "abyssinian", "american_bulldog": "american_bulldog", "pug": "pug"},
    "DescribableTextures": {"banded": "banded", "dotted": "dotted", "zigzagged": "zigzagged"},
    "EuroSAT": {"AnnualCrop": "Annual Crop Land", "Highway": "Highway or Road", "SeaLake": "Sea or Lake"},
    "StanfordCars": {"0": "2012 Audi TTS Coupe", "1": "2012 Ram C/V Cargo Van Minivan", "2": "2007 BMW X6"},
    "OxfordFlowers": {"0": "pink primrose", "1": "hard-leaved pocket orchid", "2": "colt's foot"},
    "Food101": {"apple_pie": "apple_pie", "hot_dog": "hot_dog", "waffles": "waffles"},
    "FGVCAircraft": {"0": "707-320", "1": "F-16A/B", "2": "Falcon 900"},
    "SUN397": {
        "a/abbey": "abbey",
        "a/apartment_building/outdoor": "outdoor apartment_building",
        "y/youth_hostel": "youth_hostel",
    },
    "UCF101": {"Apply_Eye_Makeup": "Apply_Eye_Makeup", "Tai_Chi": "Tai_Chi", "Yo_Yo": "Yo_Yo"},
    "ImageNet": {"n01440764": "tench", "n02012849": "crane bird", "n03126707": "construction crane"},
    "ImageNetV2": {"0": "tench", "1": "crane bird", "2": "construction crane"},
    "ImageNetSketch": {"n01440764": "tench", "n02012849": "crane bird", "n03126707": "construction crane"},
    "ImageNetA": {f"n{2 * label:08d}": f"kind {2 * label}" for label in range(3)},
    "ImageNetR": {f"n{2 * label + 1:08d}": f"kind {2 * label + 1}" for label in range(3)},
}

PATHS: dict[str, Callable[[str, int, int], str]] = {  # of a class, its label and the image's number
    "OxfordPets": lambda breed, label, number: f"{breed}_{number}.jpg",
    "StanfordCars": lambda _, label, number: (
        f"cars_{'train' if number < 5 else 'test'}/{7 * label + number:05d}.jpg"
    ),
    "OxfordFlowers": lambda _, label, number: (
        f"image_{3 * number + 3 - label:05d}.jpg"
    ),  # the last label first
    "FGVCAircraft": lambda _, label, number: f"{7 * label + number:07d}.jpg",
    "UCF101": lambda action, label, number: f"{action}/v_{action.replace('_', '')}_g01_c{number:02d}.jpg",
    "ImageNet": lambda folder, label, number: f"{'train' if number < 5 else 'val'}/{folder}/{number}.JPEG",
    "ImageNetA": lambda folder, label, number: f"{folder}/0.{number}_fox _ 0.7.jpg",
}


def in_folders(folder: str, label: int, number: int) -> str:
    return f"{folder}/image_{number:04d}.jpg"


ROWS: dict[str, Rows] = {
    name: [
        (PATHS.get(name, in_folders)(key, label, number), label, class_name)
        for label, (key, class_name) in enumerate(classes.items())
        for number in range(7)
    ]
    for name, classes in CLASSES.items()
}


def trainval_and_test(rows: Rows) -> tuple[Rows, Rows]:
    return [row for i, row in enumerate(rows) if i % 7 < 5], [row for i, row in enumerate(rows) if i % 7 >= 5]


# How each dataset writes down its split ---------------------------------------------------------------------


def class_names(*parts: Rows) -> list[str]:
    return [name for _, name in sorted({(label, name) for part in parts for _, label, name in part})]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_pets(folder: Path, trainval: Rows, test: Rows) -> None:
    for list_file, rows in (("trainval.txt", trainval), ("test.txt", test)):
        lines = [f"{Path(path).stem} {label + 1} 1 1" for path, label, _ in rows]
        write_lines(folder / "annotations" / list_file, lines)


def write_cars(folder: Path, trainval: Rows, test: Rows) -> None:
    (folder / "devkit").mkdir(parents=True, exist_ok=True)
    models = [name.split(" ") for name in class_names(trainval, test)]
    cells = np.array([" ".join([*words[1:], words[0]]) for words in models], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells}, oned_as="row")
    lists = {"devkit/cars_train_annos.mat": trainval, "cars_test_annos_withlabels.mat": test}
    for list_file, rows in lists.items():
        entries = [(1, label + 1, Path(path).name) for path, label, _ in rows]
        kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
        savemat(folder / list_file, {"annotations": np.array(entries, dtype=kinds)}, oned_as="row")


def write_flowers(folder: Path, trainval: Rows, test: Rows) -> None:
    rows = sorted(trainval + test)  # images are numbered
    labels = np.array([label + 1 for _, label, _ in rows], dtype=np.uint8)
    savemat(folder / "imagelabels.mat", {"labels": labels}, oned_as="row")
    names = {str(label): name for label, name in enumerate(class_names(rows), 1)}
    (folder / "cat_to_name.json").write_text(json.dumps(names))


def write_aircraft(folder: Path, trainval: Rows, test: Rows) -> None:
    write_lines(folder / "variants.txt", class_names(trainval, test))
    parts = {
        "val": trainval[4::5],
        "train": [row for row in trainval if row not in trainval[4::5]],
        "test": test,
    }
    for part, rows in parts.items():
        lines = [f"{Path(path).stem} {name}" for path, _, name in rows]
        write_lines(folder / f"images_variant_{part}.txt", lines)


def write_sun(folder: Path, trainval: Rows, test: Rows) -> None:
    folders = {label: str(Path(path).parent) for path, label, _ in trainval}
    write_lines(folder / "ClassName.txt", [f"/{folders[label]}" for label in sorted(folders)])
    for list_file, rows in (("Training_01.txt", trainval), ("Testing_01.txt", test)):
        write_lines(folder / list_file, [f"/{path}" for path, _, _ in rows])


def write_ucf(folder: Path, trainval: Rows, test: Rows) -> None:
    lists = folder / "ucfTrainTestlist"
    actions = [name.replace("_", "") for name in class_names(trainval, test)]
    write_lines(lists / "classInd.txt", [f"{label} {action}" for label, action in enumerate(actions, 1)])
    for list_file, rows in (("trainlist01.txt", trainval), ("testlist01.txt", test)):
        videos = [f"{name.replace('_', '')}/{Path(path).stem}.avi" for path, _, name in rows]
        labels = [f" {label + 1}" if rows is trainval else "" for _, label, _ in rows]
        write_lines(lists / list_file, [video + label for video, label in zip(videos, labels, strict=True)])


def write_imagenet(folder: Path, trainval: Rows, test: Rows) -> None:
    classes = dict(CLASSES["ImageNet"])
    if folder.name in ("imagenet-adversarial", "imagenet-rendition"):
        classes = dict(sorted({**CLASSES["ImageNetA"], **CLASSES["ImageNetR"]}.items()))
    write_lines(folder / "classnames.txt", [f"{key} {name}" for key, name in classes.items()])


WRITERS: dict[str, Callable[[Path, Rows, Rows], None]] = {
    "OxfordPets": write_pets,
    "StanfordCars": write_cars,
    "OxfordFlowers": write_flowers,
    "FGVCAircraft": write_aircraft,
    "SUN397": write_sun,
    "UCF101": write_ucf,
    **dict.fromkeys(("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"), write_imagenet),
}


def touch_all(image_dir: Path, rows: Rows) -> None:
    for path, _, _ in rows:
        (image_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (image_dir / path).touch()


def draw_tree(name: str, root: Path) -> Path:
    """Draws a dataset without its split file, with what also lies in real ones; returns its folder."""
    dataset = DATASET_REGISTRY.get(name)
    folder = root / dataset.dataset_dir
    touch_all(folder / dataset.image_dir, ROWS[name])
    for stray in ("README.txt", ".DS_Store"):
        (folder / dataset.image_dir / stray).touch()
    if name in WRITERS:
        WRITERS[name](folder, *trainval_and_test(ROWS[name]))
    return folder


# Opening them -----------------------------------------------------------------------------------------------


def open_dataset(name: str, root: Path, shots: int = -1, subsample: str = "all", seed: int = 1):
    dataset = SimpleNamespace(NAME=name, ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
    return DATASET_REGISTRY.get(name)(SimpleNamespace(SEED=seed, DATASET=dataset))


def rows(items, image_dir: str) -> Rows:
    return [(os.path.relpath(item.impath, image_dir), item.label, item.classname) for item in items]


def sizes(dataset) -> tuple[int, int, int]:
    return len(dataset.train_x), len(dataset.val), len(dataset.test)
