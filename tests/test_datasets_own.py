"""`DATASET.NAME folder`: what a user's own folder becomes, and what is said where it cannot be meant."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data import folder_index, own_split, splits
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.folder_index import IMAGE_SUFFIXES
from dassl.data.own_data import OTHER_KINDS
from train import extend_cfg


def config(name: str, root: Path, *options: object) -> CfgNode:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", name, "DATASET.ROOT", str(root), "SEED", 1, *options])
    return cfg


def open_folder(root: Path, *options: object) -> Any:
    return DATASET_REGISTRY.get("folder")(config("folder", root, *options))


def draw(root: Path, counts: dict[str, int], suffix: str = ".jpg") -> Path:
    """Empty files, a number in each folder; datasets do not look into images."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number:02d}{suffix}").touch()
    return root


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if ".folder_index" not in path.parts)  # its lock


def refused(root: Path, *options: object, error: type[Exception] = ValueError) -> str:
    """The message of the refusal, which is one line and leaves the folder as it was."""
    before = files(root)
    with pytest.raises(error) as raised:
        open_folder(root, *options)
    assert files(root) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


def paths(items: Any, root: Path) -> list[str]:
    return [os.path.relpath(item.impath, root) for item in items]


def parts(dataset: Any) -> list[int]:
    return [len(part) for part in (dataset.train_x, dataset.val, dataset.test)]


# --- the split


def test_classes_are_split_by_the_shares_and_the_split_is_saved(tmp_path, capsys):
    draw(tmp_path, {"cat": 10, "bird": 20, "dog": 10})
    dataset = open_folder(tmp_path)
    assert dataset.classnames == ["bird", "cat", "dog"]
    assert parts(dataset) == [20, 8, 12]
    assert Counter(item.classname for item in dataset.test) == {"bird": 6, "cat": 3, "dog": 3}
    assert dataset.template == "a photo of a {}."
    printed = capsys.readouterr().out
    assert f"40 photos of 3 classes in {tmp_path}\n" in printed

    saved = json.loads((tmp_path / "split_own.json").read_text())
    assert [row[0] for row in saved["test"]] == paths(dataset.test, tmp_path)
    assert all(path.split("/")[0] == name and label in range(3) for path, label, name in saved["train"])
    listed = [row[0] for part in ("train", "val", "test") for row in saved[part]]
    assert len(set(listed)) == len(listed) == 40

    again = open_folder(tmp_path)
    assert paths(again.train_x, tmp_path) == paths(dataset.train_x, tmp_path)
    assert f"Reading split from {tmp_path / 'split_own.json'}" in capsys.readouterr().out


def test_the_split_depends_on_names_alone(tmp_path, monkeypatch):
    first = draw(tmp_path / "first", {"cat": 10, "bird": 20})
    second = draw(tmp_path / "second", {"ant": 4, "bird": 20, "cat": 10})
    expected = open_folder(first, "SEED", 1)
    random.seed(99)
    state = random.getstate()
    scandir = os.scandir
    reverse = {"key": lambda entry: entry.name, "reverse": True}
    monkeypatch.setattr(os, "scandir", lambda path: iter(sorted(scandir(path), **reverse)))
    dataset = open_folder(second, "SEED", 2)
    assert random.getstate() == state
    for part in ("train_x", "val", "test"):
        kept = [path for path in paths(getattr(dataset, part), second) if not path.startswith("ant")]
        assert kept == paths(getattr(expected, part), first)


