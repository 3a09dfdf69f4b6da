"""The benchmarks, a few lines each: folders, split files and templates as published with CoOp.

A dataset is a subclass of `FewShotDataset`, registered under its class name (`DATASET.NAME`). It says

    dataset_dir   its folder under DATASET.ROOT
    image_dir     the folder in it that the split file's paths start from
    split_file    the split file in it
    template      the hand-written sentence for a class name
    make_split()  how to split where there is no split file
    own_lists     the files in it that are its split, where none is published with CoOp (`FixedSplit`)
    make()        how to make the folder where there is none (only for what the project draws itself)
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dassl.data import splits
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.data.few_shot_dataset import FewShotDataset
from dassl.data.splits import Row, Shuffle, Split
from datasets import readers
from prompted_clip.errors import MissingFileError, UserError


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """37 breeds of cats and dogs. Parkhi et al., CVPR 2012."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.pet_annotations(self.dataset_dir, shuffle)


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """47 textures (DTD). Cimpoi et al., CVPR 2014."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.class_folders(self.image_dir, shuffle)

    read_and_split_data = staticmethod(readers.read_and_split_data)


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
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
class Caltech101(FewShotDataset):
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


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """196 models of cars, with their year. Krause et al., 3dRR 2013."""

    dataset_dir = "stanford_cars"
    image_dir = ""  # the paths start with cars_train or cars_test
    split_file = "split_zhou_StanfordCars.json"
    template = "a photo of a {}."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.car_annotations(self.dataset_dir, shuffle)


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """102 flowers (Flowers102). Nilsback and Zisserman, ICVGIP 2008."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.flower_labels(self.dataset_dir, self.image_dir, shuffle)


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """101 dishes. Bossard et al., ECCV 2014."""

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.class_folders(self.image_dir, shuffle)


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """397 scenes. Xiao et al., CVPR 2010."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    template = "a photo of a {}."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.sun_partition(self.dataset_dir, shuffle)


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """101 actions, each video by its middle frame. Soomro et al., 2012, arXiv 1212.0402."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."

    def make_split(self, shuffle: Shuffle) -> Split:
        return readers.ucf_lists(self.dataset_dir, shuffle)


class FixedSplit(FewShotDataset):
    """A benchmark whose own files are the split: they are read each time, and no split file is saved."""

    own_lists: tuple[str, ...] = ()

    def beside_images(self) -> str:
        return f"{', '.join(self.own_lists)} in {self.dataset_dir}"

    def find_split(self, shuffle: Shuffle) -> Split:
        for name in self.own_lists:
            path = os.path.join(self.dataset_dir, name)
            if not os.path.isfile(path):
                raise MissingFileError(
                    f"{type(self).__name__}: there is no {path}. Expected are {self.beside_images()}; "
                    "docs/datasets.md tells where they come from."
                )
        split = self.make_split(shuffle)
        splits.check_labels(split, self.dataset_dir)
        return split


@DATASET_REGISTRY.register()
class FGVCAircraft(FixedSplit):
    """100 variants of aircraft. Maji et al., 2013, arXiv 1306.5151."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"
    own_lists = (
        "variants.txt",
        "images_variant_train.txt",
        "images_variant_val.txt",
        "images_variant_test.txt",
    )
    template = "a photo of a {}, a type of aircraft."

    def make_split(self, shuffle: Shuffle) -> Split:
        split = readers.aircraft_lists(self.dataset_dir)
        splits.check_images(split, self.image_dir, self.dataset_dir)
        return split


# ImageNet and what is tested with its classes. The images themselves are listed, so none can be missing.


@DATASET_REGISTRY.register()
class ImageNet(FixedSplit):
    """1000 kinds of things. Deng et al., CVPR 2009. Its val is for testing, and for choosing a model too."""

    dataset_dir = "imagenet"
    image_dir = "images"
    own_lists = ("classnames.txt",)
    template = "a photo of a {}."

    read_classnames = staticmethod(readers.imagenet_classes)

    def make_split(self, shuffle: Shuffle) -> Split:
        classes = list(readers.imagenet_classes(os.path.join(self.dataset_dir, "classnames.txt")).items())
        train, test = (readers.labelled_folders(self.image_dir, classes, part) for part in ("train", "val"))
        return Split(train, [], test)

    @property
    def val(self) -> Sequence[Datum] | None:
        return self.test


class ImageNetVariant(FixedSplit):
    """Images to test what was trained on ImageNet. There is nothing to train on, whatever the shots are."""

    own_lists = ("classnames.txt",)
    template = "a photo of a {}."
    test_only = True

    def make_split(self, shuffle: Shuffle) -> Split:
        classes = readers.imagenet_classes(os.path.join(self.dataset_dir, "classnames.txt"))
        test = self.list_images(classes)
        return Split(test, [], test)  # the first tells the classes; see `test_only`

    def list_images(self, classes: dict[str, str]) -> Sequence[Row]:
        return readers.labelled_folders(self.image_dir, list(classes.items()))


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """ImageNet collected once more, in folders 0 to 999. Recht et al., ICML 2019."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def list_images(self, classes: dict[str, str]) -> Sequence[Row]:
        numbered = [(str(label), name) for label, name in enumerate(classes.values())]
        return readers.labelled_folders(self.image_dir, numbered)


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """Black and white sketches. Wang et al., NeurIPS 2019."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"


class ImageNetPart(ImageNetVariant):
    """Images of 200 of the classes, which are labelled from 0 in the order of ImageNet's list."""

    n_classes = 200

    def list_images(self, classes: dict[str, str]) -> Sequence[Row]:
        folders = readers.subfolders(self.image_dir)
        present = [(folder, name) for folder, name in classes.items() if folder in folders]
        if len(folders) != self.n_classes or len(present) != self.n_classes:
            raise UserError(
                f"{self.image_dir} holds {len(folders)} folders, {len(present)} of them in classnames.txt; "
                f"expected are {self.n_classes}, all of them there. Unpack the images again."
            )
        return readers.labelled_folders(self.image_dir, present)


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetPart):
    """Natural images that mislead (ImageNet-A). Hendrycks et al., CVPR 2021."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetPart):
    """Renditions, such as art, toys and tattoos (ImageNet-R). Hendrycks et al., ICCV 2021."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
