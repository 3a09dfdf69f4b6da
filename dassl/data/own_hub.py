"""`DATASET.NAME hub`: an image-classification dataset of the Hugging Face hub, by its id.

Its parquet files are read with pyarrow: the hub's own package is called `datasets`, as the folder of the
benchmarks is, so that a checkout cannot import it. See `configs/datasets/hub.yaml` and docs/own_data.md.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import importlib
import io
import json
import os
import re
from typing import Any

from PIL import Image
from tqdm import tqdm

from dassl.config.bounded_yaml import load_yaml
from dassl.data.class_names import brief, check_name, few
from dassl.data.folder_index import IMAGE_SUFFIXES
from dassl.data.own_data import register_as
from dassl.data.own_table import OwnTable
from prompted_clip.errors import MissingFileError, UserError

PART_OF = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
COLUMNS = ("path", "label", "split")  # of the table that is written here
Files = dict[str, list[str]]  # the parquet files of each of the hub's splits


@register_as("hub")
class OwnHub(OwnTable):
    """Writes the images once to `DATASET.ROOT/hub/<id>`, with a table, and reads that as `csv` does.

    Other subsets, revisions, columns or local copies get folders of their own. A folder is written under
    another name and renamed when it is complete. The hub is not asked again.
    """

    def find_table(self, cfg: Any) -> str:
        self.own = cfg.DATASET.OWN
        self._check_settings()  # before much is fetched
        self.repository = os.path.expanduser(self.own.PATH)
        local = os.path.isabs(self.repository)
        if not (
            os.path.isdir(self.repository) if local else re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.own.PATH)
        ):
            raise UserError(
                f"DATASET.OWN.PATH is {self.own.PATH!r}; allowed is the id of a dataset on the hub, such as "
                "ethz/food101, or the whole path of a folder with a copy of one."
            )
        name = self._folder_name(local)
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, "hub", name)
        table = os.path.join(self.dataset_dir, "photos.csv")
        if not os.path.isdir(self.dataset_dir):
            self._create()
        if not os.path.isfile(table):
            raise MissingFileError(f"{self.dataset_dir} has no photos.csv. Delete it to fetch it again.")
        return table

    def _folder_name(self, local: bool) -> str:
        """The id, or the last part of a path, followed by a hash of all settings that choose the images."""
        own = self.own
        path = os.path.realpath(self.repository) if local else own.PATH
        name = re.sub(r"[^\w.-]+", "--", os.path.basename(path) if local else path)
        choice = [own.SUBSET, own.REVISION, own.PATH_COLUMN, own.LABEL_COLUMN]
        if not local and choice == ["", "", "path", "label"]:
            return name
        return f"{name}--{hashlib.sha256(json.dumps([path, *choice]).encode()).hexdigest()[:10]}"

    def columns(self) -> tuple[str, str, str]:
        return COLUMNS

    def make(self, folder: str) -> None:
        """Fetches the parquet files and writes their images and the table into `folder`."""
        parquet = _parquet()
        repository = self.repository if os.path.isabs(self.repository) else self._download()
        card = _read_card(repository)
        parts = _parts(_files_of_splits(repository, card, self.own.SUBSET, self.own.PATH))
        opened = {part: [_open(parquet, file) for file in files] for part, files in parts.items()}
        first = next(iter(opened.values()))[0]
        features = _features(first.schema_arrow, card, self.own.SUBSET)
        image, label = self._image_and_label(features)
        names = features[label]
        lines: list[tuple[str, str, str]] = []
        unlabelled = 0
        total = sum(file.metadata.num_rows for files in opened.values() for file in files)
        with tqdm(total=total, desc="Writing images", unit="image", delay=2) as progress:
            for part, files in opened.items():
                place = os.path.join(folder, "images", part or "all")
                os.makedirs(place)
                rows = (row for file in files for row in _rows(file, image, label))
                for number, (picture, value) in enumerate(rows):
                    progress.update()
                    if value is None or (isinstance(value, int) and value < 0):
                        unlabelled += 1
                        continue
                    where = f"{self.own.PATH}, {part or 'row'} {number}"
                    path = f"images/{part or 'all'}/{number:07d}{_write_image(picture, place, number, where)}"
                    lines.append((path, _name_of(value, names, where), part))
        if unlabelled:
            print(f"Left out: {unlabelled} images without a label")
        with open(os.path.join(folder, "photos.csv"), "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *lines])

    def _download(self) -> str:
        from huggingface_hub import snapshot_download

        print(f"Fetching {self.own.PATH} from the hub")
        try:
            return snapshot_download(
                self.own.PATH,
                repo_type="dataset",
                revision=self.own.REVISION or None,
                allow_patterns=["*.parquet", "README.md"],
            )
        except Exception as error:  # its errors are of many kinds, and none is a fault in this project
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"DATASET.OWN.PATH {self.own.PATH!r} could not be fetched from the hub ({reason}). Check the "
                "id and the network; a private or gated dataset needs `hf auth login`."
            ) from error

    def _image_and_label(self, features: dict[str, Any]) -> tuple[str, str]:
        images = [name for name, kind in features.items() if kind == "image"]
        labels = [name for name, kind in features.items() if isinstance(kind, list)]
        image, label = self.own.PATH_COLUMN, self.own.LABEL_COLUMN
        if image not in images and image in ("", "path") and len(images) == 1:
            image = images[0]
        if label not in features and label in ("", "label") and len(labels) == 1:
            label = labels[0]
        for key, column, allowed in (("PATH", image, images), ("LABEL", label, [*features])):
            if column not in allowed or (key == "LABEL" and column in images):
                raise UserError(
                    f"DATASET.OWN.{key}_COLUMN is {column!r}, but {self.own.PATH} has the columns "
                    f"{few([*features])}, of which {few(images) or 'none'} are images."
                )
        return image, label


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            "DATASET.NAME hub reads parquet files with pyarrow, which is not installed: pip install pyarrow"
        ) from error


def _dicts(value: Any) -> list[dict[str, Any]]:
    """The mappings in a list of a card; empty if the card has another structure."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _open(parquet: Any, path: str) -> Any:
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # Arrow's are of many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not readable as parquet ({reason}). Fetch it again.") from error


