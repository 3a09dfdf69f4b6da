"""The benchmarks, a few lines each: folders, split files and templates as published with CoOp.

A dataset is a subclass of `CatalogDataset`, registered under its class name (`DATASET.NAME`). It says

    dataset_dir   its folder under DATASET.ROOT
    image_dir     the folder in it that the split file's paths start from
    split_file    the split file in it
    template      the hand-written sentence for a class name
    make_split()  how to split where there is no split file
    make()        how to make the folder where there is none (only for what the project draws itself)
"""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY
from datasets import readers
from datasets.catalog_dataset import CatalogDataset
from datasets.splits import Shuffle, Split


@DATASET_REGISTRY.register()
class OxfordPets(CatalogDataset):
    """37 breeds of cats and dogs. Parkhi et al., CVPR 2012."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.pet_annotations(self.dataset_dir, shuffle)


@DATASET_REGISTRY.register()
class DescribableTextures(CatalogDataset):
    """47 textures (DTD). Cimpoi et al., CVPR 2014."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.class_folders(self.image_dir, shuffle)

    read_and_split_data = staticmethod(readers.read_and_split_data)


@DATASET_REGISTRY.register()
class EuroSAT(CatalogDataset):
    """10 kinds of land use seen by Sentinel-2. Helber et al., 2019, arXiv 1709.00029."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."

    def make_split(self, shuffle: Shuffle) -> Split:
        class_names = {
            "AnnualCrop": "Annual Crop Land",
            "Forest": "Forest",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "River": "River",
            "SeaLake": "Sea or Lake",
        }
        return readers.class_folders(self.image_dir, shuffle, class_names=class_names)


@DATASET_REGISTRY.register()
class Caltech101(CatalogDataset):
    """100 kinds of objects, without the background and the second set of faces. Fei-Fei et al., 2004."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    template = "a photo of a {}."

    def make_split(self, shuffle: Shuffle) -> Split:
        ignored = {"BACKGROUND_Google", "Faces_easy"}
        class_names = {
            "airplanes": "airplane",
            "Faces": "face",
            "Leopards": "leopard",
            "Motorbikes": "motorbike",
        }
        return readers.class_folders(self.image_dir, shuffle, ignored, class_names)
