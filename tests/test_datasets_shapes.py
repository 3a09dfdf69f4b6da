"""`Shapes`: the same pixels everywhere, halves that share all words, and never half a dataset."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from datasets import shapes
from datasets.drawing import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Chance, Style, draw


def config(root: Path, subsample: str = "all", shots: int = -1) -> SimpleNamespace:
    dataset = SimpleNamespace(ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
    return SimpleNamespace(SEED=1, DATASET=dataset)


def sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Few images a class, so that drawing takes a moment."""
    counts = {"train": 2, "val": 1, "test": 1}
    monkeypatch.setattr(shapes, "IMAGES", counts)
    return counts


def test_a_seed_is_a_picture_pixel_for_pixel():
    recorded = {"train": "9566f50ae140ea55", "val": "180018af81d6caed", "test": "f3645b2334576b84"}
    for stream, part in enumerate(recorded):
        pattern, colour, shape = shapes.class_table()[17 * stream]
        pixels = draw(shape, pattern, colour, shapes.STYLE, Chance(shapes.SEED, stream, 17 * stream, 3))
        assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
        assert sha256(pixels) == recorded[part]


def test_every_shape_pattern_and_background_is_as_recorded():
    """One sheet of everything that can be drawn."""
    sheet = [
        draw(
            shape,
            pattern,
            list(COLOURS)[(i + j) % len(COLOURS)],
            Style(backgrounds=(background,)),
            Chance(i, j),
        )
        for i, (shape, background) in enumerate(zip(SHAPES, 2 * list(BACKGROUNDS), strict=True))
        for j, pattern in enumerate(PATTERNS)
    ]
    assert sha256(np.stack(sheet)) == "f44109580ae3f571"


def test_halves_are_a_checkerboard():
    table = shapes.class_table()
    assert len(table) == len(set(table)) == 48
    base, new = table[:24], table[24:]
    for half in (base, new):
        for k, words in enumerate((shapes.PATTERNS, shapes.COLOURS, shapes.SHAPES)):
            # each word as often as any other, in both halves
            assert Counter(row[k] for row in half) == dict.fromkeys(words, 24 // len(words))
    words = [w for k in (shapes.PATTERNS, shapes.COLOURS, shapes.SHAPES) for w in k]
    place = {
        word: number
        for k in (shapes.PATTERNS, shapes.COLOURS, shapes.SHAPES)
        for number, word in enumerate(k)
    }
    assert {sum(place[word] for word in row) % 2 for row in base} == {0}
    assert {sum(place[word] for word in row) % 2 for row in new} == {1}
    assert len(words) == len(set(words))


def test_drawn_on_first_use_in_the_layout_of_the_others(few, tmp_path):
    base = shapes.Shapes(config(tmp_path, "base"))
    split_file = tmp_path / "shapes" / "split_zhou_Shapes.json"
    written = split_file.stat().st_mtime_ns
    new = shapes.Shapes(config(tmp_path, "new"))
    assert split_file.stat().st_mtime_ns == written  # drawn once
    assert [child.name for child in tmp_path.iterdir()] == ["shapes"]

    names = [" ".join(words) for words in shapes.class_table()]
    assert (base.classnames, new.classnames) == (names[:24], names[24:])
    split = json.loads(split_file.read_text())
    for part, count in few.items():
        assert Counter(name for _, _, name in split[part]) == dict.fromkeys(names, count)
    path, label, name = split["test"][5]
    assert name == names[label]
    assert path.startswith(name.replace(" ", "_") + "/")
    pattern, colour, shape = name.split()
    wanted = draw(shape, pattern, colour, shapes.STYLE, Chance(shapes.SEED, 2, label, 0))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shapes" / "images" / path)), wanted)


def test_parts_and_seeds_have_images_of_their_own(few, tmp_path):
    for seed in (1, 2):
        shapes.draw_dataset(str(tmp_path / str(seed)), seed)
    drawn = [path.read_bytes() for path in tmp_path.rglob("*.png")]
    assert len(drawn) == len(set(drawn)) == 2 * 48 * sum(few.values())


def test_shots_are_enough():
    assert shapes.IMAGES["train"] >= 16
    assert shapes.IMAGES["val"] >= 4
    assert shapes.IMAGES["test"] >= 50


def test_a_killed_drawing_is_drawn_again(few, tmp_path):
    code = (
        "from types import SimpleNamespace as N; from datasets.shapes import Shapes;"
        f"Shapes(N(SEED=1, DATASET=N(ROOT={str(tmp_path)!r}, NUM_SHOTS=-1, SUBSAMPLE_CLASSES='all')))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*_03.png")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "shapes").exists()
    whole = shapes.Shapes(config(tmp_path))
    assert len(whole.train_x) == 48 * few["train"]
    assert len(whole.test) == 48 * few["test"]
