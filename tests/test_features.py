"""Features that are computed once: the views, the file, what refuses them, and training on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, relative_error
from torch import Tensor
from torch.utils.data import DataLoader

from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from train import command_line
from trainers import features
from trainers.clip_trainer import CLIPPromptTrainer

STATES = 3 * 8 * (1 + 4 * 4) * 128  # numbers in those of three views of eight images: CLS and the patches


@pytest.fixture
def job(tmp_path, small_dtd, golden_checkpoint):
    """The command of a run of a method on four classes of DTD, two shots of each."""

    def words(name: str, output: str, *options: Any, more: tuple = ()) -> list[str]:
        found: list[Any] = ["--root", small_dtd, "--seed", 1, "--trainer", name, *more]
        found += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
        found += ["--config-file", ROOT / "configs/trainers/vit_b16.yaml", "--output-dir", tmp_path / output]
        found += ["MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
        found += ["DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2, "OPTIM.LR", 0.1, "USE_CUDA", False]
        found += ["OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, "DATALOADER.VIEWS", 3]
        found += [f"TRAINER.{name.upper()}.PREC", "fp32", *options]
        return [str(each) for each in found]

    return words


@pytest.fixture
def encoded_images(monkeypatch) -> list[int]:
    """How many images each call of CLIP's image encoder has."""
    calls: list[int] = []
    encode = CLIP.encode_image
    monkeypatch.setattr(
        CLIP, "encode_image", lambda self, x, *more: calls.append(len(x)) or encode(self, x, *more)
    )
    return calls


def learned(folder: Path, epoch: int = 3) -> dict[str, Tensor]:
    (file,) = folder.glob(f"*/model.pth.tar-{epoch}")
    state = torch.load(file, weights_only=True)["state_dict"]
    return {key: each for key, each in state.items() if isinstance(each, Tensor)}


# --- views


@pytest.fixture
def images(small_dtd) -> DatasetWrapper:
    """Six images, with transforms that draw from torch's generator and from Python's."""
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (32, 32)
    cfg.INPUT.TRANSFORMS = (
        "random_resized_crop",
        "random_flip",
        "colorjitter",
        "randomgrayscale",
        "normalize",
    )
    files = sorted((small_dtd / "dtd" / "images").rglob("*.jpg"))[:6]
    items = [Datum(impath=str(path), label=number % 2) for number, path in enumerate(files)]
    augment = build_transform(cfg)

    def transform(image: Any) -> Tensor:
        return augment(image) + random.random() + float(np.random.rand())

    return DatasetWrapper(cfg, items, transform, is_train=True)


def drawn(images: DatasetWrapper, batch_size: int = 1, workers: int = 0, **options: Any) -> Tensor:
    loader = DataLoader(features.Views(images, 3, **{"seed": 5, **options}), batch_size, num_workers=workers)
    return torch.cat([views for views, _ in loader])


def test_views_are_the_same_whatever_the_workers_and_the_batch_size(images):
    expected = drawn(images)
    assert expected.shape == (6, 3, 3, 32, 32)
    assert torch.equal(drawn(images, batch_size=4), expected)
    assert torch.equal(drawn(images, batch_size=2, workers=2), expected)
    assert torch.equal(features.Views(images, 3, seed=5)[4][0], expected[4])
    assert torch.equal(features.Views(images, 2, seed=5)[4][0], expected[4, :2])


def test_views_differ_from_each_other_and_between_seeds(images):
    views = drawn(images).flatten(0, 1)
    assert len({each.numpy().tobytes() for each in views}) == len(views) == 18
    assert not torch.equal(drawn(images, seed=6), drawn(images))


def test_drawing_views_leaves_the_run_s_random_numbers_alone(images):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    features.Views(images, 3, seed=5)[0]
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


# --- training


