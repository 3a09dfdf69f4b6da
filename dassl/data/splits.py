"""Which images are for training, validation and test: split files, shots, base and new classes.

A split file is JSON as published with CoOp, with paths relative to the folder of the images:
`{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, TypeVar

from dassl.data.class_names import brief, check_class_names, check_path
from dassl.data.datasets import Datum
from dassl.data.folder_index import listing, progress
from dassl.data.locks import sole_maker
from dassl.data.packed_rows import BLOCK, Datums, Row, Rows, unpack_names
from dassl.utils.tools import atomic_open
from prompted_clip.errors import MissingFileError, UserError

MOST_BYTES = 2_000_000_000  # of a JSON file
LAZY_FROM = 100_000  # images: larger splits create Datums on access
Shuffle = Callable[[list[Any]], None]  # random.shuffle, or that of a random.Random
Item = TypeVar("Item")


class Split(NamedTuple):
    train: Sequence[Row]
    val: Sequence[Row]
    test: Sequence[Row]


# Reading and writing ----------------------------------------------------------------------------------------


def load_split(path: str, names: bool = True) -> Split:
    """Reads and checks a split file.

    Args:
        names: whether the names of its classes are used, and so checked.

    Raises:
        ValueError: the file is no JSON, has another structure, an image twice or elsewhere, or its labels are
            not 0 to n - 1.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"train", "val", "test"} <= content.keys():
        raise UserError(f'{path} is no split file: expected {{"train": [...], "val": [...], "test": [...]}}.')
    split = Split(*(as_rows(content[part], f"{path}: {part}") for part in Split._fields))
    check_paths(split, path)
    check_labels(split, path, with_names=names)
    return split


