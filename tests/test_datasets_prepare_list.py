"""`list`, the names of datasets, and what `sources.json` says of them."""

from __future__ import annotations

import re

import pytest
from served_dtd import run
from served_dtd import server as server
from served_dtd import world as world

from datasets import arrange, sources
from datasets.download import Refused
from datasets.fetch import parse_hub
from datasets.sources import known, registered


def test_list_names_everything(tmp_path, capsys):
    assert run("list", "--root", tmp_path) == 0
    shown = capsys.readouterr().out
    for name, own in registered().items():
        assert f"\n{name} " in shown
        assert known()[name].folder == own.dataset_dir
    for words in ("by hand (login): cars_train.tgz", "oxford_pets", "2,944/736/3,669", "1,281,167/-/50,000"):
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
    places = [place for part in entry.parts for place in part.gives]
    assert len(set(places)) == len(places)
    assert not entry.split or not entry.parts or entry.split in places
    for part in entry.parts:
        assert set(part.elsewhere) <= set(part.gives)
        for source in part.sources:
            assert source.addresses or source.by_hand
            assert set((source.take or {part.gives[0]: part.gives[0]}).values()) == set(part.gives)
            assert not source.arrange or source.arrange in arrange.ARRANGEMENTS
            for address in source.addresses:
                assert address.startswith(("https://", "http://", "gdrive:", "hub:", "parquet:"))
                assert not address.startswith("hub:") or parse_hub(address)
                assert bool(source.name) == address.startswith("parquet:")


def test_an_address_of_the_hub_that_is_none():
    with pytest.raises(Refused, match="is not hub:datasets/OWNER/NAME/FILE"):
        parse_hub("hub:datasets/one/file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "flowers"), "There is no dataset 'flowers'.*Did you mean OxfordFlowers"),
        (("prepare", "caltech"), "Did you mean Caltech101"),
        (("show", "xyzzy"), "There is no dataset 'xyzzy'; there are ImageNet, "),
        (("show", "shapes", "--out", "sheet.jpg"), r"--out is 'sheet\.jpg'; it must end with \.png"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--root", tmp_path) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
