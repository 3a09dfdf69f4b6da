"""Windows and macOS, as far as another system can show them: without what they lack, on their code pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

# What the standard library lacks on Windows.
WINDOWS = """
import os, signal, sys
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
del signal.SIGKILL, os.sched_getaffinity
"""


@pytest.fixture
def test_of(tmp_path, small_dtd, golden_checkpoint):
    """Flags of `train.py` for a test of zero-shot CLIP on a few textures."""
    words = ["--root", small_dtd, "--trainer", "ZeroshotCLIP", "--output-dir", tmp_path / "run", "--seed", 1]
    words += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
    words += ["--config-file", ROOT / "configs/trainers/ZeroshotCLIP/vit_b16.yaml"]
    words += ["MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
    return [str(word) for word in [*words, "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False]]


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True)


def test_a_run_without_what_windows_lacks(test_of, tmp_path):
    done = python("-c", f"{WINDOWS}\nimport train\nsys.exit(train.command_line({test_of!r}))")
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["total"] == 12
    assert result["peak_memory_bytes"]["process"] is None


def test_a_sweep_without_what_windows_lacks(tmp_path, small_dtd, golden_checkpoint):
    words = ["zeroshot", "--datasets", "dtd", "--trainers", "ZeroshotCLIP", "--output", tmp_path / "out"]
    words += ["--root", small_dtd, "--options", "MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public")]
    argv = [str(word) for word in [*words, "INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0]]
    done = python("-c", f"{WINDOWS}\nfrom scripts.sweep import main\nsys.exit(main({argv!r}))")
    assert done.returncode == 0, done.stderr.decode()
    assert b"1 of 1 runs have a result" in done.stdout


def test_class_names_of_any_alphabet_are_printed(test_of, tmp_path, small_dtd):
    split = small_dtd / "dtd/split_zhou_DescribableTextures.json"
    split.write_text(split.read_text().replace('"bubbly"', json.dumps("bubbly ☃")))
    done = python("train.py", *test_of, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr.decode()
    assert rb"bubbly \u2603" in done.stdout
    assert "bubbly ☃" in (tmp_path / "run/log.txt").read_text(encoding="utf-8")


def test_a_sweep_and_its_report_are_printed(tmp_path):
    words = ["base2new", "--datasets", "shapes", "--trainers", "ZeroshotCLIP", "--output", f"{tmp_path}/☃"]
    done = python("-m", "scripts.sweep", *words, "--dry-run", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stdout.count(rb"\u2603")) == (0, 3), done.stderr.decode()

    folder = tmp_path / "runs/base2new/test_new/shapes/seed1"
    folder.mkdir(parents=True)
    content = {"format": 1, "dataset": "Shapes", "trainer": "ZeroshotCLIP", "config": "shapes", "shots": 0}
    content |= {"classes": "new", "seed": 1, "results": {"accuracy": 50.0}, "settings": {}}
    (folder / "result.json").write_text(json.dumps(content))
    done = python("-m", "scripts.report", str(tmp_path / "runs"), PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr.decode()
    assert b"50.00" in done.stdout


def test_scripts_call_no_program_that_macos_lacks():
    """Its realpath knows no -m, its sed and readlink other flags, its bash is 3.2."""
    for script in (ROOT / "scripts").rglob("*.sh"):
        assert not re.search(
            r"\b(realpath|readlink|mapfile|readarray|declare -A)\b|\$\{\w+,,", script.read_text()
        )


def test_a_line_is_seen_when_it_is_printed(test_of):
    """Also where the output is a pipe, which Python would fill first."""
    program = "from prompted_clip.console import prepare_stdout; prepare_stdout(); print('line'); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line\n"
        process.communicate(b"\n", timeout=300)


def test_paths_of_scripts_are_absolute(tmp_path):
    """Those that are relative are so to the folder where the script is called."""
    recorder = tmp_path / "python"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{tmp_path}/calls"\n')
    recorder.chmod(0o755)
    script = str(ROOT / "scripts/zeroshot.sh")
    environment = {**os.environ, "PYTHON": str(recorder), "DATA": "my data", "OUTPUT": "/out"}
    subprocess.run(["bash", script, "dtd"], cwd=tmp_path, env=environment, check=True)
    call = Path(tmp_path / "calls").read_text()
    assert f"--root {tmp_path}/my data --output /out" in call