def test_features_of_a_view_without_augmentation_train_as_the_images_do(job, tmp_path):
    plain = ("INPUT.TRANSFORMS", "('normalize',)", "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    for name in ("CLAP", "CoOp", "KgCoOp"):
        assert command_line(job(name, f"{name}_views", *plain, "DATALOADER.VIEWS", 1)) == 0
        assert command_line(job(name, f"{name}_images", *plain, "DATALOADER.VIEWS", 0)) == 0
        ours, right = learned(tmp_path / f"{name}_views"), learned(tmp_path / f"{name}_images")
        assert all(relative_error(ours[key], right[key]) < 1e-5 for key in right), name


def test_each_image_is_encoded_once_a_view(job, encoded_images):
    assert command_line(job("ZSLinearProbe", "run", "TEST.NO_TEST", True)) == 0
    assert sum(encoded_images) == 3 * 8


@pytest.mark.parametrize("name", ["MMRL", "PromptSRC", "TCP"])
def test_each_view_is_decoded_once_whatever_learns(name, job, monkeypatch):
    decoded: list[int] = []
    item = DatasetWrapper.__getitem__
    monkeypatch.setattr(
        DatasetWrapper, "__getitem__", lambda self, index: decoded.append(index) or item(self, index)
    )
    assert command_line(job(name, "run", "TEST.NO_TEST", True)) == 0
    assert len(decoded) == 3 * 8


def test_val_images_that_choose_the_epoch_are_encoded_once(job, encoded_images, tmp_path):
    options = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 5)
    assert command_line(job("ZSLinearProbe", "run", *options)) == 0
    assert sum(encoded_images) == 3 * 8 + 8 + 12  # views, val, test
    assert list((tmp_path / "run").glob("*/model-best.pth.tar"))


@pytest.mark.parametrize("name", ["CLAP", "MMRL", "MaPLe"])
def test_an_interrupted_training_goes_on_to_the_same_tensors(name, job, tmp_path, monkeypatch, capsys):
    assert command_line(job(name, "whole")) == 0
    step = CLIPPromptTrainer.forward_backward

    def stop(self: Any, batch: Any) -> Any:
        if self.epoch == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CLIPPromptTrainer, "forward_backward", stop)
        assert command_line(job(name, "interrupted")) == 130
    assert command_line(job(name, "interrupted")) == 0
    assert "Previous epoch: 2" in capsys.readouterr().out
    expected, found = learned(tmp_path / "whole"), learned(tmp_path / "interrupted")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_number_of_views_belongs_to_a_run_s_identity_and_the_folder_does_not(job, tmp_path):
    assert command_line(job("ZSLinearProbe", "run", "DATALOADER.FEATURES_DIR", tmp_path / "kept")) == 0
    identity = json.loads((tmp_path / "run" / "result.json").read_text())["identity"]
    assert identity["settings"]["DATALOADER.VIEWS"] == 3
    assert not [key for key in identity["settings"] if "FEATURES_DIR" in key]


# --- what is refused


def test_more_than_the_budget_is_refused_before_the_first_step(job, capsys, tmp_path):
    needed = 4 * STATES / 2**30
    assert command_line(job("MMRL", "enough", "DATALOADER.VIEWS_GB", 1.01 * needed)) == 0
    assert command_line(job("MMRL", "run", "DATALOADER.VIEWS_GB", 0.99 * needed)) == 2
    printed = capsys.readouterr()
    wanted = "but the states of all training images, 3 views of each, take"
    assert wanted in printed.out + printed.err
    assert not list((tmp_path / "run").rglob("model*pth.tar*"))


def test_a_sampler_that_features_have_not_is_refused(job, capsys):
    assert command_line(job("CLAP", "run", "DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler")) == 2
    printed = capsys.readouterr()
    assert "DATALOADER.TRAIN_X.SAMPLER is RandomClassSampler" in printed.out + printed.err


def test_several_processes_are_refused(job, monkeypatch):
    monkeypatch.setattr("trainers.clip_trainer.get_world_size", lambda: 2)
    trainer = CLIPPromptTrainer.__new__(CLIPPromptTrainer)
    trainer.cfg = get_cfg_default()
    trainer.cfg.DATALOADER.VIEWS = 3
    trainer.train_loader_x = features.ViewLoader(DataLoader([1, 2]), trainer)
    with pytest.raises(UserError, match="VIEWS is 3, and 2 processes cannot share a training on fixed views"):
        trainer.train()


# --- the file


def run_again(
    job: Any, capsys: Any, *options: Any, output: str = "again", name: str = "ZSLinearProbe"
) -> str:
    """What a run prints that keeps its features in a folder; its output is a new one each time."""
    assert command_line(job(name, output, "TEST.NO_TEST", True, *options)) == 0
    return capsys.readouterr().out


@pytest.fixture
def kept(job, tmp_path, capsys) -> Path:
    """The file of features of a run."""
    printed = run_again(job, capsys, "DATALOADER.FEATURES_DIR", tmp_path / "kept", output="first")
    (file,) = (tmp_path / "kept").iterdir()
    assert f"The features are kept in {file}" in printed
    return file


