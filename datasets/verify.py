"""Checks the folder, split file, images and numbers of a dataset against the published ones."""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dassl.config import get_cfg_default
from dassl.data.few_shot_dataset import FewShotDataset
from dassl.data.splits import Row, Split, load_split, to_rows
from dassl.utils import read_image
from datasets.sources import Entry, checksum_problem, known
from prompted_clip.errors import MissingFileError, UserError

SAMPLE = 300  # images decoded unless all are asked for
SHOWN = 10  # lines of one kind


def verify(entry: Entry, root: Path, decode_all: bool = False) -> tuple[str, list[str]]:
    """Checks a dataset. Changes nothing, but for a benchmark without a published split, which makes its own.

    Returns:
        A summary, and one line per deviation that says what to do.
    """
    folder, image_dir = root / entry.folder, root / entry.folder / entry.images
    again = f"run: python -m datasets prepare {entry.name} --root {root}"
    for path in (folder, image_dir):
        if not path.is_dir():
            return "nothing", [f"no folder {path}: {again}"]
    problems = (
        [] if os.access(image_dir, os.R_OK | os.X_OK) else [f"{image_dir} is not readable: change its mode"]
    )
    try:
        split = read_rows(entry, root)
    except (OSError, ValueError) as error:
        return "no split", [*problems, f"{' '.join(str(error).split())} To fetch it, {again}"]

    problems += _split_file_problems(entry, folder, again)
    present, lost = find_images(split, image_dir)
    total = sum(map(len, split))
    if not present:
        first = next(row for part in split for row in part)[0]
        problems.append(
            f"none of the {total} listed images is in {image_dir} (the first would be {first}): "
            f"the split is of another dataset, or the images are. {_whose(entry, split)}{again}"
        )
    else:
        problems += _lost(lost, image_dir, again)
    problems += _counts(entry, split)
    problems += _broken(present, image_dir, decode_all, again)
    numbers = "/".join(str(len(part)) for part in split)
    found = f"{numbers} train/val/test images, {len(class_names(split))} classes"
    return found, problems


def read_rows(entry: Entry, root: Path) -> Split:
    """The rows of a dataset: of its split file or, if none is published, as its class reads them.

    Raises:
        FileNotFoundError: the split file or the folder is not there.
        ValueError: the split file is damaged.
    """
    folder = root / entry.folder
    if entry.split and not (entry.drawn and not folder.exists()):
        path = folder / entry.split
        if not path.is_file():
            raise MissingFileError(f"no split file {path}.")
        return load_split(str(path))
    if entry.dataset is None:
        raise UserError(f"{entry.name} is not in the catalogue, and has no published split file.")
    dataset = open_dataset(entry, root)
    return Split(
        *(
            to_rows(list(part or []), dataset.image_dir)
            for part in (dataset.train_x, dataset.val, dataset.test)
        )
    )


def open_dataset(entry: Entry, root: Path) -> FewShotDataset:
    """Opens a dataset with all its images and classes, without output."""
    assert entry.dataset is not None
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = entry.name, str(root)
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = -1, "all"
    cfg.SEED = 1
    with contextlib.redirect_stdout(io.StringIO()):
        return entry.dataset(cfg)


def class_names(split: Split) -> dict[int, str]:
    return {label: name for part in split for _, label, name in part}