def test_shots_come_from_the_split(tmp_path):
    draw(tmp_path, {"cat": 10, "bird": 20})
    whole = open_folder(tmp_path)
    shots = open_folder(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert parts(shots) == [4, 4, 9]
    assert set(paths(shots.train_x, tmp_path)) < set(paths(whole.train_x, tmp_path))
    assert open_folder(tmp_path).classnames == ["bird", "cat"], "the folder of the shots is no class"


def test_a_read_only_folder_gets_a_line_and_the_same_split(tmp_path, capsys, monkeypatch):
    draw(tmp_path, {"cat": 10, "bird": 20})
    before = files(tmp_path)

    def write_json(content, path, replace=True):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("dassl.data.splits.write_json", write_json)
    first, second = open_folder(tmp_path), open_folder(tmp_path, "SEED", 5)
    assert paths(first.test, tmp_path) == paths(second.test, tmp_path)
    assert files(tmp_path) == before
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Split not saved")]
    assert len(said) == 2
    assert "split_own.json" in said[0]


def test_photos_that_came_later_are_told_and_left_out(tmp_path, capsys):
    draw(tmp_path, {"cat": 10, "bird": 20})
    before = open_folder(tmp_path)
    draw(tmp_path, {"ant": 3, "cat": 11})
    capsys.readouterr()
    dataset = open_folder(tmp_path)
    assert dataset.classnames == ["bird", "cat"]
    assert paths(dataset.train_x, tmp_path) == paths(before.train_x, tmp_path)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not used")]
    split = tmp_path / "split_own.json"
    assert said == (
        "Not used: 4 photos that came after the split was saved, the first: ant/00.jpg. "
        f"To split anew, delete {split}."
    )
    split.unlink()
    assert open_folder(tmp_path).classnames == ["ant", "bird", "cat"]


def images_of(dataset: Any) -> list[list[tuple[str, int, str]]]:
    return [
        [(item.impath, item.label, item.classname) for item in part]
        for part in (dataset.train_x, dataset.val, dataset.test)
    ]


def test_the_file_of_a_large_split_is_read_once(tmp_path, monkeypatch, capsys):
    """And again where it, the photos or what was kept of it are others."""
    monkeypatch.setattr(own_split, "LEAST", 1)
    draw(tmp_path, {"cat": 10, "dog": 10})
    first, read, load = images_of(open_folder(tmp_path)), [], splits.load_split
    monkeypatch.setattr(
        splits, "load_split", lambda *args, **given: read.append(args) or load(*args, **given)
    )
    assert images_of(open_folder(tmp_path)) == first
    assert not read
    assert "DATASET.OWN.SPLIT is [0.6, 0.2, 0.2]" in refused(tmp_path, "DATASET.OWN.SPLIT", [0.6, 0.2, 0.2])

    kept = tmp_path / ".folder_index" / "folders_split_own.npz"
    with np.load(kept) as file:
        beyond = {**file, "test": file["test"] + 20}
    for damage in (
        lambda file: file.write(b"PK damaged"),
        lambda file: np.save(file, np.arange(3)),
        lambda file: np.savez(file, **beyond),
    ):
        with kept.open("wb") as file:
            damage(file)
        assert images_of(open_folder(tmp_path)) == first
    (tmp_path / "cat" / "a.jpg").touch()
    for _ in range(2):
        capsys.readouterr()
        assert images_of(open_folder(tmp_path)) == first
        assert "Not used: 1 photos that came after the split" in capsys.readouterr().out
    assert len(read) == 4

    content = json.loads((tmp_path / "split_own.json").read_text())
    content["test"].append(content["train"].pop())
    (tmp_path / "split_own.json").write_text(json.dumps(content))
    moved = images_of(open_folder(tmp_path))
    assert [len(part) for part in moved] == [len(first[0]) - 1, len(first[1]), len(first[2]) + 1]


def test_photos_that_are_gone_are_an_error(tmp_path):
    draw(tmp_path, {"cat": 10, "bird": 20})
    open_folder(tmp_path)
    (tmp_path / "cat/03.jpg").unlink()
    message = refused(tmp_path, error=FileNotFoundError)
    assert f"lists 30 photos, of which 1 are gone, the first: {tmp_path}/cat/03.jpg" in message
    assert f"delete {tmp_path}/split_own.json" in message


def test_other_shares_than_the_saved_split_s(tmp_path):
    draw(tmp_path, {"cat": 10, "bird": 20})
    assert parts(open_folder(tmp_path, "DATASET.OWN.SPLIT", [0.8, 0, 0.2])) == [24, 0, 6]
    message = refused(tmp_path)
    assert "[0.5, 0.2, 0.3], but the saved split was made by [0.8, 0, 0.2]" in message
    assert "split_own.json" in message


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [2, 0, 1]), (4, [2, 1, 1])]
)
def test_small_classes(count, expected, tmp_path, capsys):
    draw(tmp_path, {"few": count, "many": 10})
    dataset = open_folder(tmp_path)
    found = [[i.classname for i in p].count("few") for p in (dataset.train_x, dataset.val, dataset.test)]
    assert found == expected
    told = "Only for training: 1 classes of a single photo, the first: 'few'" in capsys.readouterr().out
    assert told == (count == 1)


