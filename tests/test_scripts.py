"""The shell scripts, as a newcomer calls them; and those of the reference, under its own paths."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from parse_test_res import main as parse_test_res

SHORT = ("SHOTS=1", "OPTIM.MAX_EPOCH", "1")


def bash(script: str, tmp_path: Path, *words: str, **environment: str) -> str:
    own = {"DATA": str(tmp_path / "data"), "OUTPUT": str(tmp_path / "output"), "PYTHON": sys.executable}
    command = ["bash", f"scripts/{script}", *words]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **own, **environment}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_base_to_novel_on_the_embedded_dataset(tmp_path, few_shapes, capsys):
    few_shapes(tmp_path / "data")
    assert "epoch [1/1]" in bash("base2new_train.sh", tmp_path, "shapes", "1", *SHORT)
    assert "* total: 72" in bash("base2new_test.sh", tmp_path, "shapes", "1", *SHORT)
    folders = [f"output/base2new/{kind}/shapes/shots_1/MaPLe/shapes" for kind in ("train_base", "test_new")]
    for folder in folders:
        assert (tmp_path / folder / "seed1/log.txt").is_file()
        assert parse_test_res([str(tmp_path / folder)]) == 0
        assert "Missing: seed2 (no folder), seed3 (no folder)" in capsys.readouterr().out
    assert (tmp_path / folders[0] / "seed1/MultiModalPromptLearner/model.pth.tar-1").is_file()


def test_what_was_trained_on_one_dataset_is_tested_on_another(tmp_path, few_shapes):
    """By the scripts of the reference; both datasets are the embedded one, since no other is here."""
    few_shapes(tmp_path / "data")
    bash("maple/xd_train_maple.sh", tmp_path, "shapes", "2", *SHORT)
    weights = tmp_path / "output/shapes/MaPLe/shapes_1shots"
    words = ("shapes", "2", str(weights), "SOURCE=shapes", "SHOTS=1")
    assert "* total: 144" in bash("maple/reproduce_maple_xd.sh", tmp_path, *words)
    trained, tested = (
        json.loads((folder / "seed2/result.json").read_text())
        for folder in (weights, tmp_path / "output/evaluation/MaPLe/shapes_1shots/shapes")
    )
    assert trained["results"] == tested["results"]


@pytest.fixture
def recorded(tmp_path) -> Path:
    """An interpreter that writes down how it was called, a line a call."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{tmp_path}/calls"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("maple/base2new_train_maple.sh", "base2new --trainers MaPLe --seeds 2 --stage train --datasets dtd"),
        ("maple/base2new_test_maple.sh", "base2new --trainers MaPLe --seeds 2 --stage test --datasets dtd"),
        ("maple/xd_train_maple.sh", "cross_dataset --trainers MaPLe --seeds 2 --stage train --source dtd"),
        ("maple/xd_test_maple.sh", "cross_dataset --trainers MaPLe --seeds 2 --stage test --datasets dtd"),
        ("vpt/base2new_train_vpt.sh", "base2new --trainers VPT --seeds 2 --stage train --datasets dtd"),
        ("vpt/xd_test_vpt.sh", "cross_dataset --trainers VPT --seeds 2 --stage test --datasets dtd"),
        ("independent-vlp/base2new_test_ivlp.sh", "base2new --trainers IVLP --seeds 2 --stage test"),
        ("language-prompting/xd_train_lp.sh", "cross_dataset --trainers deep-language --seeds 2"),
        ("cocoop/base2new_train.sh", "base2new --trainers CoCoOp --seeds 2 --stage train --datasets dtd"),
        ("cocoop/xd_test.sh", "cross_dataset --trainers CoCoOp --seeds 2 --stage test --datasets dtd"),
        ("base2new_train.sh", "base2new --trainers MaPLe --seeds 2 --stage train --datasets dtd"),
        ("few_shot.sh", "few_shot --trainers MaPLe --seeds 2 --stage all --datasets dtd"),
        ("zeroshot.sh", "zeroshot --trainers ZeroshotCLIP --seeds 1 --stage all --datasets dtd"),
        ("zsclip/zeroshot.sh", "zeroshot --trainers ZeroshotCLIP:2 --seeds 1 --stage all --datasets dtd"),
    ],
)
def test_each_script_runs_a_part_of_a_sweep(tmp_path, recorded, script, words):
    bash(script, tmp_path, "dtd", "2", PYTHON=str(recorded))
    assert f"-m scripts.sweep {words}" in (tmp_path / "calls").read_text()


def test_the_variants_of_imagenet_are_domain_generalisation(tmp_path, recorded):
    bash("maple/xd_test_maple.sh", tmp_path, "imagenet_sketch", "1", PYTHON=str(recorded))
    assert "scripts.sweep domain_generalisation" in (tmp_path / "calls").read_text()


def test_names_and_options_behind_the_seed(tmp_path, recorded):
    words = ["TRAINER=CoOp", "CFG=rn50", "SHOTS=4", "LOADEP=3", "SUB=base", "A.B", "-1", "C.D", "x y"]
    bash("base2new_test.sh", tmp_path, "dtd", "7", *words, PYTHON=str(recorded), OUTPUT="relative")
    call = (tmp_path / "calls").read_text()
    assert "--trainers CoOp:rn50 --seeds 7" in call
    assert "--shots 4 --classes base --load-epoch 3" in call
    assert f"--root {tmp_path}/data --output {ROOT}/relative --show --options A.B -1 C.D x y" in call


def test_coop_trains_three_seeds_in_a_folder_of_its_settings(tmp_path, recorded):
    bash("coop/main.sh", tmp_path, "dtd", "rn50_ep50", "end", "16", "1", "False", PYTHON=str(recorded))
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[call.index("--seeds") + 1] for call in calls] == ["1", "2", "3"]
    for call in calls:
        assert call[call.index("--output") + 1] == f"{tmp_path}/output/coop/nctx16_cscFalse_ctpend"
        assert call[call.index("--options") + 1 :][:2] == ["TRAINER.COOP.N_CTX", "16"]


def test_every_script_is_sound(recorded):
    for script in sorted((ROOT / "scripts").rglob("*.sh")):
        assert os.access(script, os.X_OK) or script.name == "run_one.sh"
        subprocess.run(["bash", "-n", str(script)], check=True)
        lines = script.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash"
        assert lines[1].startswith("# ")
