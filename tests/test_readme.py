"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from helpers import ROOT

from dassl.engine import TRAINER_REGISTRY
from train import command_line

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path):
    """The README's method, as a file; taken out of the registry afterwards."""
    (code,) = re.findall(r"```python\n(# my_method\.py\n.*?)```", README, flags=re.DOTALL)
    file = tmp_path / "my_method.py"
    file.write_text(code)
    yield file
    TRAINER_REGISTRY._obj_map.pop("MyMethod")
    sys.modules.pop("my_method")


def test_the_method_of_one_file_trains(example, small_dtd, golden_checkpoint, tmp_path, capsys):
    command = [
        *("--plugin", example, "--trainer", "MyMethod"),
        *("--root", small_dtd, "--output-dir", tmp_path / "out"),
        *("--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"),
        *("--config-file", ROOT / "configs/trainers/vit_b16.yaml"),
        *("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0),
        *("INPUT.SIZE", "(32, 32)", "MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public")),
        *("TRAINER.MYMETHOD.WORDS", "this is a"),
    ]
    assert command_line([str(word) for word in command]) == 0
    assert "* accuracy" in capsys.readouterr().out
    (file,) = (tmp_path / "out").rglob("model.pth.tar-1")
    state = torch.load(file, weights_only=True)["state_dict"]
    assert state["prompt_learner.ctx"].shape == (4, 64)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|scripts)/[\w/]+\.(?:yaml|sh)", README))))
def test_files_that_are_named_exist(path):
    assert (ROOT / path).exists()
