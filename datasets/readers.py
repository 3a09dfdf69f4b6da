"""Splits made from the lists or folders of a dataset, where there is no split file.

Always from sorted names, so that the same images and seed give the same split on every file system.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from dassl.data.class_names import brief
from dassl.data.datasets import Datum
from dassl.data.folder_index import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from dassl.data.folder_index import list_images, progress, rows_of_folders
from dassl.data.packed_rows import Rows
from dassl.data.splits import Row, Shuffle, Split, read_json, split_trainval, to_datums
from prompted_clip.errors import MissingFileError, UserError

Parsed = TypeVar("Parsed")


# Folders ----------------------------------------------------------------------------------------------------


def subfolders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones. Links to folders count.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is none in it.
    """
    if not os.path.isdir(folder):
        raise MissingFileError(f"There is no folder {folder}. Unpack the images again.")
    names = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise UserError(f"{folder} holds no folders; expected one for each class.")
    return names


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
        class_names: folder → class name, where they differ.

    Raises:
        ValueError: a class is too small to be split.
    """
    names = class_names or {}
    rows = []
    folders = [name for name in subfolders(image_dir) if name not in ignored]
    for label, folder in enumerate(progress(folders, "Listing images", "folder")):
        images = list_images(os.path.join(image_dir, folder))
        if not images:
            raise UserError(f"{os.path.join(image_dir, folder)} holds no images. Unpack the images again.")
        rows += [(f"{folder}/{image}", label, names.get(folder, folder)) for image in images]
    return _divide(rows, image_dir, shuffle, p_trn, p_val)


def _divide(
    rows: list[Row], image_dir: str, shuffle: Shuffle, p_trn: float = 0.5, p_val: float = 0.2
) -> Split:
    """Divides the images of each class, classes in order of first appearance."""
    print(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and {1 - p_trn - p_val:.0%} test")
    by_label: dict[int, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    split: tuple[list[Row], ...] = ([], [], [])
    for members in by_label.values():
        shuffle(members)
        n_train, n_val = round(len(members) * p_trn), round(len(members) * p_val)
        parts = members[:n_train], members[n_train : n_train + n_val], members[n_train + n_val :]
        if not all(parts):
            path, _, name = members[0]
            raise UserError(
                f"{os.path.dirname(os.path.join(image_dir, path))} has {len(members)} images of {name!r}, "
                f"too few to be split into {p_trn:.0%} train, {p_val:.0%} val and the rest test."
            )
        for collected, part in zip(split, parts, strict=True):
            collected += part
    return Split(*split)


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


# Lists ------------------------------------------------------------------------------------------------------


def _no_list(path: str) -> MissingFileError:
    return MissingFileError(f"There is no split file, and no {path} to make it from. Add one of them.")


def parse_lines(path: str, parse: Callable[[str], Parsed], expected: str) -> list[Parsed]:
    """Returns `parse(line)` for each non-empty line of a text file.

    Args:
        parse: raises ValueError or KeyError for a line that it cannot read.
        expected: what a line holds, for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line cannot be read, or the file is no text.
    """
    if not os.path.isfile(path):
        raise _no_list(path)
    parsed = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file ({error.reason}); expected {expected} per line.") from error
    for number, line in enumerate(lines, 1):
        try:
            if line:
                parsed.append(parse(line))
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}, line {number} is {brief(line)}; expected {expected}.") from error
    if not parsed:
        raise UserError(f"{path} is empty; expected {expected} per line.")
    return parsed


def _held_out(trainval: list[Row], test: list[Row], shuffle: Shuffle) -> Split:
    train, val = split_trainval(trainval, [label for _, label, _ in trainval], shuffle)
    return Split(train, val, test)


def pet_annotations(dataset_dir: str, shuffle: Shuffle) -> Split:
    """Splits by Oxford Pets' own lists. A line is image, class from 1, species, breed."""

    def parse(line: str) -> Row:
        name, label, _, _ = line.split()
        return f"{name}.jpg", int(label) - 1, name.rpartition("_")[0].lower()

    def read(list_file: str) -> list[Row]:
        path = os.path.join(dataset_dir, "annotations", list_file)
        return parse_lines(path, parse, "'name class species breed'")

    return _held_out(read("trainval.txt"), read("test.txt"), shuffle)