def test_only_single_photos_cannot_be_tested(tmp_path):
    draw(tmp_path, {"a": 1, "b": 1})
    assert "no photos to test with" in refused(tmp_path)


# --- train, val and test folders


def test_folders_train_val_and_test_are_the_split(tmp_path):
    draw(tmp_path, {"train/cat": 3, "train/dog": 3, "val/dog": 1, "test/cat": 2, "test/dog": 1})
    dataset = open_folder(tmp_path)
    assert parts(dataset) == [6, 1, 3]
    assert dataset.classnames == ["cat", "dog"]
    assert all(path.startswith("test/") for path in paths(dataset.test, tmp_path))
    assert not (tmp_path / "split_own.json").exists()


def test_the_shots_of_a_given_split_are_beside_it_and_no_class(tmp_path):
    draw(tmp_path, {"train/cat": 9, "train/dog": 9, "test/cat": 2})
    first = open_folder(tmp_path, "DATASET.NUM_SHOTS", 2)
    again = open_folder(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert parts(first) == parts(again) == [4, 0, 2]
    assert (tmp_path / "split_fewshot/shot_2-seed_1.json").is_file()


def test_val_may_be_missing_or_empty(tmp_path):
    draw(tmp_path, {"train/cat": 3, "test/cat": 2})
    assert parts(open_folder(tmp_path)) == [3, 0, 2]
    (tmp_path / "val").mkdir()
    assert parts(open_folder(tmp_path)) == [3, 0, 2]


def test_classes_called_train_and_val(tmp_path):
    draw(tmp_path, {"train": 4, "val": 4, "test": 4})
    assert open_folder(tmp_path).classnames == ["test", "train", "val"]


def test_a_class_called_train_within_train(tmp_path):
    draw(tmp_path, {"train/train": 3, "train/bus": 3, "test/train": 1, "test/bus": 1})
    assert open_folder(tmp_path).classnames == ["bus", "train"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"train/cat": 3, "test/cat": 2, "dog": 3}, "holds test and train with folders in it, and dog"),
        (
            {"train/cat": 3, "val/cat": 2},
            "holds train and val with folders in it, but not both train and test",
        ),
        ({"train/cat": 3, "test/cat": 2, "test/dog": 1}, "class 'dog' has photos, but none in train"),
    ],
)
def test_half_a_split(counts, expected, tmp_path):
    assert expected in refused(draw(tmp_path, counts))


# --- what a folder may hold besides


def test_what_is_left_out_is_counted_in_one_line(tmp_path, capsys):
    draw(tmp_path, {"cat": 4, "dog": 4, "empty": 0, ".thumbs": 2, "cat/old": 1})
    for name in ("cat/notes.txt", "cat/Thumbs.db", "dog/.00.jpg", ".DS_Store", "loose.jpg"):
        (tmp_path / name).touch()
    dataset = open_folder(tmp_path)
    assert dataset.classnames == ["cat", "dog"]
    assert capsys.readouterr().out.splitlines()[0] == (
        f"8 photos of 2 classes in {tmp_path}; left out: 1 classes without photos (empty), "
        "3 hidden (.DS_Store), 3 no images (cat/Thumbs.db), 1 not in the folder of a class (loose.jpg)"
    )


def test_spaces_non_ascii_upper_case_and_links(tmp_path):
    root = tmp_path / "meine Bilder"
    draw(root, {"Großer Bär": 4}, ".JPG")
    draw(tmp_path / "elsewhere", {"cat": 4}, " ü.PnG")
    (root / "katze").symlink_to(tmp_path / "elsewhere/cat")
    (root / "Großer Bär/linked.webp").symlink_to(tmp_path / "elsewhere/cat/00 ü.PnG")
    (tmp_path / "link").symlink_to(root)
    dataset = open_folder(tmp_path / "link")
    assert dataset.classnames == ["Großer Bär", "katze"]
    items = [*dataset.train_x, *dataset.val, *dataset.test]
    assert len(items) == 9
    assert all(os.path.isfile(item.impath) for item in items)


