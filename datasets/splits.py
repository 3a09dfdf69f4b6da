"""Which images are for training, validation and test: split files, shots, base and new classes.

A split file is JSON as published with CoOp, with paths relative to the folder of the images:
`{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar

from dassl.data.datasets import Datum

Row = tuple[str, int, str]  # path, label, class name
Shuffle = Callable[[list[Any]], None]  # random.shuffle, or that of a random.Random
Item = TypeVar("Item")


class Split(NamedTuple):
    train: list[Row]
    val: list[Row]
    test: list[Row]


# Reading and writing ----------------------------------------------------------------------------------------


def load_split(path: str) -> Split:
    """Reads and checks a split file.

    Raises:
        ValueError: the file is no JSON, is built otherwise, or numbers its classes otherwise than 0 to n - 1.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"train", "val", "test"} <= content.keys():
        raise ValueError(
            f'{path} is no split file: expected {{"train": [...], "val": [...], "test": [...]}}.'
        )
    split = Split(*(as_rows(content[part], f"{path}: {part}") for part in Split._fields))
    check_labels(split, path)
    return split


def read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}). Fetch it again or delete it.") from error


def as_rows(content: Any, where: str) -> list[Row]:
    """Checks that `content` is a list of `[path, label, class name]`. `where` names it in the error."""
    if not isinstance(content, list):
        raise ValueError(
            f"{where} is {type(content).__name__}; expected a list of [path, label, class name]."
        )
    rows = []
    for index, row in enumerate(content):
        if not isinstance(row, list) or [type(field) for field in row] != [str, int, str]:
            raise ValueError(
                f"{where}[{index}] is {json.dumps(row)[:80]}; expected [path, label, class name]."
            )
        rows.append((row[0], row[1], row[2]))
    return rows


def write_json(content: Any, path: str, replace: bool = True) -> None:
    """Writes the file whole or not at all.

    Raises:
        FileExistsError: the file is there, and is not to be replaced.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(part, "x", encoding="utf-8") as file:
            json.dump(content, file)
        if not replace:
            try:
                os.link(part, path)
                return
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                pass
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


# Checking ---------------------------------------------------------------------------------------------------


def check_labels(split: Split, source: str) -> None:
    """Checks that training labels are 0 to n - 1, each with one name, and val and test have no others."""
    names: dict[int, str] = {}
    for path, label, name in (row for part in split for row in part):
        if names.setdefault(label, name) != name:
            raise ValueError(
                f"{source}: label {label} is {names[label]!r} and, at {path}, {name!r}; expected one name."
            )
    for part in ("train", "test"):
        if not getattr(split, part):
            raise ValueError(f"{source}: {part} lists no images.")
    trained = {label for _, label, _ in split.train}
    if trained != set(range(len(names))):
        wrong = sorted(trained ^ set(range(len(names))))
        raise ValueError(
            f"{source}: {len(names)} classes, so training labels must be 0 to {len(names) - 1}; "
            f"missing or out of place: {wrong[:5]}."
        )


def check_images(split: Split, image_dir: str, source: str) -> None:
    """Checks that all images are there. Lists each folder once, instead of asking for each image."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path, _, _ in (row for part in split for row in part):
        folder, _, name = path.rpartition("/")
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(os.path.join(image_dir, folder)))
            except (FileNotFoundError, NotADirectoryError):
                listings[folder] = set()
        if name not in listings[folder]:
            missing.append(path)
    if missing:
        total = sum(len(part) for part in split)
        raise FileNotFoundError(
            f"{source}: {len(missing)} of {total} images are missing, the first: "
            f"{os.path.join(image_dir, missing[0])}. Unpack the images again, or use the split made for them."
        )


def check_subsample(subsample: str) -> None:
    if subsample not in ("all", "base", "new"):
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is {subsample!r}; allowed are all, base and new.")


# Dividing ---------------------------------------------------------------------------------------------------


