"""`DATASET.NAME csv`: what a user's own table becomes, and what is said where it cannot be meant."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from train import extend_cfg


def open_table(root: Path, *options: object) -> Any:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.ROOT", str(root), "SEED", 1, "DATASET.OWN.PATH", "photos.csv", *options])
    return DATASET_REGISTRY.get("csv")(cfg)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six empty photos of two kinds, in a folder whose name has a space and a comma."""
    for number in range(6):
        file = tmp_path / f"day 1, Süd/{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    return tmp_path


ROWS = [f'"day 1, Süd/{number}.jpg",{"cat" if number % 2 else "dog"}' for number in range(6)]


def write(root: Path, rows: list[str], header: str = "path,label", encoding: str = "utf-8") -> Path:
    table = root / "photos.csv"
    table.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return table


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def refused(root: Path, *options: object, error: type[Exception] = ValueError) -> str:
    before = files(root)
    with pytest.raises(error) as raised:
        open_table(root, *options)
    assert files(root) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


def paths(items: Any, root: Path) -> list[str]:
    return sorted(os.path.relpath(item.impath, root) for item in items)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_without_a_split(encoding, photos, capsys):
    table = write(photos, ROWS, encoding=encoding)
    dataset = open_table(photos)
    assert dataset.classnames == ["cat", "dog"]
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [4, 0, 2]
    assert all(os.path.isfile(item.impath) for item in dataset.train_x)
    assert f"6 photos of 2 classes in {table}\n" in capsys.readouterr().out
    saved = json.loads((photos / "photos_split_own.json").read_text())
    assert len(saved["train"]) == 4

    write(photos, ROWS[::-1], encoding=encoding)
    again = open_table(photos, "SEED", 7)
    assert paths(again.test, photos) == paths(dataset.test, photos)


def test_the_order_of_the_lines_does_not_matter(photos):
    write(photos, ROWS)
    first = open_table(photos)
    (photos / "photos_split_own.json").unlink()
    write(photos, ROWS[::-1])
    assert [item.impath for item in open_table(photos).train_x] == [item.impath for item in first.train_x]


def test_a_table_that_gives_the_split(photos):
    given = ("train", "train", "val", "val", "test", "test")
    write(photos, [f"{row},{part}" for row, part in zip(ROWS, given, strict=True)], "path,label,split")
    dataset = open_table(photos)
    assert paths(dataset.train_x, photos) == ["day 1, Süd/0.jpg", "day 1, Süd/1.jpg"]
    assert paths(dataset.val, photos) == ["day 1, Süd/2.jpg", "day 1, Süd/3.jpg"]
    assert paths(dataset.test, photos) == ["day 1, Süd/4.jpg", "day 1, Süd/5.jpg"]
    assert not (photos / "photos_split_own.json").exists()


def test_an_empty_column_is_no_split(photos):
    write(photos, [f"{row}," for row in ROWS], "path,label,split")
    assert len(open_table(photos).train_x) == 4


def test_other_columns_and_their_names(photos):
    write(
        photos, [f"x,{row},{'test' if k > 3 else 'train'}" for k, row in enumerate(ROWS)], "id,file,kind,use"
    )
    names = ("PATH_COLUMN", "file", "LABEL_COLUMN", "kind", "SPLIT_COLUMN", "use")
    options = [f"DATASET.OWN.{word}" if k % 2 == 0 else word for k, word in enumerate(names)]
    assert len(open_table(photos, *options).test) == 2
    options[-1] = "part"
    message = refused(photos, *options)
    assert "no column 'part' (DATASET.OWN.SPLIT_COLUMN)" in message
    assert "'id', 'file', 'kind', 'use'" in message