def test_names_are_the_same_however_the_file_system_composes_them(tmp_path):
    draw(tmp_path, {"Ba\u0308r": 4, "cat": 4})
    dataset = open_folder(
        tmp_path, "DATASET.OWN.NOVEL_CLASSES", ["B\u00e4r"], "DATASET.SUBSAMPLE_CLASSES", "new"
    )
    assert dataset.classnames == ["B\u00e4r"]
    assert all(os.path.isfile(item.impath) for item in dataset.train_x)


def test_a_link_to_nothing(tmp_path):
    draw(tmp_path, {"cat": 4})
    (tmp_path / "cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert f"{tmp_path}/cat/gone.jpg is a link to nothing" in refused(tmp_path, error=FileNotFoundError)


@pytest.mark.parametrize("counts", [{}, {"cat": 0}, {"a/b/c": 3}])
def test_no_photos(counts, tmp_path):
    message = refused(draw(tmp_path, counts))
    assert f"{tmp_path} has no photos in folders of classes. Expected is {tmp_path}/CLASS" in message


def test_no_folder(tmp_path):
    message = refused(tmp_path, "DATASET.OWN.PATH", "photos", error=FileNotFoundError)
    assert f"DATASET.OWN.PATH is 'photos' and DATASET.ROOT '{tmp_path}'" in message
    assert f"there is no folder {tmp_path}/photos" in message


def test_a_path_starts_from_the_root(tmp_path):
    draw(tmp_path / "photos", {"cat": 4})
    assert len(open_folder(tmp_path, "DATASET.OWN.PATH", "photos").train_x) == 2
    assert len(open_folder(tmp_path / "other", "DATASET.OWN.PATH", str(tmp_path / "photos")).train_x) == 2


# --- names, base and new classes


def halves(root: Path, *options: object) -> list[list[str]]:
    return [
        open_folder(root, "DATASET.SUBSAMPLE_CLASSES", half, *options).classnames for half in ("base", "new")
    ]


def test_base_is_the_first_half_as_for_the_benchmarks(tmp_path):
    draw(tmp_path, dict.fromkeys("edcba", 4))
    assert halves(tmp_path) == [["a", "b", "c"], ["d", "e"]]


def test_novel_classes_are_new_and_the_rest_is_base(tmp_path):
    draw(tmp_path, dict.fromkeys("edcba", 4))
    options = ("DATASET.OWN.CLASS_NAMES", {"b": "bee"}, "DATASET.OWN.NOVEL_CLASSES", ["d", "bee", "a"])
    assert halves(tmp_path, *options) == [["c", "e"], ["a", "bee", "d"]]
    new = open_folder(tmp_path, "DATASET.SUBSAMPLE_CLASSES", "new", *options)
    assert {item.label: item.classname for item in new.test} == {0: "a", 1: "bee", 2: "d"}


@pytest.mark.parametrize(("options", "half"), [((), "new"), (("DATASET.OWN.NOVEL_CLASSES", ["cat"]), "base")])
def test_one_class_has_no_two_halves(options, half, tmp_path):
    draw(tmp_path, {"cat": 6})
    assert open_folder(tmp_path, "DATASET.OWN.NOVEL_CLASSES", []).classnames == ["cat"]
    (tmp_path / "split_own.json").unlink()
    message = refused(tmp_path, "DATASET.SUBSAMPLE_CLASSES", half, *options)
    assert f"DATASET.SUBSAMPLE_CLASSES '{half}' leaves none of 1 classes" in message


def test_names_of_the_config_hold_for_a_saved_split_too(tmp_path):
    draw(tmp_path, {"n01": 4, "n02": 4})
    assert open_folder(tmp_path).classnames == ["n01", "n02"]
    assert open_folder(tmp_path, "DATASET.OWN.CLASS_NAMES", {"n02": "cat"}).classnames == ["n01", "cat"]
    assert open_folder(tmp_path, "DATASET.OWN.CLASS_LIST", ["dog", "cat"]).classnames == ["dog", "cat"]


def test_folders_that_are_numbers_are_named_in_a_file(tmp_path):
    draw(tmp_path / "photos", {"1": 4, "2.5": 4, "cat": 4})
    file = tmp_path / "mine.yaml"
    file.write_text("DATASET: {OWN: {PATH: photos, CLASS_NAMES: {1: one, 2.5: '2', cat: '03'}}}")
    cfg = config("folder", tmp_path)
    cfg.merge_from_file(str(file))
    assert "cat: 03" in str(cfg), "train.py prints it, in the order of the keys"
    assert DATASET_REGISTRY.get("folder")(cfg.clone()).classnames == ["one", "2", "03"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("CLASS_NAMES", {"dogg": "x"}, ("CLASS_NAMES names 'dogg'", "Did you mean 'dog'?")),
        ("CLASS_NAMES", {"dog": "cat"}, ("classes 'cat' and 'dog' are called 'cat' and 'cat'",)),
        ("CLASS_NAMES", {"dog": " "}, ("the name of class 'dog' is ' ', empty",)),
        ("CLASS_LIST", ["a"], ("CLASS_LIST has 1 names", "2 classes, in the order cat, dog")),
        ("NOVEL_CLASSES", ["kat"], ("NOVEL_CLASSES names 'kat'", "Did you mean 'cat'?")),
        ("NOVEL_CLASSES", ["zebra"], ("NOVEL_CLASSES names 'zebra'", "There are cat, dog.")),
        ("TEMPLATE", "a photo", ("TEMPLATE is 'a photo'", "needs {} once")),
        ("SPLIT", [0.5, 0.5], ("SPLIT is [0.5, 0.5]", "three shares")),
        ("SPLIT", [0.5, 0.2, 0.2], ("SPLIT is [0.5, 0.2, 0.2]", "add up to 1")),
        ("SPLIT", [1.0, 0, 0], ("SPLIT is [1.0, 0, 0]", "test above 0")),
        ("SPLIT", [0.5, "a", 0.5], ("SPLIT is [0.5, 'a', 0.5]", "as in [0.5, 0.2, 0.3]")),
    ],
)
def test_settings_that_cannot_be(key, value, expected, tmp_path):
    message = refused(draw(tmp_path, {"cat": 6, "dog": 6}), f"DATASET.OWN.{key}", value)
    for part in expected:
        assert part in message