def aircraft_lists(dataset_dir: str) -> Split:
    """The split that FGVC-Aircraft's own lists give. A line is an image's number and its variant."""
    variants = parse_lines(os.path.join(dataset_dir, "variants.txt"), str, "the name of a variant")
    labels = {name: label for label, name in enumerate(variants)}

    def parse(line: str) -> Row:
        image, _, variant = line.partition(" ")
        return f"{image}.jpg", labels[variant], variant

    def read(part: str) -> list[Row]:
        path = os.path.join(dataset_dir, f"images_variant_{part}.txt")
        return parse_lines(path, parse, "'image variant', with a variant of variants.txt")

    return Split(read("train"), read("val"), read("test"))


def sun_partition(dataset_dir: str, shuffle: Shuffle) -> Split:
    """Splits by SUN397's first partition. A line is `/a/abbey/sun_x.jpg`, a class `/a/abbey`.

    Of `/b/bakery/shop` the name is "shop bakery": what tells indoor from outdoor comes first.
    """
    classes = parse_lines(os.path.join(dataset_dir, "ClassName.txt"), str, "'/letter/class'")
    labels = {folder: label for label, folder in enumerate(classes)}

    def parse(line: str) -> Row:
        folder = line.rpartition("/")[0]
        words = folder.split("/")[2:]
        return line.removeprefix("/"), labels[folder], " ".join(reversed(words))

    def read(list_file: str) -> list[Row]:
        path = os.path.join(dataset_dir, list_file)
        return parse_lines(path, parse, "'/letter/class/image', with a class of ClassName.txt")

    return _held_out(read("Training_01.txt"), read("Testing_01.txt"), shuffle)


def ucf_lists(dataset_dir: str, shuffle: Shuffle) -> Split:
    """Splits by UCF101's first partition. A line is `ApplyLipstick/v_ApplyLipstick_g01_c01.avi`.

    The middle frame of that video is `Apply_Lipstick/v_ApplyLipstick_g01_c01.jpg`.
    """
    lists = os.path.join(dataset_dir, "ucfTrainTestlist")

    def parse_class(line: str) -> tuple[str, int]:
        number, action = line.split()
        return action, int(number) - 1

    labels = dict(parse_lines(os.path.join(lists, "classInd.txt"), parse_class, "'number action'"))

    def parse(line: str) -> Row:
        action, video = line.split()[0].split("/")
        name = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return f"{name}/{video.removesuffix('.avi')}.jpg", labels[action], name

    def read(list_file: str) -> list[Row]:
        path = os.path.join(lists, list_file)
        return parse_lines(path, parse, "'action/video.avi', with an action of classInd.txt")

    return _held_out(read("trainlist01.txt"), read("testlist01.txt"), shuffle)


# Matlab files -----------------------------------------------------------------------------------------------


def _read_mat(path: str, key: str) -> Sequence[Any]:
    """The vector `key` of a .mat file, with structs as objects and numbers as Python's."""
    if not os.path.isfile(path):
        raise _no_list(path)
    from scipy.io import loadmat  # here, because importing it takes longer than most of a start

    try:
        return loadmat(path, struct_as_record=False, simplify_cells=False, variable_names=[key])[key].ravel()
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise UserError(
            f"{path} is not readable as a Matlab file with the variable {key!r} "
            f"({str(error).partition(chr(10))[0]}). Fetch it again."
        ) from error


def car_annotations(dataset_dir: str, shuffle: Shuffle) -> Split:
    """Splits by Stanford Cars' annotations. Of "Audi TTS Coupe 2012" the name is "2012 Audi TTS Coupe"."""
    meta = os.path.join(dataset_dir, "devkit", "cars_meta.mat")
    names = []
    for cell in _read_mat(meta, "class_names"):
        model, _, year = str(cell.item()).rpartition(" ")
        names.append(f"{year} {model}")

    def read(folder: str, *annotations: str) -> list[Row]:
        path = os.path.join(dataset_dir, *annotations)
        rows = []
        for index, record in enumerate(_read_mat(path, "annotations")):
            try:
                label = int(getattr(record, "class").item()) - 1
                image = str(record.fname.item())
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}: annotation {index} lacks 'fname' or 'class'. For the test images, "
                    "cars_test_annos_withlabels.mat is meant."
                ) from error
            if not 0 <= label < len(names):
                raise UserError(
                    f"{path}: annotation {index} has class {label + 1}; {meta} names 1 to {len(names)}."
                )
            rows.append((f"{folder}/{image}", label, names[label]))
        return rows

    trainval = read("cars_train", "devkit", "cars_train_annos.mat")
    return _held_out(trainval, read("cars_test", "cars_test_annos_withlabels.mat"), shuffle)


