"""Rows `(path, label, class name)` packed into arrays: some 30 bytes per image, a tenth of Python objects.

For ImageNet's 1.28 million images that saves several hundred megabytes, and seconds at each start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np

from dassl.data.datasets import Datum

Row = tuple[str, int, str]  # path with "/" between its parts, label, class name
END = "/"  # ends each packed name: no file name contains it
BLOCK = 65_536  # images that are unpacked at once


def pack_names(names: Iterable[str]) -> bytes:
    """File names as bytes, each followed by `END`. Invalid Unicode survives the round trip."""
    return "".join(f"{name}{END}" for name in names).encode("utf-8", "surrogatepass")


def unpack_names(packed: bytes) -> list[str]:
    return packed.decode("utf-8", "surrogatepass").split(END)[:-1]


class Rows(Sequence[Row]):
    """An immutable sequence of packed rows.

    Args:
        groups: folder (ending with "/", or empty), label and class name; unique, in the order of their first
            images.
        group_of: `(image)`, the number of each image's group.
        names: the packed names of the files.

    Two instances have the same `digest` if and only if they hold the same rows in the same order.
    """

    def __init__(self, groups: Sequence[Row], group_of: np.ndarray, names: bytes) -> None:
        self.groups = list(groups)
        self.group_of = np.asarray(group_of, dtype=np.int32)
        self.names = names
        ends = np.flatnonzero(np.frombuffer(names, dtype=np.uint8) == ord(END))
        self._starts = np.concatenate([[0], ends + 1]).astype(np.int64)
        assert len(self._starts) == len(self.group_of) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.groups, self.group_of, self.names)

    @classmethod
    def pack(cls, rows: Iterable[Row]) -> Rows:
        """Packs rows; returns `rows` itself if it is packed."""
        if isinstance(rows, Rows):
            return rows
        numbers: dict[Row, int] = {}
        group_of, names = [], []
        for path, label, classname in rows:
            _, slash, name = path.rpartition("/")
            folder = path[: len(path) - len(name)] if slash else ""
            group_of.append(numbers.setdefault((folder, label, classname), len(numbers)))
            names.append(name)
        return cls(list(numbers), np.array(group_of, dtype=np.int32), pack_names(names))

    def __len__(self) -> int:
        return len(self.group_of)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        position = range(len(self))[index]
        folder, label, classname = self.groups[self.group_of[position]]
        return folder + self.name(position), label, classname

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), BLOCK):
            stop = min(start + BLOCK, len(self))
            names = unpack_names(self.packed(start, stop))
            for group, name in zip(self.group_of[start:stop].tolist(), names, strict=True):
                folder, label, classname = self.groups[group]
                yield folder + name, label, classname

    def name(self, position: int) -> str:
        """The file's name, without its folder."""
        start, end = int(self._starts[position]), int(self._starts[position + 1])
        return self.names[start : end - 1].decode("utf-8", "surrogatepass")

    def packed(self, start: int, stop: int) -> bytes:
        """The packed names of the images from `start` to `stop`, exclusive."""
        return self.names[int(self._starts[start]) : int(self._starts[stop])]

    def take(self, positions: np.ndarray) -> Rows:
        """The images at these positions, in their order."""
        taken = self.group_of[positions]
        occurring, first, number = np.unique(taken, return_index=True, return_inverse=True)
        order = np.argsort(first)  # groups come in the order of their first images
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        groups = [self.groups[group] for group in occurring[order]]
        every, names = np.frombuffer(self.names, dtype=np.uint8), []
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            lengths = self._starts[block + 1] - self._starts[block]
            shift = self._starts[block] - (np.cumsum(lengths) - lengths)
            names.append(every[np.arange(lengths.sum()) + np.repeat(shift, lengths)].tobytes())
        return Rows(groups, place[number], b"".join(names))

    def by(self, keys: Sequence[Any]) -> dict[Any, np.ndarray]:
        """The positions of the images for each key, keys in the order of their first images.

        Args:
            keys: one per group; groups with equal keys are merged.
        """
        number: dict[Any, int] = {}
        of_group = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int32)
        of_image = of_group[self.group_of] if len(self) else of_group
        order = np.argsort(of_image, kind="stable")
        bounds = np.searchsorted(of_image[order], np.arange(len(number) + 1))
        return {key: order[bounds[k] : bounds[k + 1]] for key, k in number.items()}

    def by_label(self) -> dict[int, np.ndarray]:
        """The positions of the images of each label, labels in the order of their first images."""
        return self.by([label for _, label, _ in self.groups])

    def by_folder(self) -> dict[str, np.ndarray]:
        """The positions of the images in each folder, folders in the order of their first images."""
        return self.by([folder for folder, _, _ in self.groups])

    def label_names(self) -> dict[int, str]:
        """The class name of each label that occurs; the last one's, where a label has several."""
        return {label: classname for _, label, classname in self.groups}

    def relabelled(self, new_labels: Mapping[int, int]) -> Rows:
        """The images whose label is a key, in order, with the value as their label."""
        selected = [position for position, group in enumerate(self.groups) if group[1] in new_labels]
        if len(selected) == len(self.groups):
            names, group_of = self.names, self.group_of
        else:
            chosen = np.isin(self.group_of, selected)
            # Copies consecutive images at once: the images of a class mostly follow each other.
            edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
            names = b"".join(map(self.packed, edges[::2], edges[1::2]))
            group_of = np.searchsorted(selected, self.group_of[chosen]).astype(np.int32)
        groups = [self.groups[position] for position in selected]
        return Rows([(folder, new_labels[label], name) for folder, label, name in groups], group_of, names)

    def digest(self) -> str:
        """A sha256 of all rows and their order."""
        digest = hashlib.sha256(json.dumps([len(self), self.groups]).encode())
        digest.update(self.group_of.astype("<i4").tobytes())
        digest.update(self.names)
        return digest.hexdigest()


class Datums(Sequence[Datum]):
    """Packed rows as an immutable sequence of Datums, which are created on access.

    It supports what readers of lists use: length, index, slices, iteration, `+`, `*`, `copy`, which give
    lists. Attributes set on a Datum are lost.
    """

    def __init__(self, rows: Rows, image_dir: str) -> None:
        self.rows = rows
        self.image_dir = image_dir
        self._prefix = os.path.join(image_dir, "")

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Datum: ...
    @overload
    def __getitem__(self, index: slice) -> list[Datum]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._datum(row) for row in self.rows[index]]
        return self._datum(self.rows[index])

    def __iter__(self) -> Iterator[Datum]:
        return map(self._datum, self.rows)

    def _datum(self, row: Row) -> Datum:
        path, label, classname = row
        impath = path if os.path.isabs(path) else self._prefix + path
        return Datum(impath=impath, label=label, classname=classname)

    def __add__(self, other: Iterable[Datum]) -> list[Datum]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Datum]) -> list[Datum]:
        return [*other, *self]

    def __mul__(self, times: int) -> list[Datum]:
        return list(chain.from_iterable([list(self)] * times))

    __rmul__ = __mul__

    def copy(self) -> list[Datum]:
        return list(self)

    def label_names(self) -> dict[int, str]:
        """The name of each label: what the engine asks for, so that it need not look at each image."""
        return self.rows.label_names()

    def relabelled(self, new_labels: Mapping[int, int]) -> Datums:
        """The images whose label is a key, in order, with the value as their label."""
        return Datums(self.rows.relabelled(new_labels), self.image_dir)