def test_names_both_listed_and_mapped(tmp_path):
    options = ("DATASET.OWN.CLASS_LIST", ["a", "b"], "DATASET.OWN.CLASS_NAMES", {"cat": "a"})
    assert "set one of them" in refused(draw(tmp_path, {"cat": 6, "dog": 6}), *options)


def test_another_file_where_the_split_should_be(tmp_path):
    draw(tmp_path, {"cat": 6})
    (tmp_path / "split_own.json").write_text("{")
    assert "split_own.json is not readable as JSON" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".avif", ".jp2", ".webp", ".mpo", ".tga"])
def test_photos_of_every_kind_are_taken(tmp_path, suffix):
    draw(tmp_path, {"cat": 4, "dog": 4})
    draw(tmp_path, {"ant": 4}, suffix)
    assert open_folder(tmp_path).classnames == ["ant", "cat", "dog"]


@pytest.mark.parametrize("suffix", [".heic", ".raw", ".txt", "", ".jpg.part"])
def test_a_class_of_no_readable_kind_is_an_error(tmp_path, suffix):
    draw(tmp_path, {"cat": 4, "dog": 4})
    draw(tmp_path, {"ant": 4}, suffix)
    assert f"{tmp_path}/ant holds no images of a kind that is read" in refused(tmp_path)


def test_images_of_a_kind_that_is_not_read_are_named_beside_those_that_are(tmp_path, capsys):
    draw(tmp_path, {"cat": 4, "dog": 4})
    assert open_folder(tmp_path)
    assert "Warning" not in capsys.readouterr().out
    for name in ("b.heic", "a.HEIC", "c.psd", "notes.txt"):
        (tmp_path / "dog" / name).touch()
    open_folder(tmp_path)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]
    assert warning.startswith("Warning: not used, as of a kind that is not read: dog/a.HEIC (3 in all).")
    assert "Convert them" in warning


def test_every_kind_that_pillow_opens_is_taken_or_named():
    Image.init()
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    no_images = {".bufr", ".grib", ".h5", ".hdf", ".mpg", ".mpeg"}  # weather, tables and films
    assert opened - {*IMAGE_SUFFIXES, *OTHER_KINDS} <= no_images


