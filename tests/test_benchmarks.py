"""The measurements measure what they say: the ways that they compare give the same."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from benchmarks import decoding, report, startup
from datasets import index


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_startup_draws_the_same_images_in_each_way(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "LEAST", 1)
    assert startup.make_tree(str(tmp_path), 60, 3) == 60
    place = index.places(str(tmp_path / "imagenet"))[0]
    drawn = startup.open_plainly(str(tmp_path))
    assert len(drawn) == 3 * startup.SHOTS
    assert not os.path.exists(place)
    assert startup.open_dataset(str(tmp_path)) == drawn
    assert os.path.exists(place)
    startup.forget(str(tmp_path), also_index=False)
    assert os.path.exists(place)
    assert startup.open_dataset(str(tmp_path)) == drawn
    startup.forget(str(tmp_path), also_index=True)
    assert not os.path.exists(place)
    assert sorted(os.listdir(tmp_path / "imagenet")) == [".folder_index", "classnames.txt", "images"]


def test_startup_stops_where_other_images_are_drawn(monkeypatch):
    drawn = iter(range(3))
    monkeypatch.setattr(startup, "forget", lambda root, also_index: None)
    monkeypatch.setattr(
        startup, "in_own_process", lambda way, root: {"seconds": 1, "memory": 1, "drawn": next(drawn)}
    )
    with pytest.raises(AssertionError, match="have not drawn the same images"):
        startup.compare("", 1)


def test_decoding_reports_what_differs(tmp_path, threads):
    decoding.draw_photos(tmp_path, 2)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    lines = decoding.report(paths, "pictures", rounds=1)
    assert lines[0] == "# From 2 pictures to a model's input of 224 × 224"
    table = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert {"written out", "ours", "ours, decoded before", "torchvision decodes and resizes"} <= set(table)
    assert "| 2 of 2 |" in table["torchvision decodes and resizes"], "which is why it is not taken"


def test_decoding_stops_at_another_number(tmp_path):
    decoding.draw_photos(tmp_path, 1)
    paths = [str(tmp_path / "0000.jpg")]
    right = decoding.plain(is_train=True)
    with pytest.raises(AssertionError, match="ours gives other numbers than plain"):
        decoding.measure({"plain": right, "ours": lambda path: right(path) + 1e-6}, paths, rounds=1)


def test_figures_are_medians_and_ranges_of_rounds(tmp_path, monkeypatch, capsys):
    assert report.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert report.ratios([2.0, 9.0], [1.0, 3.0], 0) == "2 (2 to 3)"
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    report.save("x.md", ["one", "two"])
    assert (tmp_path / "results" / "x.md").read_text() == "one\ntwo\n"
    assert capsys.readouterr().out == "one\ntwo\n\n"
    shutil.rmtree(tmp_path / "results")
    assert any(
        "Load average before each round: 0.5 to 1.5" in line for line in report.conditions([], [0.5, 1.5])
    )
    assert np.isfinite(report.load_average()).all()