def split_trainval(
    items: list[Item], labels: list[int], shuffle: Shuffle, p_val: float = 0.2
) -> tuple[list[Item], list[Item]]:
    """Holds out the share `p_val` of each class for validation.

    Raises:
        ValueError: a class is too small.
    """
    print(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
    by_label: dict[int, list[Item]] = defaultdict(list)
    for item, label in zip(items, labels, strict=True):
        by_label[label].append(item)
    train: list[Item] = []
    val: list[Item] = []
    for label, members in by_label.items():
        n_val = round(len(members) * p_val)
        if n_val == 0:
            raise ValueError(
                f"Class {label} has {len(members)} images, of which {p_val:.0%} is none; add images."
            )
        shuffle(members)
        val += members[:n_val]
        train += members[n_val:]
    return train, val


def few_shot(
    train: list[Row], val: list[Row], shots: int, seed: int, cache: str
) -> tuple[list[Row], list[Row]]:
    """Draws `shots` training images a class and up to 4 for validation, from one stream of random numbers.

    The draw is kept in the file `cache`, and read from there if it is of the same images, shots and seed.
    """
    source = hashlib.sha256(json.dumps([train, val, shots, seed]).encode()).hexdigest()
    if os.path.exists(cache):
        try:
            kept = read_shots(cache, source)
            print(f"Loading preprocessed few-shot data from {cache}")
            return kept
        except (OSError, ValueError) as error:
            print(f"Drawing the few-shot data again: {error}")
    rng = random.Random(seed)
    drawn = sample_shots(train, shots, rng), sample_shots(val, min(shots, 4), rng)
    try:
        write_json({"source": source, "train": drawn[0], "val": drawn[1]}, cache)
        print(f"Saving preprocessed few-shot data to {cache}")
    except OSError as error:
        print(f"Few-shot data not saved: {error}")
    return drawn


def read_shots(cache: str, source: str) -> tuple[list[Row], list[Row]]:
    content = read_json(cache)
    if not isinstance(content, dict) or content.get("source") != source:
        raise ValueError(f"{cache} was drawn from another split.")
    return as_rows(content.get("train"), f"{cache}: train"), as_rows(content.get("val"), f"{cache}: val")


def sample_shots(rows: list[Row], shots: int, rng: random.Random) -> list[Row]:
    """Draws `shots` rows of each label, in order of first appearance; of a smaller class, all undrawn."""
    print(f"Creating a {shots}-shot dataset")
    by_label: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row[1]].append(row)
    drawn: list[Row] = []
    for members in by_label.values():
        drawn += rng.sample(members, shots) if len(members) >= shots else members
    return drawn


def select_labels(labels: Collection[int], subsample: str, novel: Collection[int] = ()) -> list[int]:
    """The labels that `subsample` asks for, sorted.

    Args:
        novel: the labels that are `new`; without any, those behind the first ceil(n / 2). `base` is the rest.

    Raises:
        ValueError: none is left.
    """
    check_subsample(subsample)
    labels = sorted(labels)
    if subsample == "all":
        return labels
    new = [label for label in labels if label in novel] if novel else labels[(len(labels) + 1) // 2 :]
    selected = new if subsample == "new" else [label for label in labels if label not in new]
    if not selected:
        raise ValueError(
            f"DATASET.SUBSAMPLE_CLASSES {subsample!r} leaves none of {len(labels)} classes; use 'all'."
        )
    return selected


def subsample_classes(
    *args: list[Datum], subsample: str = "all", novel: Collection[int] = ()
) -> list[list[Datum]]:
    """Keeps the base or the new classes among the labels of the first list, see `select_labels`; from 0."""
    selected = select_labels({item.label for item in args[0]}, subsample, novel)
    if subsample == "all":
        return list(args)
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    relabel = {label: position for position, label in enumerate(selected)}
    return [
        [
            Datum(impath=item.impath, label=relabel[item.label], domain=item.domain, classname=item.classname)
            for item in items
            if item.label in relabel
        ]
        for items in args
    ]


# Rows and Datums: files hold the first, the engine takes the second -----------------------------------------


def to_datums(rows: list[Row], image_dir: str) -> list[Datum]:
    return [
        Datum(impath=os.path.join(image_dir, path), label=label, classname=name) for path, label, name in rows
    ]


def to_rows(datums: list[Datum], image_dir: str) -> list[Row]:
    return [
        (os.path.relpath(item.impath, image_dir).replace(os.sep, "/"), item.label, item.classname)
        for item in datums
    ]