def test_a_class_of_named_pipes_is_an_error(tmp_path):
    draw(tmp_path, {"cat": 4, "dog": 4, "ant": 0})
    os.mkfifo(tmp_path / "ant" / "a.jpg")
    assert "ant holds no images" in refused(tmp_path)


def test_short_classes_are_named(tmp_path, capsys):
    draw(tmp_path, {"ant": 40, "bee": 3, "cat": 1, "dog": 40})
    open_folder(tmp_path, "DATASET.NUM_SHOTS", 16)
    assert "Fewer than 16 shots: 2 classes have no more, bee (2), cat (1)\n" in capsys.readouterr().out
    open_folder(tmp_path, "DATASET.NUM_SHOTS", 1)
    assert "Fewer than" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["0", "1", "2", "10"], "0 is a, 1 is b, 10 is c, 2 is d"),
        (["k9", "k10", "x", "y"], "k10 is a, k9 is b, x is c, y is d"),
        (["0", "1", "2", "3"], ""),
        (["00", "01", "02", "10"], ""),
    ],
)
def test_names_in_an_order_that_is_not_of_the_numbers_are_printed(tmp_path, capsys, folders, expected):
    open_folder(draw(tmp_path, dict.fromkeys(folders, 4)), "DATASET.OWN.CLASS_LIST", list("abcd"))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CLASS_LIST")]
    assert [line.endswith(f": {expected}") for line in shown] == ([True] if expected else [])


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"a\nb.jpg", b"a\x1b]0;x\x07.jpg", "a\u202eb.jpg".encode()])
def test_a_file_name_that_cannot_be_printed_is_refused_in_one_line(tmp_path, name):
    draw(tmp_path, {"ant": 4, "bee": 4})
    os.rename(tmp_path / "ant/00.jpg", os.fsencode(tmp_path / "ant") + b"/" + name)
    message = refused(tmp_path)
    assert message.isprintable()
    assert "Rename the file or folder" in message
    assert "ant/" in message


def test_files_that_are_left_out_do_not_write_lines(tmp_path, capsys):
    draw(tmp_path, {"ant": 4, "bee": 4})
    (tmp_path / "ant" / ".x\nFinish training\n=> result\n* accuracy: 99.99%").touch()
    open_folder(tmp_path)
    assert "* accuracy" not in [line[:10] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("key", ["TEMPLATE", "SPLIT", "CLASS_LIST", "NOVEL_CLASSES", "PATH", "REVISION"])
def test_a_setting_that_is_none_is_refused(tmp_path, key):
    draw(tmp_path, {"ant": 4, "bee": 4})
    with pytest.raises(ValueError, match=f"DATASET.OWN.{key} is None"):
        open_folder(tmp_path, f"DATASET.OWN.{key}", "None")


@pytest.fixture
def seen_by_all() -> Iterator[Path]:
    """A folder that other users may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield Path(place)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_another_user_s_index_caches_and_locks_are_read_and_not_needed(seen_by_all, monkeypatch):
    """Where tests are not run as root, the user may not write into the folder either."""
    for module in (own_split, folder_index):
        monkeypatch.setattr(module, "LEAST", 1)
    photos, told = seen_by_all / "photos", seen_by_all / "told"
    draw(photos, {"cat": 10, "dog": 10})
    told.mkdir()
    told.chmod(0o777)
    open_folder(photos, "DATASET.NUM_SHOTS", 2)
    ours = images_of(open_folder(photos, "DATASET.NUM_SHOTS", 2))  # imports what the other may not read
    (photos / "dog" / "late.jpg").touch()  # so that the index is of yesterday

    def other_user() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        os.environ["XDG_CACHE_HOME"] = str(told / "cache")
        theirs = [images_of(open_folder(photos, "DATASET.NUM_SHOTS", shots)) for shots in (2, 3)]
        (told / "same").write_text(f"{theirs[0] == ours}, {len(theirs[1][0])} images")

    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    for folder in (photos, photos / ".folder_index", photos / "split_fewshot"):
        folder.chmod(0o555)
    process = multiprocessing.get_context("fork").Process(target=other_user)
    process.start()
    process.join()
    for folder in (photos, photos / ".folder_index", photos / "split_fewshot"):
        folder.chmod(0o755)
    assert (told / "same").read_text() == "True, 6 images"
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    assert list(told.glob("cache/*/folder_index/*.bin")), "an index of their own"
