"""From what a source holds to the published layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.archives import Unsafe, check_name
from datasets.fetch import library


def take(unpacked: Path, wanted: dict[str, str], folder: Path) -> None:
    """Moves paths of an unpacked archive to their places in `folder`; what is there already stays.

    A path is looked for at any depth, the least deep first: archives differ in the folders around it.

    Raises:
        FileNotFoundError: the archive has no such path. Nothing was moved.
    """
    found = {}
    for path, place in wanted.items():
        if not (folder / place).exists():
            found[place] = unpacked if path == "." else _find(unpacked, path)
    for place, source in found.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)


def _find(unpacked: Path, path: str) -> Path:
    ending = Path(path).parts
    level = [unpacked]
    while level:
        below = []
        for folder in level:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                inside = Path(entry.path)
                if inside.relative_to(unpacked).parts[-len(ending) :] == ending:
                    return inside
                if entry.is_dir(follow_symlinks=False):
                    below.append(inside)
        level = below
    holds = sorted(os.listdir(unpacked))
    raise FileNotFoundError(f"it holds no {path}; it holds {', '.join(holds[:6])}")


def link(elsewhere: Path, target: Path) -> None:
    """Makes `target` a relative link to what is there under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    start = os.path.realpath(target.parent)
    target.symlink_to(os.path.relpath(os.path.realpath(elsewhere), start))


def imagenet_val(unpacked: Path, folder: Path) -> None:
    """Sorts ImageNet's 50,000 validation images, all in one folder, into a folder for each class.

    Reads `devkit/data/meta.mat` and `devkit/data/ILSVRC2012_validation_ground_truth.txt`, the class of each
    image in order of the images' names.

    Raises:
        FileNotFoundError: there is no devkit.
        ValueError: images and ground truth are not of the same number.
    """
    data = folder / "devkit" / "data"
    truth_file = data / "ILSVRC2012_validation_ground_truth.txt"
    for path in (truth_file, data / "meta.mat"):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is needed to sort the validation images: prepare the devkit first"
            )
    synsets = library("scipy.io", "ImageNet's devkit").loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
    folders = {
        int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0
    }
    truth = [int(line) for line in truth_file.read_text(encoding="ascii").split()]
    images = sorted(path for path in unpacked.iterdir() if path.suffix == ".JPEG")
    if len(images) != len(truth):
        raise ValueError(f"{len(images)} validation images, and {truth_file} has the classes of {len(truth)}")
    for number in set(truth):
        (unpacked / folders[number]).mkdir(exist_ok=True)
    for image, number in zip(tqdm(images, desc="Sorting", unit="image", delay=2), truth, strict=True):
        os.rename(image, unpacked / folders[number] / image.name)


ARRANGEMENTS = {"imagenet_val": imagenet_val}


def parquet_images(files: list[Path], name: str, folder: Path) -> int:
    """Writes the images of a dataset in the hub's form into `folder`, as the bytes that they are.

    Args:
        name: path of an image, such as `{label_name}/{image_id}.jpg`. The fields are the files' columns;
            `{label_name}` is the name of the class in the column `label`, `{path}` the image's own file name
            and `{row}` a running number.

    Returns:
        The number of images.

    Raises:
        Unsafe: a name leads out of the folder, or two images have the same.
        ValueError: there is no such column, or a file is damaged.
    """
    parquet = library("pyarrow.parquet", "A dataset in the hub's form")
    arrow = library("pyarrow", "A dataset in the hub's form")
    row = 0
    for path in files:
        try:
            source = parquet.ParquetFile(path)
            names = label_names(source.schema_arrow)
            image = next(
                (each for each in ("image", "img", "jpg") if each in source.schema_arrow.names), None
            )
            if image is None:
                raise ValueError(f"{path.name} has no column of images; it has {source.schema_arrow.names}")
            for batch in source.iter_batches(batch_size=64):
                for fields in batch.to_pylist():
                    content = fields.pop(image)
                    label = fields.get("label")
                    fields["label_name"] = names[label] if label is not None and label < len(names) else label
                    fields |= {"row": row, "path": content.get("path") or ""}
                    _write_image(content["bytes"], _place(name, fields, path), folder, path)
                    row += 1
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path.name} is damaged or not to be written out ({error})") from error
    return row


def label_names(schema: Any) -> list[str]:
    """The names of the classes, which the hub keeps in the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _place(name: str, fields: dict[str, Any], path: Path) -> str:
    try:
        return name.format(**fields)
    except KeyError as error:
        raise ValueError(
            f"{path.name} has no column {error}; it has {', '.join(map(str, fields))}"
        ) from error


def _write_image(content: bytes, place: str, folder: Path, source: Path) -> None:
    check_name(place, source)
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(target, "xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise Unsafe(f"{source.name} holds two images that would both be {place}") from error
