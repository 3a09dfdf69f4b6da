"""`DATASET.NAME csv`: own photos, listed in a table. See `configs/datasets/csv.yaml` and docs/own_data.md."""

from __future__ import annotations

import csv
import os
from typing import Any

from dassl.config.influence import place_of_own_data
from dassl.data.class_names import brief, few
from dassl.data.own_data import PARTS, OwnDataset, Photo, plain, register_as
from prompted_clip.errors import MissingFileError, UserError


@register_as("csv")
class OwnTable(OwnDataset):
    """A table with one line per photo: its path relative to the table, its class and, optionally, its part.

    The first line names the columns; further columns are ignored. All lines and photos are checked before
    anything is written.
    """

    def __init__(self, cfg: Any) -> None:
        self.table = self.find_table(cfg)
        self.dataset_dir = os.path.dirname(self.table)
        self.split_file = f"{os.path.splitext(os.path.basename(self.table))[0]}_split_own.json"
        super().__init__(cfg)

    def find_table(self, cfg: Any) -> str:
        table = place_of_own_data(cfg.DATASET)
        if not os.path.isfile(table):
            raise MissingFileError(
                f"DATASET.OWN.PATH is {cfg.DATASET.OWN.PATH!r} and DATASET.ROOT {cfg.DATASET.ROOT!r}: there "
                f"is no file {table}. Give the csv file that lists path and label of each photo."
            )
        return table

    def columns(self) -> tuple[str, str, str]:
        """The columns of path, label and split."""
        return self.own.PATH_COLUMN, self.own.LABEL_COLUMN, self.own.SPLIT_COLUMN

    def photos(self) -> list[Photo]:
        lines = self._lines()
        header = lines[0][1] if lines else []
        places = self._places(header)
        seen: dict[str, tuple[int, str]] = {}
        photos = []
        for number, cells in lines[1:]:
            where = f"{self.table}, line {number}"
            if len(cells) != len(header):
                raise UserError(
                    f"{where} has {len(cells)} cells, but there are {len(header)} columns. A cell with a "
                    'comma needs quotes: "a, b".'
                )
            path, label, part = ("" if place is None else cells[place].strip() for place in places)
            path = self._inside(path, where)
            label = plain(label)
            if not label:
                raise UserError(f"{where}: {path} has no {self.columns()[1]}. Give it one.")
            if path in seen:
                first, other = seen[path]
                problem = "twice" if other == label else f"as {other!r} and as {label!r}"
                raise UserError(f"{where}: {path} is listed {problem}, first in line {first}. Keep one.")
            seen[path] = number, label
            photos.append((where, Photo(path, label, part)))
        if not photos:
            raise UserError(
                f"{self.table} lists no photos. Expected is one line per photo after the first line."
            )
        self._check_parts(photos)
        self._check_files(photos)
        found = [photo for _, photo in photos]
        print(f"{len(found)} photos of {len({photo.label for photo in found})} classes in {self.table}")
        return found

    def _places(self, header: list[str]) -> list[int | None]:
        """The positions of the columns path, label and split; None if there is no split."""
        keys = ("PATH_COLUMN", "LABEL_COLUMN", "SPLIT_COLUMN")
        for key, column in zip(keys, self.columns(), strict=True):
            # the column of the split may be missing, unless the configuration renames it
            optional = key == "SPLIT_COLUMN" and column in ("", "split")
            if header.count(column) > 1 or (column not in header and not optional):
                count = "more than one" if column in header else "no"
                raise UserError(
                    f"{self.table} has {count} column {column!r} (DATASET.OWN.{key}) in line 1; it has "
                    f"{few([repr(name) for name in header]) or 'none'}. The separator is a comma."
                )
        return [header.index(column) if column in header else None for column in self.columns()]

    def _lines(self) -> list[tuple[int, list[str]]]:
        """Line numbers and cells, without empty lines."""
        try:
            with open(self.table, encoding="utf-8-sig", newline="") as file:
                table = csv.reader(file, strict=True)
                return [(table.line_num, cells) for cells in table if cells]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.table} is not readable as csv ({error}). Save it as UTF-8, separated by commas."
            ) from error

    def _inside(self, path: str, where: str) -> str:
        """The path from the table's folder, written in one way."""
        whole = os.path.join(self.dataset_dir, path)
        inside = os.path.relpath(whole, self.dataset_dir).replace(os.sep, "/")
        if not path or inside == "." or inside.split("/")[0] == "..":
            raise UserError(
                f"{where}: path {brief(path)} is no file within {self.dataset_dir}. Paths start from the "
                "table's folder; put the table above the photos, or link their folder there."
            )
        return inside

    def _check_parts(self, photos: list[tuple[str, Photo]]) -> None:
        """Checks that either no photo or each one has a part: a typo would otherwise be split at random."""
        column = self.columns()[2]
        assigned = any(photo.part for _, photo in photos)
        for where, photo in photos:
            if assigned and photo.part not in PARTS:
                raise UserError(
                    f"{where}: {column} is {brief(photo.part)}; allowed are {', '.join(PARTS)}, or all empty."
                )

    def _check_files(self, photos: list[tuple[str, Photo]]) -> None:
        """Checks that all files are there; lists each folder once, instead of asking for each file."""
        listings: dict[str, set[str]] = {}
        missing = []
        for where, photo in photos:
            folder, _, name = photo.path.rpartition("/")
            if folder not in listings:
                listings[folder] = _files(os.path.join(self.dataset_dir, folder))
            if name not in listings[folder]:
                missing.append(f"{where}: {os.path.join(self.dataset_dir, photo.path)}")
        if missing:
            raise MissingFileError(
                f"{missing[0]} is not there, one of {len(missing)} missing among {len(photos)} photos. Paths "
                "start from the table's folder; mend them or take the lines out."
            )


def _files(place: str) -> set[str]:
    try:
        return {entry.name for entry in list(os.scandir(place)) if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
