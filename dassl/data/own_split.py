"""The parts of a saved split as positions in the list of photos: no start reads a JSON file of millions.

They lie beside the folder index of a dataset (see `folder_index.places`), and count while the split's file
and the photos are the same to the last byte. Splits of few photos have none.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dassl.data.folder_index import LEAST, places
from dassl.data.locks import sole_maker
from dassl.data.packed_rows import Rows
from prompted_clip.files import atomic_open, sha256_of_file

Parts = Mapping[str, np.ndarray]  # positions of photos, by train, val and test


def load(split_path: str, photos: Rows) -> tuple[list[float] | None, Parts] | None:
    """The shares that a split was made by, if it says so, and its parts; None where they have to be read."""
    for place in _places(split_path):
        try:
            with np.load(place, allow_pickle=False) as file:
                content = dict(file)
            if content.pop("key").tolist() != _key(split_path, photos):
                continue
            shares = content.pop("shares").tolist()
            parts = {part: content[part] for part in ("train", "val", "test")}
            listed = np.concatenate([*parts.values()])
            if listed.max() < len(photos) and np.bincount(listed).max() == 1:
                return shares or None, parts
        except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # not there, damaged, or not in its form
    return None


def save(split_path: str, photos: Rows, shares: Sequence[float] | None, parts: Parts) -> None:
    """Keeps the parts for the next start, where there is a place for them."""
    if len(photos) < LEAST:
        return
    content: dict[str, Any] = {part: positions.astype(np.int32) for part, positions in parts.items()}
    content |= {"key": _key(split_path, photos), "shares": shares or []}
    for place in _places(split_path):
        try:
            lock = os.path.join(os.path.dirname(place), "lock")
            with sole_maker(place, lock), atomic_open(place, "wb") as file:
                np.savez(file, **content)
            return
        except OSError:
            continue


def _places(split_path: str) -> list[str]:
    folder, name = os.path.split(split_path)
    stem = os.path.splitext(name)[0]
    return [f"{os.path.splitext(place)[0]}_{stem}.npz" for place in places(folder)]


def _key(split_path: str, photos: Rows) -> str:
    return hashlib.sha256(f"{sha256_of_file(split_path)} {photos.digest()}".encode()).hexdigest()
