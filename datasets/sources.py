"""The benchmarks and where they are fetched from: `sources.json`, beside the classes that are registered.

`datasets` maps the registered name of a dataset to

    also             other common names
    folder, images   its folder under the root, and the folder in it that the split file's paths start from
    split            its published split file; null where there is none
    counts           published numbers of images and classes; test_base and test_new: of the two halves
    licence          as its page states it
    mirror           false where the mirror does not hold it
    files            the files that its folder is made of, each with

        file      the name it is saved under; a copy of that name in the dataset's folder is used
        hash      md5:..., sha256:... or git:... (that of `git hash-object FILE`), where it is known
        urls      tried in this order: http(s)://..., gdrive:ID, hub:datasets/OWNER/NAME[@REVISION]/PATH
        by_hand   how a person gets it, where no URL works
        take      paths of the archive and where in the dataset's folder they go; without it, it is no archive
        inner     an archive within the archive, which is unpacked too
        unpack    which part of ImageNet it is: torchvision unpacks these

`mirror` is a model repository on the hub with a zip for each dataset; `hashes` are those of its files.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config.bounded_yaml import load_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.few_shot_dataset import FewShotDataset
from prompted_clip.errors import UserError

SOURCES = Path(__file__).with_name("sources.json")
CONFIGS = Path(__file__).parents[1] / "configs" / "datasets"


@dataclass(frozen=True)
class File:
    """A file to download, or to be put into the dataset's folder by hand."""

    file: str
    hash: str = ""
    urls: tuple[str, ...] = ()
    by_hand: str = ""
    take: dict[str, str] = field(default_factory=dict)
    inner: str = ""
    unpack: str = ""

    @property
    def places(self) -> list[str]:
        """What it becomes in the dataset's folder."""
        return list(self.take.values()) or [self.file]


@dataclass(frozen=True)
class Entry:
    """A dataset. `dataset` is its registered class, None if no class of this name is registered."""

    name: str
    folder: str
    images: str
    split: str | None
    dataset: type[FewShotDataset] | None
    also: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    licence: str = ""
    files: tuple[File, ...] = ()
    mirror: str = ""
    mirror_hashes: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """Its file in `configs/datasets`, without suffix; empty if there is none."""
        return config_files().get(self.name, "")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, self.config, self.folder, *self.also)

    @property
    def drawn(self) -> bool:
        """Whether the project draws it itself."""
        return self.dataset is not None and self.dataset.make is not FewShotDataset.make


def read_sources(content: dict[str, Any]) -> dict[str, Entry]:
    """Name → dataset, for the datasets of a file such as `sources.json` and for all others registered.

    Where a class is registered, its folders override those of the file.
    """
    classes = registered()
    mirror = content.get("mirror", {})
    entries = {}
    for name, fields in content["datasets"].items():
        own = classes.pop(name, None)
        entries[name] = Entry(
            name=name,
            folder=own.dataset_dir if own else fields["folder"],
            images=own.image_dir if own else fields["images"],
            split=fields["split"],
            dataset=own,
            also=tuple(fields.get("also", ())),
            counts=fields["counts"],
            licence=fields["licence"],
            files=tuple(File(**{**file, "urls": tuple(file.get("urls", ()))}) for file in fields["files"]),
            mirror=mirror.get("repo", "") if fields.get("mirror", True) else "",
            mirror_hashes=mirror.get("hashes", {}),
        )
    for name, own in classes.items():
        entries[name] = Entry(name, own.dataset_dir, own.image_dir, own.split_file or None, own)
    return entries


@functools.cache
def known() -> dict[str, Entry]:
    """Name → dataset, for all datasets."""
    return read_sources(json.loads(SOURCES.read_text(encoding="utf-8")))


def registered() -> dict[str, type[FewShotDataset]]:
    """The registered datasets that have a fixed folder under the root, by name."""
    classes = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    kinds = {name: own for name, own in classes.items() if isinstance(own, type)}
    return {name: own for name, own in kinds.items() if issubclass(own, FewShotDataset) and own.dataset_dir}


def find(name: str) -> Entry:
    """The dataset with this name, config file, folder or other common name, whatever its case.

    Raises:
        UserError: there is none.
    """
    names: dict[str, str] = {}
    for entry in known().values():
        for alias in entry.names:
            names.setdefault(plain(alias), entry.name)
    if plain(name) in names:
        return known()[names[plain(name)]]
    near = [alias for alias in names if plain(name) and plain(name) in alias]
    near = near or difflib.get_close_matches(plain(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {names[near[0]]}?" if near else ""
    raise UserError(f"There is no dataset {name!r}; available: {', '.join(known())}.{hint}")


@functools.cache
def config_files() -> dict[str, str]:
    """`DATASET.NAME` → the file in `configs/datasets` that sets it, without suffix."""
    found: dict[str, str] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        content = load_yaml(path.read_bytes(), str(path)) or {}
        name = content.get("DATASET", {}).get("NAME")
        if name:
            found.setdefault(name, path.stem)
    return found


def plain(name: str) -> str:
    """Letters and digits only, in lower case."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def checksum_problem(path: Path, expected: str) -> str:
    """How the checksum differs from `expected`, which is as in `File.hash`; empty if it does not."""
    kind, _, value = expected.partition(":")
    if not value:
        return ""
    digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    return "" if found == value else f"its {kind} is {found} instead of {value}"