def test_a_label_that_was_corrected_keeps_the_split(photos):
    write(photos, ROWS)
    first = open_table(photos)
    corrected = {}
    for part, items in (("train", first.train_x), ("test", first.test)):
        name = os.path.basename(items[0].impath)
        corrected[part] = [row.rpartition(",")[0] + ",wolf" if name in row else row for row in ROWS]
    write(photos, corrected["train"])
    second = open_table(photos)
    assert paths(second.train_x, photos) == paths(first.train_x, photos)
    assert second.classnames == ["cat", "dog", "wolf"]
    write(photos, corrected["test"])
    assert "class 'wolf' has photos, but none in train" in refused(photos)


def test_novel_classes(photos):
    write(photos, ROWS)
    options = ("DATASET.OWN.NOVEL_CLASSES", ["cat"], "DATASET.SUBSAMPLE_CLASSES")
    assert open_table(photos, *options, "base").classnames == ["dog"]
    assert open_table(photos, *options, "new").classnames == ["cat"]


def test_a_line_taken_out_is_told(photos):
    write(photos, ROWS)
    open_table(photos)
    write(photos, ROWS[1:])
    assert "of which 1 are gone" in refused(photos, error=FileNotFoundError)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (['"day 1, Süd/7.jpg",cat'], "day 1, Süd/7.jpg is not there, one of 1 missing among 7 photos"),
        (["nowhere/1.jpg,cat"], "nowhere/1.jpg is not there"),
        (['"day 1, Süd/./1.jpg",cat'], "line 8: day 1, Süd/1.jpg is listed twice, first in line 3"),
        (
            ['"day 1, Süd/1.jpg",dog'],
            "line 8: day 1, Süd/1.jpg is listed as 'cat' and as 'dog', first in line 3",
        ),
        (["../1.jpg,cat"], "line 8: path '../1.jpg' is no file within"),
        (["/etc/1.jpg,cat"], "line 8: path '/etc/1.jpg' is no file within"),
        ([",cat"], "line 8: path '' is no file within"),
        (['"day 1, Süd/1.jpg", '], "line 8: day 1, Süd/1.jpg has no label"),
        (["day 1, Süd/1.jpg,cat"], "line 8 has 3 cells, but there are 2 columns"),
        (["", 'a"b,"c'], "photos.csv is not readable as csv"),
    ],
)
def test_lines_that_cannot_be_meant(rows, expected, photos):
    write(photos, ROWS + rows)
    error = FileNotFoundError if "not there" in expected else ValueError
    message = refused(photos, error=error)
    assert expected in message
    assert "photos.csv" in message


def test_a_path_within_the_folder_may_be_whole(photos):
    write(photos, [f'"{photos}/day 1, Süd/0.jpg",dog', *ROWS[1:]])
    assert len(open_table(photos).train_x) == 4


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("path;label", "no column 'path' (DATASET.OWN.PATH_COLUMN)"),
        ("file,label", "it has 'file', 'label'"),
        ("path,class", "no column 'label' (DATASET.OWN.LABEL_COLUMN)"),
        ("path,path", "more than one column 'path'"),
        ("", "in line 1; it has 'day 1, Süd/0.jpg', 'dog'"),
    ],
)
def test_columns_that_are_not_there(header, expected, photos):
    write(photos, ROWS, header)
    assert expected in refused(photos)


@pytest.mark.parametrize("part", ["Train", "valid", ""])
def test_parts_that_are_none(part, photos):
    write(photos, [f"{row},{'train' if k else part}" for k, row in enumerate(ROWS)], "path,label,split")
    assert f"line 2: split is {part!r}; allowed are train, val, test" in refused(photos)


def test_tables_that_are_none(photos):
    message = refused(photos, error=FileNotFoundError)
    assert f"there is no file {photos}/photos.csv" in message
    assert "DATASET.OWN.PATH is 'photos.csv'" in message
    write(photos, [])
    assert "lists no photos" in refused(photos)
    (photos / "photos.csv").write_bytes(b"")
    assert "it has none" in refused(photos)
    write(photos, ROWS, encoding="utf-16")
    assert "not readable as csv" in refused(photos)
    write(photos, ROWS, encoding="latin-1")
    assert "Save it as UTF-8" in refused(photos)
