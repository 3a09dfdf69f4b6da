"""Own photos trained on and tested by `train.py`, as a user calls it: no code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from train import command_line

CONFIG = ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"


@pytest.fixture
def job(tmp_path, golden_checkpoint):
    """Flags of a short training run on what lies in `root`."""

    def flags(
        kind: str, root: Path, half: str, output: str, *options: object, flags: tuple = ()
    ) -> list[str]:
        words = ["--root", root, "--seed", 1, "--trainer", "MaPLe", "--output-dir", tmp_path / output]
        words += ["--dataset-config-file", ROOT / f"configs/datasets/{kind}.yaml", "--config-file", CONFIG]
        words += [*flags, "MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
        words += ["DATALOADER.NUM_WORKERS", 0, "TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 3]
        words += ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "USE_CUDA", False]
        words += ["DATASET.SUBSAMPLE_CLASSES", half, *options]
        return [str(word) for word in words]

    return flags


def draw(root: Path) -> Path:
    """Ten real photos in each of three folders, one of them with a space and letters beyond ASCII."""
    for label, name in enumerate(["brown bear", "Kätzchen", "zebra"]):
        (root / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.random.RandomState(100 * label + index).randint(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"IMG {index:02d}.JPG")
    return root


def train_and_test(job, capsys, kind: str, root: Path, *options: object) -> list[str]:
    """Trains on the base classes and tests on the new ones; returns what the two runs printed."""
    printed = []
    for half, output, flags in (("base", "run", ()), ("new", "new", ("--eval-only", "--model-dir"))):
        place = (Path(job(kind, root, half, "run")[7]),) if flags else ()
        assert command_line(job(kind, root, half, output, *options, flags=(*flags, *place))) == 0
        printed.append(capsys.readouterr().out)
    return printed


def test_a_folder_of_photos(job, tmp_path, capsys):
    root = draw(tmp_path / "my photos")
    base, new = train_and_test(job, capsys, "folder", root, "DATASET.OWN.NOVEL_CLASSES", "['zebra']")
    assert f"30 photos of 3 classes in {root}\n" in base
    assert "epoch [1/1]" in base
    assert "* total: 6" in base  # 3 of 10 in each of two classes
    assert "* total: 3" in new
    checkpoint = tmp_path / "run/MultiModalPromptLearner/model.pth.tar-1"
    assert checkpoint.is_file()
    assert sorted(
        path.name for path in root.iterdir() if path.name not in ("Kätzchen", "brown bear", "zebra")
    ) == [
        ".folder_index",
        "split_fewshot",
        "split_own.json",
    ]


def test_a_table_of_photos(job, tmp_path, capsys):
    root = draw(tmp_path / "my photos")
    lines = ["path,label"]
    for path in sorted(root.rglob("*.JPG")):
        lines.append(f"{path.relative_to(root)},{path.parent.name}")
    (root / "photos.csv").write_text("\n".join(lines), encoding="utf-8")
    base, new = train_and_test(job, capsys, "csv", root, "DATASET.OWN.CLASS_NAMES", "{'Kätzchen': 'kitten'}")
    assert "epoch [1/1]" in base
    assert "* total: 6" in base
    assert "* total: 3" in new
    saved = json.loads((root / "photos_split_own.json").read_text())
    assert {name for _, _, name in saved["test"]} == {"brown bear", "kitten", "zebra"}


def test_photos_of_many_kinds(job, tmp_path, capsys):
    """Photos as people have them: of other sizes, in grey, for print (CMYK), turned, or with a palette."""
    root = tmp_path / "photos"
    for label, name in enumerate(["banded", "blotchy", "braided", "bubbly", "bumpy", "chequered"]):
        (root / name).mkdir(parents=True)
        for index, mode in enumerate(["RGB", "L", "CMYK", "RGB", "P", "RGBA", "1", "RGB"]):
            shape = (40 + 30 * label, 64 + 50 * index, 3)
            pixels = np.random.RandomState(8 * label + index).randint(0, 256, shape, dtype=np.uint8)
            exif = Image.Exif()
            exif[0x0112] = 1 + index  # the camera was held otherwise
            suffix = "jpg" if mode in ("RGB", "L", "CMYK") else "png"
            Image.fromarray(pixels).convert(mode).save(root / name / f"{index}.{suffix}", exif=exif)
    base, new = train_and_test(job, capsys, "folder", root, "DATASET.OWN.TEMPLATE", "{} texture.")
    assert "48 photos of 6 classes" in base
    assert "epoch [1/1]" in base
    assert "* total: 6" in base
    assert "* total: 6" in new


def test_own_data_can_be_read_without_the_benchmarks(tmp_path):
    """As where the project is installed: its folder `datasets` is not, and another `datasets` may be."""
    program = """
import sys
from types import ModuleType
from yacs.config import CfgNode
def Config(**values): return CfgNode(values)
sys.modules["datasets"] = ModuleType("datasets")  # somebody else's
from dassl.data import own_hub
from dassl.data.datasets import DATASET_REGISTRY
own = Config(PATH="", TEMPLATE="a {}.", SPLIT=[0.5, 0.2, 0.3], CLASS_NAMES={}, CLASS_LIST=[])
own.NOVEL_CLASSES = []
data = Config(OWN=own, ROOT=sys.argv[1], NUM_SHOTS=2, SUBSAMPLE_CLASSES="all")
folder = DATASET_REGISTRY.get("folder")(Config(SEED=1, DATASET=data))
print(len(folder.train_x), {"csv", "hub"} <= {*DATASET_REGISTRY.registered_names()})
"""
    command = [sys.executable, "-c", program, str(draw(tmp_path / "photos"))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1:] == ["6 True"], run.stderr


def test_a_wrong_setting_is_one_line_and_leaves_nothing(job, tmp_path, capsys):
    root = draw(tmp_path / "photos")
    before = sorted(tmp_path.rglob("*"))
    assert command_line(job("folder", root, "new", "run", "DATASET.OWN.NOVEL_CLASSES", "['zebras']")) == 2
    assert capsys.readouterr().err == (
        "train.py: DATASET.OWN.NOVEL_CLASSES names 'zebras'; there is no such class. Did you mean 'zebra'?\n"
    )
    assert sorted(tmp_path.rglob("*")) == before
