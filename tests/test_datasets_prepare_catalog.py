"""`verify` and `show` on a small tree of every benchmark of the catalogue, in its real form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from benchmark_trees import REGISTERED, ROWS, draw_tree, trainval_and_test
from PIL import Image
from served_dtd import jpeg, run

from datasets import __main__ as command
from datasets import catalog, sources, verify

KNOWN = sources.known()  # before any test replaces it


@pytest.fixture(params=REGISTERED)
def entry(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sources.Entry:
    """A benchmark whose small tree stands under `tmp_path`, and whose published numbers are the tree's."""
    name = request.param
    monkeypatch.setattr(catalog.ImageNetPart, "n_classes", 3)
    folder = draw_tree(name, tmp_path)
    trainval, test = trainval_and_test(ROWS[name])
    counts = {"classes": 3, "test": 6, "test_base": 4, "test_new": 2}
    entry = KNOWN[name]
    if entry.split:
        rows = {"train": trainval, "val": [], "test": test}
        (folder / entry.split).write_text(json.dumps(rows), encoding="utf-8")
        counts["train"] = 15
    elif entry.dataset.test_only:
        counts |= {"test": 21, "test_base": 14, "test_new": 7}
    for number, (path, _, _) in enumerate(ROWS[name]):
        (folder / entry.images / path).write_bytes(jpeg(number))
    files = tuple(file for file in entry.files if file.file != entry.split)  # whose checksum is another
    small = dataclasses.replace(entry, counts=counts, files=files)
    for module in (sources, command, verify):
        monkeypatch.setattr(module, "known", lambda: {name: small})
    return small


def test_a_whole_tree(entry, tmp_path, capsys):
    assert run("verify", entry.name, "--root", tmp_path, "--all") == 0
    assert capsys.readouterr().out.endswith("3 classes: as it should be\n")


def test_a_missing_image(entry, tmp_path, capsys):
    (tmp_path / entry.folder / entry.images / ROWS[entry.name][-1][0]).unlink()
    assert run("verify", entry.name, "--root", tmp_path) == 1
    shown = capsys.readouterr().out
    assert Path(ROWS[entry.name][-1][0]).name in shown or " test images, published are " in shown


def test_a_broken_image(entry, tmp_path, capsys):
    (tmp_path / entry.folder / entry.images / ROWS[entry.name][-1][0]).write_bytes(jpeg(1)[:200])
    assert run("verify", entry.name, "--root", tmp_path) == 1
    assert f"{ROWS[entry.name][-1][0]} does not decode (" in capsys.readouterr().out


def test_its_contact_sheet(entry, tmp_path, capsys):
    assert run("show", entry.name, "--root", tmp_path, "--out", tmp_path / "sheet.png", "--images", "2") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size > (480, 200)


def test_the_catalogue_and_the_sources_say_the_same():
    for name, fields in json.loads(sources.SOURCES.read_text(encoding="utf-8"))["datasets"].items():
        if own := sources.registered().get(name):
            said = (fields["folder"], fields["images"], fields["split"] or "")
            assert said == (own.dataset_dir, own.image_dir, own.split_file)