def _read_card(repository: str) -> dict[str, Any]:
    """The yaml at the head of the README, where the hub keeps what it knows of a dataset."""
    path = os.path.join(repository, "README.md")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8", errors="replace") as file:
        head = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", file.read(), flags=re.DOTALL)
    try:
        card = load_yaml(head[1], path) if head else {}
    except UserError as error:
        print(f"The card is not used: {error}")
        return {}
    return card if isinstance(card, dict) else {}


# Which files, of which split ------------------------------------------------------------------------------


def _files_of_splits(repository: str, card: dict[str, Any], subset: str, name: str) -> Files:
    """The files of each split: as the card says, or by their names.

    Raises:
        ValueError: no parquet files, or several subsets and none chosen.
    """
    found = sorted(
        os.path.relpath(os.path.join(place, file), repository).replace(os.sep, "/")
        for place, _, files in os.walk(repository)
        for file in files
        if file.endswith(".parquet")
    )
    if not found:
        raise UserError(
            f"{name} holds no parquet files. The hub converts most datasets: try DATASET.OWN.REVISION "
            "refs/convert/parquet; or download its images and use DATASET.NAME folder."
        )
    subsets: dict[str, Files] = {}
    for config in _dicts(card.get("configs")):
        files: Files = {}
        for entry in _dicts(config.get("data_files")):
            globs = entry["path"] if isinstance(entry.get("path"), list) else [str(entry.get("path"))]
            listed = [file for file in found if any(fnmatch.fnmatch(file, str(glob)) for glob in globs)]
            if listed:
                files[str(entry.get("split", "train"))] = listed
        if files:
            subsets[str(config.get("config_name", "default"))] = files
    if not subsets:
        for file in found:
            *folders, base = file.split("/")
            folders = [folder for folder in folders if folder != "data"]
            split = re.split(r"[-.]", base)[0]
            if split not in PART_OF and folders and folders[-1] in PART_OF:
                split = folders.pop()
            subsets.setdefault(folders[0] if folders else "default", {}).setdefault(split, []).append(file)
    chosen = subset or ("default" if "default" in subsets else next(iter(subsets)))
    if chosen not in subsets or (not subset and len(subsets) > 1 and chosen != "default"):
        raise UserError(
            f"DATASET.OWN.SUBSET is {subset!r}; {name} has the subsets {few(sorted(subsets))}. Choose one."
        )
    return {split: [os.path.join(repository, f) for f in files] for split, files in subsets[chosen].items()}


