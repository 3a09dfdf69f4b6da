"""Mutated data: split files, tables, folders, lists of images, caches, images, class names, archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dassl.data import folder_index
from dassl.data.class_names import check_class_names
from dassl.data.content import content_sha256
from dassl.data.crop_cache import CropCache
from dassl.data.datasets import build_dataset
from dassl.data.few_shot_list import read_sample
from dassl.data.splits import load_split
from dassl.utils import read_image
from datasets.archives import unpack

from .configuration_cases import default
from .mutate import NAMES, VALUES, mutated, mutated_bytes, mutated_json, mutated_text
from .nonsense import check, check_dataset, check_image, check_names, check_unpacked

CLASSES = ("bear", "cat", "zebra")
IMAGES = 6  # of a class


def photos(folder: Path) -> Path:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(IMAGES):
            Image.new("RGB", (8, 8), (60 * label, 40 * index, 9)).save(folder / name / f"{index}.png")
    return folder


def opened(root: Path, name: str, *options: object) -> Any:
    """A dataset as a run opens it, and checked for nonsense."""
    cfg = default().clone()
    cfg.merge_from_list(["DATASET.ROOT", str(root), "DATASET.NAME", name, "SEED", 1, *options])
    cfg.merge_from_list(["DATASET.NUM_SHOTS", 2])
    dataset = build_dataset(cfg)
    check_dataset(dataset, root)
    return dataset


def split_file(rng: random.Random, folder: Path, marker: Path) -> None:
    """A split file in the form of the published ones."""
    photos(folder / "dtd" / "images")
    parts = {
        part: [
            [f"{name}/{index}.png", label, name] for label, name in enumerate(CLASSES) for index in indices
        ]
        for part, indices in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5)))
    }
    if rng.random() < 0.3:  # one that may be meant: other names, fewer images, another order
        names = {name: rng.choice((name, *NAMES)) for name in CLASSES}
        parts = {part: [[*row[:2], names[row[2]]] for row in rows] for part, rows in parts.items()}
        part = parts[rng.choice(sorted(parts))]
        rng.shuffle(part)
        part.pop()
        text = json.dumps(parts)
    else:
        text = mutated_json(rng, parts)
    path = folder / "dtd" / "split_zhou_DescribableTextures.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    opened(folder, "DescribableTextures")


def table(rng: random.Random, folder: Path, marker: Path) -> None:
    """A table of own photos."""
    photos(folder / "photos")
    lines = ["path,label,split"]
    for name in CLASSES:
        for index, part in enumerate(("train", "train", "train", "val", "test", "test")):
            lines.append(f"photos/{name}/{index}.png,{name},{part}")
    content = "\n".join(lines) + "\n"
    if rng.random() < 0.3:  # one that may be meant
        content = content.replace(
            f",{rng.choice(CLASSES)},", f",{rng.choice(NAMES).replace(',', ' ')[:40].strip()},"
        )
        content = rng.choice((content, content.replace(",", ";"), content.replace("\n", "\r\n")))
    else:
        content = mutated_text(rng, content)
    (folder / "own.csv").write_text(content, encoding="utf-8", errors="surrogatepass")
    opened(folder, "csv", "DATASET.OWN.PATH", "own.csv")


def own_folder(rng: random.Random, folder: Path, marker: Path) -> None:
    """Folders of photos: odd names, odd files, links, pipes, settings."""
    root = photos(folder / "photos")
    place = root / rng.choice(CLASSES)
    for _ in range(rng.choice((1, 2))):
        change = rng.choice(("rename", "file", "link", "pipe", "empty", "damage", "saved"))
        if change == "rename" and place.exists():
            name = rng.choice(NAMES).replace("/", ":").replace("\0", "").replace("\ud800", "\udcff")[:60]
            target = os.path.join(os.fsencode(root), os.fsencode(name))
            if name not in ("", ".", "..") and not os.path.exists(target):
                os.rename(os.fsencode(place), target)
        elif change == "file":
            (root / rng.choice(("0.png", "notes.txt", "a.jfif"))).write_bytes(rng.randbytes(40))
        elif change == "link" and place.exists():
            (place / f"link{rng.random()}.png").symlink_to(rng.choice(("/etc/passwd", "..", "link.png")))
        elif change == "pipe" and place.exists():
            os.mkfifo(place / f"pipe{rng.random()}.png")
        elif change == "empty":
            (root / f"empty{rng.random()}").mkdir()
        elif change == "damage" and (place / "0.png").exists():
            (place / "0.png").write_bytes(mutated_bytes(rng, (place / "0.png").read_bytes()))
        elif change == "saved" and place.exists():  # the split that an earlier run has saved
            opened(root, "folder")
            saved = json.loads((root / "split_own.json").read_text())
            (root / "split_own.json").write_text(mutated_json(rng, saved), errors="surrogatepass")
    options: list[object] = []
    if rng.random() < 0.3:
        key = rng.choice(("CLASS_LIST", "NOVEL_CLASSES", "SPLIT", "TEMPLATE", "PATH", "CLASS_NAMES"))
        options = [f"DATASET.OWN.{key}", str(rng.choice((*VALUES, list(NAMES[:3]), [0.6, 0.1, 0.3])))]
    opened(root, "folder", *options)


def few_shot_list(rng: random.Random, folder: Path, marker: Path) -> None:
    """The few_shot.json of a run, and the few-shot images that are kept beside the data."""
    root = photos(folder / "photos")
    if rng.random() < 0.4:
        opened(root, "folder")
        (kept,) = (root / "split_fewshot").glob("*.json")
        kept.write_text(mutated_json(rng, json.loads(kept.read_text())), errors="surrogatepass")
        drawn = opened(root, "folder")
        check(len(drawn.train_x) == 2 * len(CLASSES), "other few-shot images")
        return
    dataset = opened(root, "folder")
    path = folder / "few_shot.json"
    dataset.sample.save(str(path))
    content = json.loads(path.read_text())
    if rng.random() < 0.3:  # another list, whose hash is its own
        content["train"] = rng.sample(content["train"], rng.choice((3, 4, 5)))
        lines = ["train", *content["train"], "val", *content["val"]]
        content["sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    path.write_text(
        json.dumps(content) if rng.random() < 0.4 else mutated_json(rng, content), errors="surrogatepass"
    )
    opened(root, "folder", "DATASET.FEW_SHOT_LIST", str(path))
    # Read again by itself, as a report on the run does.
    split = load_split(str(root / "split_own.json"))
    check(bool(read_sample(str(path), "folder", split).train), "an empty list")


def hashes(rng: random.Random, folder: Path, marker: Path) -> None:
    """What is kept beside the data: the index of folders, and the hashes of images."""
    root = photos(folder / "photos")
    paths = [f"{name}/{index}.png" for name in CLASSES for index in range(IMAGES)]
    right = {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths}
    place = root / ".folder_index"
    place.mkdir()
    least, folder_index.LEAST = folder_index.LEAST, 1
    try:
        content_sha256(paths, str(root))
        with folder_index.opened(str(root)):
            for name in CLASSES:
                folder_index.list_images(str(root / name))
        kept = place / rng.choice(("folders.bin", "folders_content.json"))
        content = kept.read_bytes()
        anew = rng.random() < 0.5
        if not anew:
            kept.write_bytes(mutated_bytes(rng, content))
        elif kept.suffix == ".json":  # whose checksum was made anew
            text = mutated_json(rng, json.loads(content.partition(b"\n")[2])).encode("utf-8", "replace")
            kept.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        else:
            start = len(folder_index.MAGIC) + 32
            rest = mutated_bytes(rng, content[start:])
            kept.write_bytes(folder_index.MAGIC + hashlib.sha256(rest).digest() + rest)
        for name in rng.sample(CLASSES, 2):
            (root / name / "0.png").write_bytes(b"another content")  # whose hash must be another
            right[f"{name}/0.png"] = hashlib.sha256(b"another content").hexdigest()
        with folder_index.opened(str(root)):
            listed = [folder_index.list_images(str(root / name)) for name in CLASSES]
        found = content_sha256(paths, str(root))
        # Who makes a checksum anew may name other files; that they are not there is then said.
        check(anew or listed == [[f"{index}.png" for index in range(IMAGES)]] * 3, "other names")
        check(anew or found == right, "other hashes")
    finally:
        folder_index.LEAST = least


def crops(rng: random.Random, folder: Path, marker: Path) -> None:
    """The cache of resized and cropped test images."""
    root = photos(folder / "photos")
    paths = [str(root / name / "0.png") for name in CLASSES]
    settings = ((8, 8), 8, "bicubic", None, True)

    def cached() -> CropCache:
        cache = CropCache(str(folder / "cache"), 1e9, "photos", settings)
        cache.fill(paths, read_image, 1)
        return cache

    cached()
    (file,) = (folder / "cache").glob("*.npy")
    file.write_bytes(mutated_bytes(rng, file.read_bytes()))
    cache = cached()
    for index, path in enumerate(paths):
        crop = cache.read(index, path)
        check(crop is None or np.array_equal(crop, np.asarray(read_image(path))), "other pixels")


def class_names(rng: random.Random, folder: Path, marker: Path) -> None:
    """Names of classes, whoever gives them."""
    names = {label: rng.choice((*NAMES, name)) for label, name in enumerate(CLASSES)}
    if rng.random() < 0.5:
        names = dict(enumerate(mutated(rng, [*CLASSES])))
    check_class_names(names, "names", "Give others.")
    check_names(names)


def image(rng: random.Random, folder: Path, marker: Path) -> None:
    """The bytes of an image, and extreme shapes and modes."""
    kind = rng.choice(("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "shape", "grey"))
    path = folder / "image.png"
    if kind == "shape":
        size = rng.choice(((1, 60000), (60000, 1), (20000, 20000), (1, 1), (3, 900)))
        Image.new("1", size).save(path)
    elif kind == "grey":
        pixels = np.full((8, 8), rng.choice((300, 30000)), np.uint16)
        Image.fromarray(pixels).save(path, rng.choice(("PNG", "TIFF")))
    else:
        stored = io.BytesIO()
        Image.new("RGB", (40, 30), (9, 99, 199)).save(stored, kind)
        path.write_bytes(mutated_bytes(rng, stored.getvalue()))
    check_image(read_image(str(path)), kind == "grey")


def tar_of(contents: Mapping[str, bytes]) -> bytes:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stored.getvalue()


def archive(rng: random.Random, folder: Path, marker: Path) -> None:
    """Tar and zip files with odd members, or odd bytes."""
    contents = {"a/1.txt": b"one", "a/2.txt": b"two"}
    if rng.random() < 0.6:
        contents[rng.choice(NAMES)[:200].replace("\0", "").encode("utf-8", "replace").decode() or "x"] = (
            b"odd"
        )
    stored = io.BytesIO()
    if rng.random() < 0.5:
        with zipfile.ZipFile(stored, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
            for name, content in contents.items():
                file.writestr(name, content)
    else:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE) if rng.random() < 0.3 else ()
        with tarfile.open(fileobj=stored, mode=rng.choice(("w", "w:gz", "w:xz"))) as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.type = rng.choice((tarfile.REGTYPE, *kinds))
                member.linkname = rng.choice(("../../outside", "a/1.txt", "/etc/passwd", ""))
                tar.addfile(member, io.BytesIO(content))
    content = stored.getvalue()
    if rng.random() < 0.5:
        content = mutated_bytes(rng, content)
    (folder / "archive").write_bytes(content)
    unpack(folder / "archive", folder / "unpacked")
    check_unpacked(folder / "unpacked", contents)
