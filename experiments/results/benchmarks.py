"""The benchmarks of the field: in which order its tables list them, and under which names."""

from __future__ import annotations

# File of configs/datasets -> name in the papers' tables.
ELEVEN = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
}
VARIANTS = {  # of ImageNet: only tested on
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNet-Sketch",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
}
SYNTHETIC = {"shapes": "Shapes"}  # drawn by this project: in no average with photos
LABELS = {**ELEVEN, **VARIANTS, **SYNTHETIC}

# DATASET.NAME -> file of configs/datasets, for runs that name no file.
_STEMS = {label.lower().replace("-", ""): stem for stem, label in LABELS.items()}
_STEMS |= {"describabletextures": "dtd", "oxfordflowers": "oxford_flowers"}


def stem_of(name: str) -> str:
    """The file of configs/datasets that a `DATASET.NAME` belongs to; the name itself if there is none."""
    return _STEMS.get(name.lower(), name)


def label_of(dataset: str) -> str:
    return LABELS.get(dataset, dataset)


def in_order(datasets: set[str]) -> list[str]:
    """As the papers list them, then all others by name."""
    known = [dataset for dataset in LABELS if dataset in datasets]
    return known + sorted(datasets - set(known))
