"""What the benchmarks are and where they are had: `sources.json`, beside the classes that are registered.

An entry of `sources.json` is a dataset under its registered name:

    also         other names that people call it by
    folder       its folder under the root;  images: the folder in it that the split file's paths start from
    split        its published split file, or null where the benchmark has none
    counts       published numbers of images and classes; test_base and test_new are those of the two halves
    unverified   what is from memory
    parts        what its folder consists of, each had by itself

A part `gives` files or folders of the dataset's folder, had `from` the first of its sources that works.
`elsewhere` says where torchvision keeps the same thing, from the root. An `optional` part may be missing.
Of a source are said

    file         the name that it is saved under, and under which it is looked for in the dataset's folder
    checks       its bytes, md5, sha256 or git_sha1 (that of `git hash-object`), as far as they are known
    addresses    tried in this order: http(s)://..., gdrive:ID, hub:KIND/OWNER/NAME[@REVISION]/PATH, and
                 parquet:OWNER/NAME for a dataset of images in the hub's own form
    by_hand      how a person gets it; without addresses the only way
    take         which paths of an archive become what ("." is all of it); without it the file stays as it is
    inner        archives in it, unpacked where they lie, or (inner_folders) each into a folder of its name
    name         of a parquet: the path of an image, from its columns; {label_name} is the name of its class
    arrange      what is to be done before it is taken: see datasets/arrange.py
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dassl.data.datasets import DATASET_REGISTRY
from datasets.catalog_dataset import CatalogDataset
from datasets.download import Checks

SOURCES = Path(__file__).with_name("sources.json")
CONFIGS = Path(__file__).parents[1] / "configs" / "datasets"


class WrongArgument(ValueError):
    """A command was given what it does not take."""


@dataclass(frozen=True)
class Source:
    file: str
    addresses: tuple[str, ...]
    checks: Checks
    take: dict[str, str] | None = None
    inner: tuple[str, ...] = ()
    inner_folders: bool = False
    name: str = ""
    arrange: str = ""
    by_hand: str = ""


@dataclass(frozen=True)
class Part:
    gives: tuple[str, ...]
    sources: tuple[Source, ...]
    elsewhere: dict[str, str] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class Entry:
    """A dataset. `dataset` is its registered class, None where the catalogue has none of this name."""

    name: str
    folder: str
    images: str
    split: str | None
    dataset: type[CatalogDataset] | None
    also: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    licence: str = ""
    unverified: tuple[str, ...] = ()

    @property
    def config(self) -> str:
        """Its file of `configs/datasets`, without ending; empty where there is none."""
        return config_files().get(self.name, "")

    @property
    def drawn(self) -> bool:
        """The project makes it itself."""
        return self.dataset is not None and self.dataset.make is not CatalogDataset.make

    @property
    def by_hand(self) -> list[Source]:
        """What no command can fetch."""
        firsts = [part.sources[0] for part in self.parts if not part.optional]
        return [source for source in firsts if not source.addresses]


def read_sources(content: dict[str, Any]) -> dict[str, Entry]:
    """The datasets of a file like `sources.json`, and those that are registered and are not in it, by name.

    A registered class has the last word on its folders.
    """
    classes = registered()
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
            parts=tuple(_part(part) for part in fields["parts"]),
            licence=fields["licence"],
            unverified=tuple(fields.get("unverified", ())),
        )
    for name, own in classes.items():
        entries[name] = Entry(name, own.dataset_dir, own.image_dir, own.split_file or None, own)
    return entries


@functools.cache
def known() -> dict[str, Entry]:
    return read_sources(json.loads(SOURCES.read_text(encoding="utf-8")))


def registered() -> dict[str, type[CatalogDataset]]:
    """The registered datasets that have a folder of their own, by name."""
    classes = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    return {
        name: own
        for name, own in classes.items()
        if isinstance(own, type) and issubclass(own, CatalogDataset) and own.dataset_dir
    }


def find(name: str) -> Entry:
    """The dataset of this name, its config file's name, or one of the names that people call it by.

    Raises:
        WrongArgument: there is none.
    """
    names: dict[str, str] = {}
    for entry in known().values():
        for alias in (entry.name, entry.config, entry.folder, *entry.also):
            names.setdefault(_plain(alias), entry.name)
    if _plain(name) in names:
        return known()[names[_plain(name)]]
    near = [alias for alias in names if _plain(name) and _plain(name) in alias]
    near = near or difflib.get_close_matches(_plain(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {names[near[0]]}?" if near else ""
    raise WrongArgument(f"There is no dataset {name!r}; there are {', '.join(known())}.{hint}")


@functools.cache
def config_files() -> dict[str, str]:
    """`DATASET.NAME` → the file of `configs/datasets` that sets it, without ending."""
    found: dict[str, str] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        name = content.get("DATASET", {}).get("NAME")
        if name:
            found.setdefault(name, path.stem)
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _part(fields: dict[str, Any]) -> Part:
    return Part(
        gives=tuple(fields["gives"]),
        sources=tuple(_source(source) for source in fields["from"]),
        elsewhere=fields.get("elsewhere", {}),
        optional=fields.get("optional", False),
    )


def _source(fields: dict[str, Any]) -> Source:
    fields = dict(fields)
    checks = Checks(**fields.pop("checks", {}))
    for key in ("addresses", "inner"):
        fields[key] = tuple(fields.get(key, ()))
    return Source(checks=checks, **fields)