def flower_labels(dataset_dir: str, image_dir: str, shuffle: Shuffle) -> Split:
    """Splits the flowers of each kind 50/20/30, as CoOp does; their own lists train on few."""
    names_file = os.path.join(dataset_dir, "cat_to_name.json")
    labels_file = os.path.join(dataset_dir, "imagelabels.mat")
    try:
        labels = [int(label) for label in _read_mat(labels_file, "labels")]
    except TypeError as error:
        raise UserError(f"{labels_file}: expected numbers as 'labels'. Fetch it again.") from error
    if not os.path.isfile(names_file):
        raise _no_list(names_file)
    try:
        names = {int(label): name for label, name in read_json(names_file).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f'{names_file}: expected JSON {{"1": name, "2": name, ...}}. Fetch it again.'
        ) from error
    rows = []
    for number, label in enumerate(labels, 1):
        if label not in names:
            raise UserError(f"{names_file} has no name for class {label} of {labels_file}.")
        rows.append((f"image_{number:05d}.jpg", label - 1, names[label]))
    return _divide(rows, image_dir, shuffle)


# ImageNet ---------------------------------------------------------------------------------------------------


def imagenet_classes(path: str) -> dict[str, str]:
    """Folder → name, in the order of ImageNet's list. A line is `n01440764 tench`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without a name, a folder twice, or folders that are not in order.
    """
    if not os.path.isfile(path):
        raise MissingFileError(
            f"There is no {path}. ImageNet's class list goes there, the classnames.txt published with CoOp, "
            "with lines such as 'n01440764 tench'; see docs/datasets.md."
        )

    def parse(line: str) -> tuple[str, str]:
        folder, name = line.split(maxsplit=1)
        return folder, name

    entries = parse_lines(path, parse, "'folder name'")
    folders = [folder for folder, _ in entries]
    if folders != sorted(set(folders)):
        # Labels are places in the sorted list: another order would give images the names of other classes.
        at = next(
            k
            for k, (folder, right) in enumerate(zip(folders, sorted(folders), strict=True))
            if folder != right or folders.count(folder) > 1
        )
        raise UserError(
            f"{path}: {folders[at]}, class {at + 1}, is out of order or there twice; expected are "
            "ImageNet's folders sorted, as published."
        )
    return dict(entries)


def labelled_folders(image_dir: str, classes: Sequence[tuple[str, str]], under: str = "") -> Rows:
    """All images of a folder for each class, labelled in the order of `classes`, which are `(folder, name)`.

    Args:
        under: the folder in `image_dir` that holds the classes' folders.

    Raises:
        ValueError: other folders are there than those of the classes, or one holds no images.
    """
    top = os.path.join(image_dir, under) if under else image_dir
    present, expected = set(subfolders(top)), {folder for folder, _ in classes}
    for wrong, what in ((expected - present, "missing"), (present - expected, "not in classnames.txt")):
        if wrong:
            raise UserError(
                f"{top}: of the folders of {len(classes)} classes, {len(wrong)} are {what}, the first: "
                f"{min(wrong)}. Unpack the images again, or use the published classnames.txt."
            )
    paths = [f"{under}/{folder}" if under else folder for folder, _ in classes]
    rows = rows_of_folders(
        image_dir,
        [(path, label, name) for label, (path, (_, name)) in enumerate(zip(paths, classes, strict=True))],
    )
    filled = rows.label_names()
    for label, path in enumerate(paths):
        if label not in filled:
            raise UserError(f"{os.path.join(image_dir, path)} holds no images. Unpack the images again.")
    return rows
