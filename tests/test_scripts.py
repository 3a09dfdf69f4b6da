"""The shell scripts and the demo, as a newcomer calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from parse_test_res import main as parse_test_res
from scripts import demo

SHORT = ("SHOTS=1", "OPTIM.MAX_EPOCH", "1")


def bash(script: str, tmp_path: Path, *words: str) -> str:
    environment = {**os.environ, "DATA": str(tmp_path / "data"), "OUTPUT": str(tmp_path / "output")}
    command = ["bash", f"scripts/{script}", *words]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.usefixtures("own_python")
def test_base_to_novel_on_the_embedded_dataset(tmp_path, capsys):
    assert "epoch [1/1]" in bash("base2new_train.sh", tmp_path, "shapes", "1", *SHORT)
    assert "* total: 1,200" in bash("base2new_test.sh", tmp_path, "shapes", "1", *SHORT)
    folders = [f"output/base2new/{kind}/shapes/shots_1/MaPLe/shapes" for kind in ("train_base", "test_new")]
    for folder in folders:
        assert (tmp_path / folder / "seed1/log.txt").is_file()
        assert parse_test_res([str(tmp_path / folder)]) == 0
        assert "Missing: seed2 (no folder), seed3 (no folder)" in capsys.readouterr().out
    assert (tmp_path / folders[0] / "seed1/MultiModalPromptLearner/model.pth.tar-1").is_file()

    again = bash("base2new_train.sh", tmp_path, "shapes", "1", *SHORT)
    assert again.startswith("Results are available in")
    assert "epoch" not in again


@pytest.fixture
def own_python(monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)


def write_log(folder: Path, accuracy: float) -> None:
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(f"=> result\n* total: 10\n* accuracy: {accuracy:.2f}%\n")


def test_demo_prints_all_numbers_and_the_mean(tmp_path, monkeypatch, capsys):
    accuracy = {"ZeroshotCLIP": (40.0, 60.0), "MaPLe": (70.0, 80.0)}

    def run_step(script, method, seed, classes, output):
        kind = "train_base" if script == "base2new_train.sh" else f"test_{classes}"
        place = output / "base2new" / kind / "shapes/shots_16" / method.trainer / "shapes" / f"seed{seed}"
        write_log(place, accuracy[method.trainer][classes == "new"] + seed)

    monkeypatch.setattr(demo, "run_step", run_step)
    assert demo.main(["--seeds", "1", "3", "--output", str(tmp_path)]) == 0
    table = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "zero-shot CLIP seed 1 41.00 61.00 49.04" in table
    assert "zero-shot CLIP seed 3 43.00 63.00 51.11" in table
    assert "MaPLe, 16 shots mean 72.00 82.00 76.68" in table


def test_demo_says_where_a_result_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_step", lambda *arguments: None)
    assert demo.main(["--output", str(tmp_path)]) == 1
    assert "left no result" in capsys.readouterr().err


def test_validation_results_do_not_make_a_training_finished(tmp_path):
    """Killed in the middle, a run with TEST.FINAL_MODEL best_val has results of validation in its log."""
    program = f'source scripts/base2new.sh; trained "{tmp_path}" && echo finished || echo unfinished'

    def state() -> str:
        return subprocess.run(
            ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    assert state() == "unfinished"
    (tmp_path / "log.txt").write_text("epoch [1/5] ...\n=> result\n* accuracy: 40.00%\n")
    assert state() == "unfinished"
    (tmp_path / "log.txt-later").write_text("Finish training\n=> result\n* accuracy: 50.00%\n")
    assert state() == "finished"
