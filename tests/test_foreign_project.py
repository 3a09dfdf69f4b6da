"""Someone else's project, with its own clip/, trainers/ and datasets/, runs with our `dassl` beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign.toy import CLASSES, draw_images
from helpers import ROOT

PROJECT = Path(__file__).parent / "foreign" / "project"
# What upstream imports for nothing, and what is optional here: importing it fails.
ABSENT = ["gdown", "pandas", "tensorboard", "wilds"]


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        shutil.copytree(PROJECT, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        self.engine = folder / "engine"
        self.engine.mkdir()
        (self.engine / "dassl").symlink_to(ROOT / "dassl", target_is_directory=True)
        for name in ABSENT:
            (self.engine / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
        for split, count in (("train", 24), ("test", 40)):
            for item in draw_images(folder / split, count, seed=count):
                target = folder / "data" / "toys" / split / item.classname
                target.mkdir(parents=True, exist_ok=True)
                shutil.move(item.impath, target)

    def run(self, *flags: object) -> str:
        """`python train.py`, in its own folder; what it prints."""
        command = [sys.executable, "train.py", "--root", "../data", "--trainer", "CoOp", "--seed", "1"]
        command += ["--config-file", "configs/trainers/CoOp/tiny.yaml"]
        command += ["--dataset-config-file", "configs/datasets/toys.yaml", *map(str, flags)]
        env = {**os.environ, "PYTHONPATH": str(self.engine), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=300
        )
        assert run.returncode == 0, run.stderr
        return run.stdout


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


OPTIONS = ["DATASET.NUM_SHOTS", 4, "USE_CUDA", False]
OPTIONS += ["TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True, "TRAINER.COOP.PREC", "fp32"]
RESULT = r"=> result\n\* total: 40\n\* correct: (\d+)\n\* accuracy: (\d+\.\d\d)%\n\* error: \d+\.\d\d%\n"


def test_train_and_test(project):
    trained = project.run("--output-dir", "output/coop", *OPTIONS)
    # It is the project's code that ran, on our engine.
    code = dict(re.findall(r"^(\w+) is (/.*)$", trained, re.MULTILINE))
    assert set(code) == {"clip", "datasets", "trainers", "dassl"}
    for package in ("clip", "datasets", "trainers"):
        assert code[package] == str(project.folder / package / "__init__.py")
    assert code["dassl"] == str(project.engine / "dassl" / "__init__.py")

    assert "Loading trainer: CoOp\nLoading dataset: Toys\n" in trained
    assert "Creating a 4-shot dataset\nSaving preprocessed few-shot data to " in trained
    assert "TensorBoard is not installed" in trained
    losses = re.findall(r"^epoch \[(\d)/3\] batch \[[24]/4\] .*loss (\S+) \((\S+)\)", trained, re.MULTILINE)
    assert [epoch for epoch, _, _ in losses] == ["1", "1", "2", "2", "3", "3"]
    assert float(losses[-1][2]) < float(losses[1][2])  # the mean of the last epoch and of the first
    ((_, accuracy),) = re.findall(RESULT, trained)
    assert float(accuracy) > 100 / len(CLASSES)
    output = project.folder / "output" / "coop"
    assert (output / "log.txt").read_text() == trained[trained.index("config_file: ") :]

    # What a script of today's torch reads without further ado.
    checkpoint = torch.load(output / "prompt_learner" / "model.pth.tar-3", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    assert checkpoint["epoch"] == 3

    tested = project.run(
        *("--output-dir", "output/eval", "--model-dir", "output/coop", "--load-epoch", 3, "--eval-only"),
        *OPTIONS,
        *("TEST.PER_CLASS_RESULT", True, "TEST.SAVE_PREDICTIONS", True),
    )
    assert "Loading preprocessed few-shot data from " in tested
    assert 'Loading weights to prompt_learner from "output/coop/prompt_learner/model.pth.tar-3"' in tested
    assert "epoch [" not in tested
    assert [found[1] for found in re.findall(RESULT, tested)] == [accuracy]
    assert re.findall(r"^\* class: \d \((.+)\)\ttotal: 10\t", tested, re.MULTILINE) == sorted(CLASSES)
    predictions = (project.folder / "output" / "eval" / "predictions_test.csv").read_text().splitlines()
    assert len(predictions) == 1 + 40
