"""Class names: one sentence is one class, a name is a text, and nothing in it is syntax. Of every reader."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dassl.data import DataManager
from dassl.data.class_names import check_class_names
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from prompted_clip.errors import UserError
from tests.test_datasets_own import config, draw, files

ONE_SENTENCE = [
    ("dog", "dog"),
    ("Dog", "dog"),
    ("golden_retriever", "golden retriever"),
    ("sea lion", "sea  lion"),
    ("sea lion", "sea\u00a0lion"),
    ("sea lion", " sea_lion"),
    ("R&B", "R&amp;B"),
    ("R&B", "r & b"),
    ("type2", "type 2"),
    ("café", "cafÃ©"),
    ("café", "cafe\u0301"),
    ("half", "ｈａｌｆ"),
    ("ofﬁce", "office"),
    ("it’s", "it's"),
]
NO_NAMES = [
    *(
        "",
        " ",
        "_",
        "&nbsp;",
        "\n",
        "a\nb",
        "a\tb",
        "a\x1b]0;x\x07",
        "a\x7fb",
        "a\u2028b",
        "a\x85b",
        "\ufeffa",
    ),
    *("a\u202eb", "a\u2066b", "a\u200bb", "fourmi\udce9", "a <|endoftext|>", "<|startoftext|>", "x\0"),
    *(None, True, False, 12, 1.5, ("a", "b"), b"a", ["a"]),
]
LINES = "x)\nFinish training\n=> result\n* accuracy: 99.99%\n("


def check(names):
    check_class_names(dict(enumerate(names)), "here", "Rename it.")


def message(call, *args):
    with pytest.raises(UserError) as raised:
        call(*args)
    text = str(raised.value)
    assert text.isprintable(), "one line, and nothing that a terminal obeys"
    assert len(text) < 2000
    return text


@pytest.mark.parametrize("pair", ONE_SENTENCE)
def test_two_names_of_one_sentence_are_refused_by_both_names(pair):
    text = message(check, ["cat", *pair])
    assert all(repr(name) in text for name in pair)
    assert "Rename it." in text


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused(name):
    text = message(check, ["cat", name])
    assert "here: the name of class 1 is" in text
    assert isinstance(name, str) or "quotes" in text


def test_names_of_many_languages_are_taken():
    check(
        [
            "犬",
            "猫",
            "Kätzchen",
            "كلب",
            "می\u200cخواهم",
            "क्\u200dष",
            "👨\u200d👩",
            "737-200",
            "737-300",
            "C.",
            "C",
        ]
    )


def test_a_long_name_gives_a_short_message():
    assert len(message(check, ["x" * 10**5, "X" * 10**5])) < 600


def test_imagenets_names_as_published_are_taken():
    names = [f"thing {'abcdefghij'[k % 10]} {k}" for k in range(998)]
    check([*names, "sunglasses", "missile", "sunglasses", "missile"])
    message(check, [*names, "crane", "crane"])
    message(check, ["cat", "missile", "missile"])


# By every reader -------------------------------------------------------------------------------------------


def opened(name, root, *options):
    return DATASET_REGISTRY.get(name)(config(name, root, *options))


def refused_by(name, root, *options):
    before = files(root)
    text = message(opened, name, root, *options)
    assert files(root) == before, "before anything is written"
    return text


@pytest.mark.parametrize("pair", [("Dog", "dog"), ("sea_lion", "sea lion")])
def test_by_folders(tmp_path, pair):
    text = refused_by("folder", draw(tmp_path, dict.fromkeys([*pair, "cat"], 4)))
    assert all(repr(name) in text for name in pair)
    assert "CLASS_NAMES" in text
    opened("folder", tmp_path, "DATASET.OWN.CLASS_NAMES", {pair[0]: "ant"})


@pytest.mark.parametrize("pair", [("ant", "ANT"), ("ant", "a\nb")])
def test_by_a_table(tmp_path, pair):
    draw(tmp_path, {"photos": 8})
    with open(tmp_path / "list.csv", "w", newline="") as file:
        table = [[f"photos/{number:02d}.jpg", pair[number % 2]] for number in range(8)]
        csv.writer(file).writerows([["path", "label"], *table])
    refused_by("csv", tmp_path, "DATASET.OWN.PATH", "list.csv")


@pytest.mark.parametrize("names", [("plain", "plain"), ("plain", "Plain"), ("plain", ""), ("plain", LINES)])
def test_by_a_split_file(tmp_path, names):
    draw(tmp_path / "dtd" / "images", {"a": 6})
    rows = [[f"a/{number:02d}.jpg", number % 2, names[number % 2]] for number in range(6)]
    path = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    path.write_text(json.dumps({"train": rows[:2], "val": rows[2:4], "test": rows[4:]}))
    assert path.name in refused_by("DescribableTextures", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CLASS_LIST: [on, off, maybe]", "CLASS_LIST[0] is True (bool)"),
        ("CLASS_LIST: [012, b, c]", "012 means 10 in yaml"),
        ("CLASS_LIST: [12:30, b, c]", "12:30 means 750 in yaml"),
        ("CLASS_LIST: [1.50, b, c]", "CLASS_LIST[0] is 1.5 (float)"),
        ("CLASS_LIST: [2020-01-01, b, c]", "(date)"),
        ("CLASS_LIST: [null, b, c]", "CLASS_LIST[0] is None"),
        ("CLASS_LIST: [[a], b, c]", "CLASS_LIST[0] is ['a'] (list)"),
        ("CLASS_NAMES: {a: yes}", "CLASS_NAMES of 'a' is True (bool)"),
        ("CLASS_NAMES: {a: null}", "CLASS_NAMES of 'a' is None"),
        ("CLASS_NAMES: {a: 7}", "CLASS_NAMES of 'a' is 7 (int)"),
        ("CLASS_NAMES: {a: {b: x}}", "has a section 'a'"),
        ("NOVEL_CLASSES: [no]", "NOVEL_CLASSES[0] is False (bool)"),
        ("NOVEL_CLASSES: [010]", "010 means 8 in yaml"),
        ("CLASS_NAMES: {007: x}", "CLASS_NAMES names '007'"),
    ],
)
def test_what_yaml_makes_something_else_of(tmp_path, text, expected):
    draw(tmp_path / "photos", {"a": 4, "b": 4, "c": 4})
    file = tmp_path / "own.yaml"
    file.write_text(f"DATASET: {{NAME: folder, OWN: {{PATH: photos, {text}}}}}")
    cfg = config("folder", tmp_path)

    def read():
        cfg.merge_from_file(str(file))
        DATASET_REGISTRY.get("folder")(cfg)

    text = message(read)
    assert expected in text
    assert "quotes" in text or "There are" in text


def test_names_in_quotes_are_taken_as_they_are(tmp_path):
    draw(tmp_path / "photos", {"no": 4, "007": 4, "x": 4, "y": 4})
    file = tmp_path / "own.yaml"
    names = '{no: "no", 007: "1,2", x: "1.50", y: "0x10"}'
    file.write_text(f"DATASET: {{OWN: {{PATH: photos, CLASS_NAMES: {names}, NOVEL_CLASSES: ['007', 'no']}}}}")
    cfg = config("folder", tmp_path)
    cfg.merge_from_file(str(file))
    assert DATASET_REGISTRY.get("folder")(cfg).classnames == ["1,2", "no", "1.50", "0x10"]


def test_names_on_the_command_line(tmp_path):
    draw(tmp_path, {"a": 4, "St.Bernard": 4})
    named = opened("folder", tmp_path, "DATASET.OWN.CLASS_NAMES.a", "012")
    assert named.classnames == ["St.Bernard", "012"]
    text = message(opened, "folder", tmp_path, "DATASET.OWN.CLASS_NAMES.St.Bernard", "x")
    assert "holds a dot" in text
    assert "yaml file" in text


class Foreign(DatasetBase):
    names = ("", "")

    def __init__(self, cfg):
        items = [Datum(f"{k}.jpg", k, 0, name) for k, name in enumerate(self.names)]
        super().__init__(train_x=items, test=items)


@pytest.mark.parametrize("names", [("dog", "Dog"), ("dog", LINES), ("dog", ""), ("", ""), ("0", "1")])
def test_by_the_engine_for_a_dataset_that_makes_its_own_datums(monkeypatch, names):
    monkeypatch.setattr(Foreign, "names", names)
    cfg = config("folder", Path("nowhere"))
    manager = "dassl.data.data_manager.build_dataset"
    monkeypatch.setattr(manager, Foreign)
    if names in (("", ""), ("0", "1")):  # upstream's datasets without names
        assert DataManager(cfg).num_classes == 2
    else:
        assert "DATASET.NAME folder" in message(DataManager, cfg)


def test_lab2cname_of_a_foreign_dataset_may_be_anything(monkeypatch):
    """Only names that are there are looked at."""
    loaders = dict.fromkeys(("train_x", "train_u", "val", "test"))
    dataset = SimpleNamespace(num_classes=1, lab2cname={}, **loaders)
    monkeypatch.setattr("dassl.data.data_manager.build_dataset", lambda cfg: dataset)
    assert DataManager(config("folder", Path("nowhere"))).lab2cname == {}