def find_images(split: Split, image_dir: Path) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows whose files are there, and the names of the others by folder. Lists each folder once."""
    listings: dict[str, set[str]] = {}
    present, lost = [], defaultdict(list)
    for row in (row for part in split for row in part):
        folder, _, name = row[0].rpartition("/")
        if folder not in listings:
            listings[folder] = _listing(image_dir / folder)
        if name in listings[folder]:
            present.append(row)
        else:
            lost[folder].append(name)
    return present, dict(lost)


def _listing(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)}
    except OSError:
        return set()


def _split_file_problems(entry: Entry, folder: Path, again: str) -> list[str]:
    for file in entry.files:
        problem = checksum_problem(folder / file.file, file.hash) if file.file == entry.split else ""
        if problem:
            return [f"{folder / file.file} is not the published file ({problem}): delete it, and {again}"]
    return []


def _whose(entry: Entry, split: Split) -> str:
    """The dataset whose published numbers a split has."""
    for other in known().values():
        numbers = {part: other.counts.get(part) for part in Split._fields}
        if other.name != entry.name and numbers == {
            part: len(getattr(split, part)) for part in Split._fields
        }:
            return f"Its numbers are those of {other.name}. "
    return ""


def _lost(lost: dict[str, list[str]], image_dir: Path, again: str) -> list[str]:
    lines = []
    for folder, names in sorted(lost.items()):
        where = image_dir / folder
        if not where.is_dir():
            lines.append(f"no folder {where}, of {len(names)} images")
        elif not os.access(where, os.R_OK | os.X_OK):
            lines.append(f"{where} is not readable: change its mode")
        else:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"{len(names)} images are not in {where}: {some}")
    return [f"{line}. Delete {image_dir}, and {again}" for line in _few(lines)]


def _counts(entry: Entry, split: Split) -> list[str]:
    labels = sorted({label for part in split for _, label, _ in part})
    base = set(labels[: (len(labels) + 1) // 2])
    found = {part: len(getattr(split, part)) for part in Split._fields}
    found["classes"] = len(labels)
    found["test_base"] = sum(label in base for _, label, _ in split.test)
    found["test_new"] = found["test"] - found["test_base"]
    words = {
        "classes": "classes",
        "test_base": "test images of base classes",
        "test_new": "test images of new classes",
    }
    return [
        f"{found[key]} {words.get(key, f'{key} images')}, published are {number}: "
        "another split, or not all images; results are not comparable"
        for key, number in entry.counts.items()
        if found[key] != number
    ]


def _broken(rows: Sequence[Row], image_dir: Path, decode_all: bool, again: str) -> list[str]:
    paths = list(dict.fromkeys(row[0] for row in rows))
    if not decode_all and len(paths) > SAMPLE:
        paths = random.Random(0).sample(paths, SAMPLE)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        progress = tqdm(
            pool.map(lambda path: decoding_problem(image_dir / path), paths),
            total=len(paths),
            desc="Decoding",
            unit="image",
            delay=2,
        )
        lines = [
            f"{image_dir / path} does not decode ({problem}): delete {image_dir}, and {again}"
            for path, problem in zip(paths, progress, strict=True)
            if problem
        ]
    return _few(lines)


def decoding_problem(path: Path) -> str:
    """Why an image cannot be decoded; empty if it can."""
    try:
        read_image(str(path))
    except UserError as error:
        return " ".join(str(error).removeprefix(f"image {path} ").split()) or type(error).__name__
    return ""


def _few(lines: list[str]) -> list[str]:
    if len(lines) <= SHOWN:
        return lines
    return [*lines[:SHOWN], f"and {len(lines) - SHOWN} more like this, from {lines[SHOWN]}"]


def images_of_classes(split: Split) -> list[tuple[str, list[str]]]:
    """Class name and its images, training images first, in order of the labels."""
    images: dict[int, list[str]] = defaultdict(list)
    for path, label, _ in (row for part in split for row in part):
        images[label].append(path)
    names = class_names(split)
    return [(names[label], images[label]) for label in sorted(images)]


def status(entry: Entry, root: Path) -> str:
    """`yes`, `no`, or what is missing, at a glance: nothing is opened."""
    folder = root / entry.folder
    if not folder.is_dir():
        return "no"
    needed = Counter({entry.images: 1})
    needed.update([entry.split] if entry.split else [])
    needed.update(place for file in entry.files for place in file.places)
    missing = [place for place in needed if not (folder / place).exists()]
    return f"without {', '.join(missing)}" if missing else "yes"