def test_a_second_run_reads_the_features_and_learns_the_same(kept, job, tmp_path, capsys, encoded_images):
    encoded_images.clear()
    printed = run_again(job, capsys, "DATALOADER.FEATURES_DIR", kept.parent)
    assert f"3 of each, from {kept}" in printed
    assert encoded_images == []
    assert torch.equal(learned(tmp_path / "again")["prototypes"], learned(tmp_path / "first")["prototypes"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
def test_states_are_kept_for_methods_that_learn_in_the_same_block(
    precision, job, tmp_path, capsys, encoded_images
):
    """In the type that they are computed in; with the features that a method stays near to."""
    folder = ("DATALOADER.FEATURES_DIR", tmp_path / "kept")

    def run(name: str, output: str, *options: Any) -> str:
        options = (*folder, *options, f"TRAINER.{name.upper()}.PREC", precision)
        return run_again(job, capsys, *options, output=output, name=name)

    printed = run("MMRL", "first", "TRAINER.MMRL.REP_LAYERS", "(3, 4)")
    assert "Computing the states" in printed
    assert "Computing the features" in printed
    sizes = sorted(file.stat().st_size for file in (tmp_path / "kept").iterdir())
    assert 0 < sizes[-1] - (4 if precision == "fp32" else 2) * STATES < 2000  # the file's header
    encoded_images.clear()
    printed = run("MMRL", "again", "TRAINER.MMRL.REP_LAYERS", "(3, 4)")
    assert "Computing" not in printed
    expected, found = learned(tmp_path / "first"), learned(tmp_path / "again")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "Reading the states" in run("MMA", "other", "TRAINER.MMA.ADAPTER_START", 3)
    assert "Computing the states" in run("MMA", "earlier", "TRAINER.MMA.ADAPTER_START", 2)


@pytest.mark.parametrize(
    "options",
    [
        ("DATALOADER.VIEWS", 2),
        ("SEED", 2),
        ("DATASET.NUM_SHOTS", 1),
        ("INPUT.RRCROP_SCALE", "(0.5, 1.0)"),
        ("INPUT.TRANSFORMS", "('random_flip', 'normalize')"),
        ("TRAINER.ZSLINEARPROBE.PREC", "bf16"),
    ],
)
def test_features_of_other_settings_are_computed(options, kept, job, capsys):
    printed = run_again(job, capsys, "DATALOADER.FEATURES_DIR", kept.parent, *options)
    assert "Computing the features" in printed
    assert len(list(kept.parent.iterdir())) == 2


def test_features_of_another_clip_and_of_changed_images_are_computed(
    kept, job, capsys, golden_checkpoint, tmp_path, small_dtd
):
    from safetensors.torch import load_file, save_file

    weights = load_file(golden_checkpoint("tiny_public"))
    weights["logit_scale"] += 0.5
    save_file(weights, tmp_path / "other.safetensors")
    folder = ("DATALOADER.FEATURES_DIR", kept.parent)
    printed = run_again(job, capsys, *folder, "MODEL.BACKBONE.PATH", tmp_path / "other.safetensors")
    assert "Computing the features" in printed

    for path in sorted((small_dtd / "dtd" / "images").rglob("*.jpg")):  # each is another's now
        path.write_bytes(path.read_bytes() + b"\0")
    printed = run_again(job, capsys, *folder, output="changed")
    assert "Computing the features" in printed
    assert len(list(kept.parent.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "bit", "other"])
def test_a_file_that_does_not_fit_is_said_and_made_again(damage, kept, job, capsys):
    content = bytearray(kept.read_bytes())
    if damage == "cut":
        kept.write_bytes(content[:-100])
    elif damage == "bit":
        content[-5] ^= 1
        kept.write_bytes(content)
    else:
        printed = run_again(job, capsys, "DATALOADER.FEATURES_DIR", kept.parent, "SEED", 2, output="other")
        (other,) = set(kept.parent.iterdir()) - {kept}
        other.replace(kept)
    printed = run_again(job, capsys, "DATALOADER.FEATURES_DIR", kept.parent)
    assert f"{kept} does not fit" in printed
    assert "Computing the features" in printed
    assert "Reading" in run_again(job, capsys, "DATALOADER.FEATURES_DIR", kept.parent, output="third")


def test_a_folder_that_cannot_be_written_costs_a_warning(job, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    printed = run_again(job, capsys, "DATALOADER.FEATURES_DIR", tmp_path / "file")
    assert "Warning: the features could not be kept in" in printed
