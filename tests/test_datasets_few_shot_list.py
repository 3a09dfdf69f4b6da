"""The images that a run drew: written beside its results, and used by another run."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from dassl.data.few_shot_list import read_sample
from dassl.data.splits import Split
from prompted_clip.errors import UserError
from train import command_line


@pytest.fixture
def job(tmp_path, small_dtd, golden_checkpoint):
    def flags(output: str, *options: object, seed: int = 1, more: tuple = ()) -> list[str]:
        words: list[object] = ["--root", small_dtd, "--seed", seed, "--trainer", "CoOp", *more]
        words += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
        words += ["--config-file", ROOT / "configs/trainers/vit_b16.yaml", "--output-dir", tmp_path / output]
        words += ["MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
        words += ["DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1]
        words += ["USE_CUDA", False, "TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.N_CTX", 2]
        return [str(word) for word in (*words, "DATASET.NUM_SHOTS", 2, *options)]

    return flags


def sample_of(folder: Path) -> dict:
    return json.loads((folder / "few_shot.json").read_text())


def hash_of(sample: dict) -> str:
    lines = ["train", *sample["train"], "val", *sample["val"]]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert command_line(argv) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    return message


def test_a_run_tells_what_it_drew(job, tmp_path, small_dtd, capsys):
    assert command_line(job("run", "DATASET.SUBSAMPLE_CLASSES", "base")) == 0
    sample = sample_of(tmp_path / "run")
    assert (sample["dataset"], sample["shots"], sample["seed"]) == ("DescribableTextures", 2, 1)
    assert [len(sample[part]) for part in ("train", "val")] == [8, 8], "of all four classes"
    assert all((small_dtd / "dtd/images" / path).is_file() for path in sample["train"] + sample["val"])
    assert sample["sha256"] == hash_of(sample)
    assert re.search(rf"^Sample .*sha256 {sample['sha256']}$", capsys.readouterr().out, re.MULTILINE)
    (file,) = (tmp_path / "run").rglob("model.pth.tar-2")
    identity = torch.load(file, weights_only=True)["state_dict"]["_extra_state"]
    assert identity["data"]["sample_sha256"] == sample["sha256"]


def test_a_run_trains_on_the_list_of_another(job, tmp_path, capsys):
    assert command_line(job("first")) == 0
    listed = tmp_path / "first/few_shot.json"
    assert command_line(job("second", "DATASET.FEW_SHOT_LIST", listed, seed=2)) == 0
    assert command_line(job("other", seed=2)) == 0
    first, second, other = (sample_of(tmp_path / name) for name in ("first", "second", "other"))
    assert second == first
    assert other["train"] != first["train"]
    capsys.readouterr()
    message = refused(
        [*job("first", seed=1), "DATASET.FEW_SHOT_LIST", str(tmp_path / "other/few_shot.json")], capsys
    )
    assert "DATASET.FEW_SHOT_LIST is '' there" in message
    assert "the images trained on differ" in message
    assert sample_of(tmp_path / "first") == first, "a refused run leaves it as it was"


def test_all_images_are_counted_not_listed(job, tmp_path):
    assert command_line(job("run", "DATASET.NUM_SHOTS", -1)) == 0
    sample = sample_of(tmp_path / "run")
    assert (sample["shots"], sample["train"], sample["val"]) == (-1, 20, 8)
    assert len(sample["sha256"]) == 64


def test_a_test_leaves_the_training_s_list(job, tmp_path):
    assert command_line(job("run")) == 0
    before = (tmp_path / "run/few_shot.json").read_bytes()
    assert command_line(job("run", seed=2, more=("--eval-only", "--model-dir", str(tmp_path / "run")))) == 0
    assert (tmp_path / "run/few_shot.json").read_bytes() == before


def test_what_is_drawn_hangs_on_nothing_else(job, tmp_path, small_dtd):
    """Not on random numbers used before, nor on whether the split had to be made."""
    (small_dtd / "dtd/split_zhou_DescribableTextures.json").unlink()
    assert command_line(job("made")) == 0
    random.seed(99)
    shutil.rmtree(small_dtd / "dtd/split_fewshot")
    assert command_line(job("read")) == 0
    assert command_line(job("cached")) == 0
    assert sample_of(tmp_path / "made") == sample_of(tmp_path / "read") == sample_of(tmp_path / "cached")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["train"].reverse(), r"was changed: its sha256 is \w+, not \w+\.$"),
        (
            lambda s: s["val"].append("gone/1.jpg"),
            r"1 of 9 images are not in val of this split.* 'gone/1\.jpg'",
        ),
        (lambda s: s.update(dataset="EuroSAT"), r"is of 'EuroSAT'; DATASET\.NAME is DescribableTextures\.$"),
        (
            lambda s: s.update(train=7),
            r"has no train \(list\); expected is the few_shot\.json of a few-shot run",
        ),
        (lambda s: s.pop("sha256"), r"has no sha256 \(str\)"),
        (lambda s: s["train"].append(["a", 1]), r"train holds \['a', 1\]; expected are paths of images\.$"),
        (
            lambda s: s.update(train=s["train"][:4]) or s.update(sha256=hash_of(s)),
            r"has no image of 2 classes, the first: 'braided'\.$",
        ),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(change, message, job, tmp_path, capsys):
    assert command_line(job("run")) == 0
    sample = sample_of(tmp_path / "run")
    change(sample)
    (tmp_path / "list.json").write_text(json.dumps(sample))
    said = refused(job("next", "DATASET.FEW_SHOT_LIST", tmp_path / "list.json"), capsys)
    assert said.startswith(f"train.py: DATASET.FEW_SHOT_LIST {tmp_path / 'list.json'}")
    assert re.search(message, said)
    assert not (tmp_path / "next").exists()


def test_a_list_that_is_not_there_is_refused(job, tmp_path, capsys):
    said = refused(job("run", "DATASET.FEW_SHOT_LIST", tmp_path / "no.json"), capsys)
    assert "there is no such file. Give the few_shot.json of a run." in said


def split_of(folder: Path):
    rows = [(f"{label}/{k}.jpg", label, f"class {label}") for label in range(2) for k in range(6)]
    return Split(rows, [], rows)


def listed(folder: Path, train: list[str], **changes) -> Path:
    content = {"dataset": "d", "shots": 9, "seed": 1, "train": train, "val": []}
    content["sha256"] = hash_of(content)
    path = folder / "list.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_shots_are_those_of_the_list(tmp_path):
    path = listed(tmp_path, ["0/0.jpg", "0/1.jpg", "0/2.jpg", "1/5.jpg"])
    assert read_sample(str(path), "d", split_of(tmp_path)).shots == 3


@pytest.mark.parametrize("twice", ["0/0.jpg", "1/5.jpg"])
def test_an_image_twice_in_a_list_is_refused(tmp_path, twice):
    path = listed(tmp_path, ["0/0.jpg", "1/5.jpg", twice])
    with pytest.raises(UserError, match=f"train lists '{twice}' more than once"):
        read_sample(str(path), "d", split_of(tmp_path))