def read_json(path: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises:
        ValueError: it is no JSON, has a key twice, or is too large or deep to be meant.
    """
    reason: object
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES / 1e9:g} GB, too large for a list of images.")
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, object_pairs_hook=_unique)
    except UserError:
        raise
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as error:
        reason = error
    raise UserError(
        f"{path} is not readable as JSON ({reason}). Put the published or saved file there again."
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {brief(twice)} stands there twice")
    return dict(pairs)


def as_rows(content: Any, where: str) -> list[Row]:
    """Checks that `content` is a list of `[path, label, class name]`. `where` names it in the error."""
    if not isinstance(content, list):
        raise UserError(f"{where} is {type(content).__name__}; expected a list of [path, label, class name].")
    rows = []
    for index, row in enumerate(content):
        if not isinstance(row, list) or [type(field) for field in row] != [str, int, str]:
            raise UserError(f"{where}[{index}] is {brief(row)}; expected [path, label, class name].")
        rows.append((row[0], row[1], row[2]))
    return rows


def write_json(content: Any, path: str) -> None:
    """Writes a JSON file atomically; packed rows as lists of `[path, label, class name]`."""
    with atomic_open(path) as file:
        file.writelines(_pieces(content))


def _pieces(content: Any) -> Iterator[str]:
    """The JSON of content, without lists of all of its packed rows."""
    if isinstance(content, dict):
        for before, key in zip(chain("{", repeat(", ")), content, strict=False):
            yield f"{before}{json.dumps(key)}: "
            yield from _pieces(content[key])
        yield "}" if content else "{}"
    elif isinstance(content, Rows):
        rows = iter(content)
        for before in chain("[", repeat(", ")):
            if not (block := list(islice(rows, BLOCK))):
                break
            yield before + json.dumps(block)[1:-1]
        yield "]" if content else "[]"
    else:
        yield json.dumps(content)


def write_shared_json(content: Any, path: str, dataset_dir: str, replace: bool = True) -> None:
    """Writes a JSON file in a dataset's folder, which other runs may write too.

    Raises:
        FileExistsError: the file exists, and `replace` is False.
    """
    with sole_maker(path, os.path.join(dataset_dir, ".folder_index", "lock")):
        if not replace and os.path.exists(path):
            raise FileExistsError(errno.EEXIST, "another run was faster", path)
        write_json(content, path)


# Checking ---------------------------------------------------------------------------------------------------


def check_paths(split: Split, source: str) -> None:
    """Checks that each image lies below the images' folder and is listed once, in one part."""
    seen: dict[str, str] = {}
    for part, rows in zip(Split._fields, split, strict=True):
        for index, (path, _, _) in enumerate(rows):
            where = f"{source}: {part}[{index}], {brief(path)},"
            check_path(path, f"{source}: {part}[{index}]")
            inside = os.path.normpath(path).replace(os.sep, "/")
            if os.path.isabs(path) or inside.split("/")[0] in ("", ".", "..") or os.path.splitdrive(path)[0]:
                raise UserError(f"{where} is no path below the folder of the images. Paths start from there.")
            if inside in seen:
                raise UserError(f"{where} is in {seen[inside]}, too: each image has one place. Keep one.")
            seen[inside] = f"{part}[{index}]"


def check_labels(split: Split, source: str, with_names: bool = True) -> None:
    """Checks that training labels are 0 to n - 1, each with one name, and val and test have no others.

    Args:
        with_names: whether to check the names, too; see `check_class_names`.
    """
    names: dict[int, str] = {}
    parts = [Rows.pack(part) for part in split]
    for rows in parts:
        for position, (_, label, name) in enumerate(rows.groups):
            if names.setdefault(label, name) != name:
                path, _, _ = rows[int((rows.group_of == position).argmax())]
                raise UserError(
                    f"{source}: label {brief(label)} is {brief(names[label])} and, at {path[:200]}, "
                    f"{brief(name)}; expected one name."
                )
    for part in ("train", "test"):
        if not getattr(split, part):
            raise UserError(f"{source}: {part} lists no images.")
    trained = set(parts[0].label_names())
    if trained != set(range(len(names))):
        wrong = sorted(trained ^ set(range(len(names))))
        raise UserError(
            f"{source}: {len(names)} classes, so training labels must be 0 to {len(names) - 1}; "
            f"missing or out of place: {brief(wrong[:5])}."
        )
    if with_names:
        check_class_names(names, source, "Give each class a name of its own there.")


def check_images(split: Split, image_dir: str, source: str) -> None:
    """Checks that all images are there. Lists each folder once, instead of asking for each image."""
    missing, first = 0, ""
    for part in split:
        rows = Rows.pack(part)
        positions = [
            position
            for folder, those in progress(rows.by_folder().items(), "Looking for images", "folder")
            for position in _missing(rows, folder, those.tolist(), image_dir)
        ]
        missing += len(positions)
        if positions and not first:
            first = rows[min(positions)][0]
    if missing:
        total = sum(len(part) for part in split)
        raise MissingFileError(
            f"{source}: {missing} of {total} images are missing, the first: "
            f"{os.path.join(image_dir, first)}. Unpack the images again, or use the split made for them."
        )


def _missing(rows: Rows, folder: str, positions: list[int], image_dir: str) -> list[int]:
    """Those of the images in one folder that are not there."""
    try:
        there = listing(os.path.join(image_dir, folder))
    except (FileNotFoundError, NotADirectoryError):
        return positions
    first, last = positions[0], positions[-1]
    if last - first == len(positions) - 1 and rows.packed(first, last + 1) == there.images:
        return []  # the rows were made from such a listing
    names = {name for packed in there for name in unpack_names(packed)}
    return [position for position in positions if rows.name(position) not in names]


def check_subsample(subsample: str) -> None:
    if subsample not in ("all", "base", "new"):
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES is {subsample!r}; allowed are all, base and new.")


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
            raise UserError(
                f"Class {label} has {len(members)} images, of which {p_val:.0%} is none; add images."
            )
        shuffle(members)
        val += members[:n_val]
        train += members[n_val:]
    return train, val


def few_shot(
    train: Sequence[Row], val: Sequence[Row], shots: int, seed: int, cache: str
) -> tuple[list[Row], list[Row]]:
    """Draws `shots` training images per class and up to 4 for validation, from one `random.Random(seed)`.

    Global random numbers are neither used nor changed. The result is saved in the file `cache`, and read from
    there if the images, shots and seed are the same.
    """
    train, val = Rows.pack(train), Rows.pack(val)
    source = hashlib.sha256(json.dumps([train.digest(), val.digest(), shots, seed]).encode()).hexdigest()
    if os.path.exists(cache):
        try:
            cached = read_shots(cache, source)
            print(f"Loading preprocessed few-shot data from {cache}")
            return cached
        except (OSError, ValueError) as error:
            print(f"Drawing the few-shot data again: {error}")
    rng = random.Random(seed)
    drawn = sample_shots(train, shots, rng), sample_shots(val, min(shots, 4), rng)
    try:
        content = {"source": source, "drawn": _digest(*drawn), "train": drawn[0], "val": drawn[1]}
        write_shared_json(content, cache, os.path.dirname(os.path.dirname(cache)))
        print(f"Saving preprocessed few-shot data to {cache}")
    except OSError as error:
        print(f"Few-shot data not saved: {error}")
    return drawn


def read_shots(cache: str, source: str) -> tuple[list[Row], list[Row]]:
    content = read_json(cache)
    if not isinstance(content, dict) or content.get("source") != source:
        raise UserError(f"{cache} was drawn from another split.")
    drawn = as_rows(content.get("train"), f"{cache}: train"), as_rows(content.get("val"), f"{cache}: val")
    if content.get("drawn") != _digest(*drawn):
        raise UserError(f"{cache} was changed.")
    return drawn


def _digest(*parts: list[Row]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def sample_shots(rows: Sequence[Row], shots: int, rng: random.Random) -> list[Row]:
    """Draws `shots` rows of each label, in order of first appearance; of a smaller class, all undrawn."""
    print(f"Creating a {shots}-shot dataset")
    rows = Rows.pack(rows)
    drawn: list[Row] = []
    for positions in rows.by_label().values():
        # Which places of a sequence are drawn depends on its length alone.
        places = range(len(positions))
        chosen = rng.sample(places, shots) if len(positions) >= shots else places
        drawn += [rows[int(positions[place])] for place in chosen]
    return drawn


def select_labels(labels: Collection[int], subsample: str, novel: Collection[int] = ()) -> list[int]:
    """The labels that `subsample` asks for, sorted.

    Args:
        novel: the `new` labels; if empty, all but the first ceil(n / 2). `base` is the rest.

    Raises:
        ValueError: none is left.
    """
    check_subsample(subsample)
    labels = sorted(labels)
    if subsample == "all":
        return labels
    new = set(labels) & set(novel) if novel else set(labels[(len(labels) + 1) // 2 :])
    selected = [label for label in labels if (label in new) == (subsample == "new")]
    if not selected:
        raise UserError(
            f"DATASET.SUBSAMPLE_CLASSES {subsample!r} leaves none of {len(labels)} classes; use 'all'."
        )
    return selected


def subsample_classes(
    *args: Sequence[Datum], subsample: str = "all", novel: Collection[int] = ()
) -> list[Any]:
    """Keeps the base or the new classes among the labels of the first list, see `select_labels`; from 0."""
    first = args[0]
    labels = first.label_names() if isinstance(first, Datums) else {item.label for item in first}
    selected = select_labels(labels, subsample, novel)
    if subsample == "all":
        return list(args)
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    relabel = {label: position for position, label in enumerate(selected)}
    return [
        items.relabelled(relabel)
        if isinstance(items, Datums)
        else [
            Datum(impath=item.impath, label=relabel[item.label], domain=item.domain, classname=item.classname)
            for item in items
            if item.label in relabel
        ]
        for items in args
    ]


# Rows and Datums: files hold the first, the engine takes the second -----------------------------------------


def to_datums(rows: Sequence[Row], image_dir: str) -> Any:
    """A list of Datums; from `LAZY_FROM` rows on, `Datums`, which creates each on access."""
    if len(rows) >= LAZY_FROM:
        return Datums(Rows.pack(rows), image_dir)
    return [
        Datum(impath=os.path.join(image_dir, path), label=label, classname=name) for path, label, name in rows
    ]


def to_rows(datums: Iterable[Datum], image_dir: str) -> list[Row]:
    """The rows of any Datums, with paths relative to `image_dir`."""
    return [
        (os.path.relpath(item.impath, image_dir).replace(os.sep, "/"), item.label, item.classname)
        for item in datums
    ]
