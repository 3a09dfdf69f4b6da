"""`list`, the names of datasets, and what `sources.json` says of them."""

from __future__ import annotations

import re

import pytest
from served_dtd import run
from served_dtd import server as server
from served_dtd import world as world

from datasets import sources
from datasets.sources import known, registered


def test_list_names_everything(tmp_path, capsys):
    assert run("list", "--root", tmp_path) == 0
    shown = capsys.readouterr().out
    for name, own in registered().items():
        assert f"\n{name} " in shown
        assert known()[name].folder == own.dataset_dir
    for words in (
        "prepare (mirror), or by hand (login):",
        "oxford_pets",
        "2,944/736/3,669",
        "1,281,167/-/50,000",
    ):
        assert words in shown


def test_list_says_what_is_there(world, tmp_path, capsys):
    (tmp_path / "dtd/images").mkdir(parents=True)
    run("list", "--root", tmp_path)
    assert "without" in capsys.readouterr().out
    run("prepare", "dtd", "--root", tmp_path)
    run("list", "--root", tmp_path)
    assert "DescribableTextures  yes" in capsys.readouterr().out


@pytest.mark.parametrize("name", known())
def test_every_dataset_is_found_by_its_names(name):
    entry = known()[name]
    for alias in (name, name.upper(), entry.folder, entry.config or name, *entry.also):
        assert sources.find(alias) is entry


@pytest.mark.parametrize("name", known())
def test_every_source_can_be_used(name):
    entry = known()[name]
    places = [place for file in entry.files for place in file.places]
    assert len(set(places)) == len(places)
    assert not entry.split or not entry.files or entry.split in places
    for file in entry.files:
        assert file.urls or file.by_hand
        assert re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git:[0-9a-f]{40})?", file.hash)
        assert file.unpack in ("", "train", "val")
        for url in file.urls:
            assert re.match(r"https?://|gdrive:\w+|hub:(datasets|models)/[\w-]+/[\w.@-]+/.", url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "flowers"), "There is no dataset 'flowers'.*Did you mean OxfordFlowers"),
        (("prepare", "caltech"), "Did you mean Caltech101"),
        (("show", "xyzzy"), "There is no dataset 'xyzzy'; available: ImageNet, "),
        (("show", "shapes", "--out", "sheet.jpg"), r"--out is 'sheet\.jpg'; it must end with \.png"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--root", tmp_path) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