def _parts(files: Files) -> Files:
    """Our parts for the hub's splits; a single one has the part "", and is split by the config's shares."""
    parts: Files = {}
    for split, listed in files.items():
        if split in PART_OF:
            parts.setdefault(PART_OF[split], []).extend(listed)
        elif len(files) > 1:
            print(f"Not used: the split {split!r}; known are {', '.join(PART_OF)}")
    if "train" not in parts or len(parts) == 1:
        return {"": [file for listed in (parts or files).values() for file in listed]}
    if "test" not in parts:
        print("There is no split for testing: that for validation is taken")
        parts["test"] = parts.pop("val")
    return parts


# What is in them ------------------------------------------------------------------------------------------


def _features(schema: Any, card: dict[str, Any], subset: str) -> dict[str, Any]:
    """Column → "image", a list of class names, or "" for all else; by the file, else by the card."""
    kinds: dict[str, Any] = {}
    for field in schema:
        inner = {field.type.field(k).name for k in range(field.type.num_fields)}
        kinds[field.name] = "image" if {"bytes", "path"} <= inner else ""
    for name, kind in _described(schema).items():
        if name in kinds and isinstance(kind, dict) and kind.get("_type") == "ClassLabel":
            kinds[name] = kind.get("names") or ""
    infos = card.get("dataset_info")
    infos = _dicts(infos if isinstance(infos, list) else [infos])
    for info in infos:
        if len(infos) > 1 and info.get("config_name") != (subset or "default"):
            continue
        for feature in _dicts(info.get("features")):
            dtype = feature.get("dtype")
            names = dtype.get("class_label", {}).get("names") if isinstance(dtype, dict) else None
            if names and kinds.get(str(feature.get("name"))) == "":
                kinds[str(feature.get("name"))] = _in_order(names)
    return kinds


def _described(schema: Any) -> dict[str, Any]:
    """The features that the hub's own package notes in a parquet file."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _in_order(names: Any) -> list[Any]:
    """The names of a card, a list or `{number: name}`."""
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        return [names[key] for key in sorted(names, key=int)]
    return list(names) if isinstance(names, list) else []


def _rows(file: Any, image: str, label: str) -> Any:
    """Pairs of image struct and label, a few at a time: a file may be larger than the memory."""
    try:
        for batch in file.iter_batches(batch_size=64, columns=[image, label]):
            yield from zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"A parquet file of the dataset is damaged ({reason}). Fetch it again.") from error


def _name_of(value: Any, names: Any, where: str) -> str:
    if not isinstance(names, list):
        return str(value)
    if not isinstance(value, int) or value >= len(names):
        raise UserError(f"{where}: the label is {brief(value)}; allowed is 0 to {len(names) - 1}.")
    check_name(names[value], f"{where}: the name of class {value}", "Name it in the dataset's card.")
    return names[value]


def _write_image(picture: Any, place: str, number: int, where: str) -> str:
    """Writes the bytes as they are; returns the suffix."""
    content = (picture or {}).get("bytes")
    if not content:
        raise UserError(
            f"{where}: the parquet file has no bytes of the image. Use DATASET.NAME folder or csv."
        )
    suffix = os.path.splitext(picture.get("path") or "")[1].lower()
    if suffix not in IMAGE_SUFFIXES:
        try:
            with Image.open(io.BytesIO(content)) as image:
                suffix = f".{(image.format or '').lower()}"
        except Exception as error:  # Pillow's readers raise what they stumble over
            raise UserError(f"{where} is no image that can be read ({brief(str(error))}).") from error
    with open(os.path.join(place, f"{number:07d}{suffix}"), "wb") as file:
        file.write(content)
    return suffix
