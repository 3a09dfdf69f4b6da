"""What the README and the documents show works as it stands there."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from dassl.engine import TRAINER_REGISTRY
from scripts.configuration import meaning_of
from train import build_parser, command_line

PAGES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
for page in ("README.md", "CONTRIBUTING.md"):
    PAGES[(ROOT / page).relative_to(ROOT)] = (ROOT / page).read_text(encoding="utf-8")
EXAMPLES = {"README.md": ("my_method", "MyMethod"), "docs/add_a_trainer.md": ("near_clip", "NearCLIP")}


@pytest.fixture(params=EXAMPLES)
def example(request, tmp_path):
    """A page's method: its file, and its name, which is taken out of the registry afterwards."""
    module, name = EXAMPLES[request.param]
    page = (ROOT / request.param).read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python\n(# {module}\.py\n.*?)```", page, flags=re.DOTALL)
    file = tmp_path / f"{module}.py"
    file.write_text(code)
    yield file, name
    TRAINER_REGISTRY._obj_map.pop(name)
    sys.modules.pop(module)


def test_the_method_of_one_file_trains(example, small_dtd, golden_checkpoint, tmp_path, capsys):
    file, name = example
    setting = "WORDS" if name == "MyMethod" else "CTX_INIT"
    command = [
        *("--plugin", file, "--trainer", name),
        *("--root", small_dtd, "--output-dir", tmp_path / "out"),
        *("--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"),
        *("--config-file", ROOT / "configs/trainers/vit_b16.yaml"),
        *("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0),
        *("INPUT.SIZE", "(32, 32)", "MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public")),
        *(f"TRAINER.{name.upper()}.{setting}", "this is a"),
    ]
    assert command_line([str(word) for word in command]) == 0
    assert "* accuracy" in capsys.readouterr().out
    (saved,) = (tmp_path / "out").rglob("model.pth.tar-1")
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert state["prompt_learner.ctx"].shape == (4, 64)


LINKS = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(((?!http)[^)]+)\)", text)]
FILES = {
    file for text in PAGES.values() for file in re.findall(r"(?:configs|scripts)/[\w/+]+\.(?:yaml|sh)", text)
}


@pytest.mark.parametrize(("page", "link"), sorted(set(LINKS)))
def test_links_lead_somewhere(page, link):
    path, _, heading = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
    assert not heading or heading in anchors


@pytest.mark.parametrize("path", sorted(FILES))
def test_files_that_are_named_exist(path):
    assert (ROOT / path).exists()


# What is gone is named in the changelog.
CURRENT = "\n".join(text for page, text in PAGES.items() if page.name != "changelog.md").replace("\\\n", " ")
MODULES = set(re.findall(r"python -m ((?:scripts|benchmarks|datasets)(?:\.\w+)*)", CURRENT))
COMMAND = r"^ *(?:\w+=\S+ )*(?:python|torchrun .*?) (train\.py|-m scripts\.\w+|-m datasets)\b([^\n#]*)"
FLAGS = {
    (command, flag)
    for command, words in re.findall(COMMAND, CURRENT, re.MULTILINE)
    for flag in re.findall(r"(?<= )--[a-z][\w-]*", words)
}
TARGETS = set(re.findall(r"(?:^ {4}|`)make ([\w-]+)", CURRENT, re.MULTILINE))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_that_are_called_exist(module):
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_targets_of_make_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("command", "flag"), sorted(FLAGS))
def test_flags_that_are_given_exist(command, flag):
    name = command.removeprefix("-m ")
    if name == "train.py":
        parsers = [build_parser()]
    else:
        module = importlib.import_module("datasets.__main__" if name == "datasets" else name)
        if not hasattr(module, "build_parser"):
            pytest.skip(f"{name} shows its parser to nobody")
        parsers = [module.build_parser()]
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    assert any(flag in parser._option_string_actions for parser in parsers)


KEYS = re.compile(r"\b(?:INPUT|DATASET|DATALOADER|MODEL|OPTIM|TRAIN|TEST|TRAINER)(?:\.[A-Z][A-Z0-9_]*)+\b")
NOT_OURS = ("TRAINER.MYMETHOD", "TRAINER.NEARCLIP", "TRAINER.COOP.W")  # of plugins, and of the reference


@pytest.mark.parametrize("key", sorted(set(KEYS.findall(CURRENT))))
def test_keys_that_are_named_exist(key):
    known = PAGES[(ROOT / "docs/configuration.md").relative_to(ROOT)]
    assert key in NOT_OURS or f"`{key}`" in known or f"`{key}." in known


def test_the_page_of_keys_is_what_the_code_says():
    # In a process of its own, where no other test has registered a trainer.
    check = [sys.executable, "-m", "scripts.configuration", "--check"]
    assert subprocess.run(check, cwd=ROOT).returncode == 0


def test_a_key_needs_a_meaning():
    with pytest.raises(ValueError, match=r"TRAINER\.MAPLE\.NEW has no comment"):
        meaning_of("TRAINER.MAPLE.NEW", [("TRAINER.MAPLE.", {"N_CTX": "learned tokens"})])
