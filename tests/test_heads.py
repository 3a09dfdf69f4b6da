"""What the recorded numbers do not show of the heads on frozen features: runs, choices, ResNets, counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT, tiny_clip
from safetensors.torch import save_file

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from train import command_line, extend_cfg
from trainers import LPPlusPlus, ZeroshotCLIP, load

HEADS = ["CLAP", "CLIPAdapter", "LPPlusPlus", "TaskRes", "TipAdapter", "ZSLinearProbe"]
NAMES = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture
def job(tmp_path, small_dtd, golden_checkpoint):
    """The command of a run with a file of configs/trainers, on four classes of DTD, two shots of each."""

    def words(config: str, output: str, *options: Any, more: tuple = ()) -> list[str]:
        name = config.partition("/")[0]
        found: list[Any] = ["--root", small_dtd, "--seed", 1, "--trainer", name, *more]
        found += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
        found += ["--config-file", ROOT / f"configs/trainers/{config}.yaml"]
        found += ["--output-dir", tmp_path / output, "MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public")]
        found += ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2]
        return [str(each) for each in [*found, "USE_CUDA", False, *options]]

    return words


def accuracy(folder: Path) -> float:
    return json.loads((folder / "result.json").read_text())["results"]["accuracy"]


# --- Tip-Adapter


@pytest.mark.parametrize("config", ["TipAdapter/vit_b16_training_free", "TipAdapter/vit_b16_search"])
def test_a_cache_is_saved_and_tested_again_also_with_other_shots(config, job, tmp_path, golden_checkpoint):
    options = ("TEST.SAVE_PREDICTIONS", True)
    assert command_line(job(config, "run", *options)) == 0
    again = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert command_line(job(config, "again", *options, "DATASET.NUM_SHOTS", 1, more=again)) == 0
    tables = [(tmp_path / name / "predictions_test.csv").read_text() for name in ("run", "again")]
    assert tables[0] == tables[1]

    model = load(tmp_path / "run", device="cpu")
    assert model.prompt_learner.weight.shape == (8, 32)
    model.save_pretrained(tmp_path / "saved")
    images = torch.randn(3, 3, 32, 32)
    again = load(tmp_path / "saved", weights=golden_checkpoint("tiny_public"), device="cpu")
    assert torch.equal(again(images), model(images))


def test_a_training_free_run_counts_its_shots_and_is_not_repeated(job, tmp_path, capsys):
    assert command_line(job("TipAdapter/vit_b16_training_free", "run")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["identity"]["settings"]["DATASET.NUM_SHOTS"] == 2
    assert result["identity"]["parts"]["trained_images"]
    assert list((tmp_path / "run" / "tip_adapter").glob("model.pth.tar-1"))
    assert "epoch [1/1]" not in capsys.readouterr().out


def test_the_search_s_choice_is_kept_and_its_images_belong_to_the_identity(job, tmp_path, capsys):
    small = ("TRAINER.TIPADAPTER.SEARCH_STEP", "(5, 4)", "TRAINER.TIPADAPTER.SEARCH_SCALE", "(9.0, 30.0)")
    assert command_line(job("TipAdapter/vit_b16_search", "run", *small, "OPTIM.MAX_EPOCH", 2)) == 0
    said = re.search(r"Chosen on the val images: alpha ([\d.]+), beta ([\d.]+)", capsys.readouterr().out)
    assert said is not None
    learner = load(tmp_path / "run", device="cpu").prompt_learner
    assert [float(learner.alpha), float(learner.beta)] == pytest.approx(
        [float(each) for each in said.groups()]
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["identity"]["parts"]["searched_images"]
    assert result["selected_on"] == "val"  # tables mark it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SEARCH", "test"), "SEARCH is 'test'; allowed are none, val"),
        (("SEARCH_STEP", "(200,)"), "SEARCH_STEP is (200,); allowed are two numbers above 0"),
        (("ALPHA", -1.0), "ALPHA is -1.0; allowed is 0 or more"),
        (("SEARCH", "val", "TEST.FINAL_MODEL", "best_val"), "TEST.FINAL_MODEL best_val does not go with it"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options, message, job, capsys):
    key, *more = options
    assert command_line(job("TipAdapter/vit_b16", "run", f"TRAINER.TIPADAPTER.{key}", *more)) == 2
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


# --- LP++


def test_the_gradient_of_alpha_is_of_all_epochs_or_of_its_own(job, tmp_path, monkeypatch):
    seen: list[tuple[Any, ...]] = []
    step = LPPlusPlus.optimizers_step

    def noted(self: Any, names: Any) -> None:
        alpha = self.model.prompt_learner.alpha
        own = alpha.grad.clone()
        step(self, names)
        seen.append((own, None if alpha.grad is None else alpha.grad.clone()))

    monkeypatch.setattr(LPPlusPlus, "optimizers_step", noted)
    options = ("OPTIM.MAX_EPOCH", 6, "TRAINER.LPPLUSPLUS.ALPHA_EVERY", 3)
    assert command_line(job("LPPlusPlus/vit_b16", "published", *options)) == 0
    assert [taken is None for _, taken in seen] == [True, True, False] * 2
    for turn in (2, 5):
        torch.testing.assert_close(seen[turn][1], torch.stack([own for own, _ in seen[: turn + 1]]).sum(0))
    seen.clear()
    assert (
        command_line(job("LPPlusPlus/vit_b16", "true", *options, "TRAINER.LPPLUSPLUS.ALPHA_GRADIENT", "true"))
        == 0
    )
    assert torch.equal(seen[2][1], seen[2][0])
    assert torch.equal(seen[5][1], seen[5][0])


def test_the_sum_of_alpha_s_gradients_survives_an_interruption(job, tmp_path, monkeypatch):
    options = ("OPTIM.MAX_EPOCH", 5, "TRAINER.LPPLUSPLUS.ALPHA_EVERY", 5, "TRAIN.CHECKPOINT_FREQ", 1)
    assert command_line(job("LPPlusPlus/vit_b16", "whole", *options)) == 0
    step = LPPlusPlus.forward_backward

    def stop(self: Any, batch: Any) -> Any:
        if self.epoch == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LPPlusPlus, "forward_backward", stop)
        assert command_line(job("LPPlusPlus/vit_b16", "interrupted", *options)) == 130
    assert command_line(job("LPPlusPlus/vit_b16", "interrupted", *options)) == 0
    whole, interrupted = (load(tmp_path / name, device="cpu") for name in ("whole", "interrupted"))
    assert torch.equal(interrupted.prompt_learner.alpha, whole.prompt_learner.alpha)
    assert torch.equal(interrupted.prompt_learner.weight, whole.prompt_learner.weight)


def test_of_equal_epochs_the_latest_is_tested(job, tmp_path):
    """With learning rates of 0, all epochs are equal."""
    options: tuple[Any, ...] = ("OPTIM.LR", 0.0, "OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val")
    for name, epoch in (("LPPlusPlus/vit_b16_best_val", 3), ("ZSLinearProbe/vit_b16", 1)):
        run = name.partition("/")[0]
        assert (
            command_line(
                job(name, run, *options, "TEST.FINAL_MODEL", "best_val", "OPTIM.WARMUP_CONS_LR", 0.0)
            )
            == 0
        )
        (file,) = (tmp_path / run).glob("*/model-best.pth.tar")
        assert torch.load(file, weights_only=True)["epoch"] == epoch


def test_another_optimizer_is_refused(job, capsys):
    assert command_line(job("LPPlusPlus/vit_b16", "run", "OPTIM.NAME", "adam")) == 2
    printed = capsys.readouterr()
    assert "OPTIM.NAME is adam; allowed is sgd" in printed.out + printed.err


# --- all heads


@pytest.mark.parametrize("name", HEADS)
def test_an_untrained_head_is_zero_shot_clip(name, golden_checkpoint):
    """But for what starts from noise: LP++'s biases, and CLIP-Adapter's MLP."""
    settings = {"DATASET.NAME": "DescribableTextures"}
    if name == "CLIPAdapter":
        settings["TRAINER.CLIPADAPTER.RATIO"] = 0.0
    options = {"weights": golden_checkpoint("tiny_public"), "device": "cpu"}
    model = TRAINER_REGISTRY.get(name).from_clip("ViT-B/16", NAMES, settings=settings, **options)
    if name == "LPPlusPlus":
        model.prompt_learner.bias.zero_()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = ZeroshotCLIP.from_clip("ViT-B/16", NAMES, **options)(images)
    if name == "TipAdapter":  # whose scale is 100, whatever CLIP's is
        expected = expected * 100 / model.clip_model.logit_scale.exp()
        torch.testing.assert_close(model(images).softmax(-1), expected.softmax(-1))
    else:
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("name", HEADS)
def test_heads_run_on_resnets(name, tmp_path):
    clip_model = tiny_clip(1, (1, 1, 1, 1), torch.float32, vision_width=8, vision_patch_size=None)
    save_file(
        {key: each.contiguous() for key, each in clip_model.state_dict().items()}, tmp_path / "rn.safetensors"
    )
    weights = tmp_path / "rn.safetensors"
    model = TRAINER_REGISTRY.get(name).from_clip("RN50", NAMES, weights=weights, device="cpu")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


COUNTS = {  # at ViT-B/16, of the pages of the methods
    ("CLAP", "vit_b16"): 512 * 5,
    ("ZSLinearProbe", "vit_b16"): 512 * 5,
    ("TaskRes", "vit_b16"): 512 * 5,
    ("CLIPAdapter", "vit_b16"): 131_072,
    ("LPPlusPlus", "vit_b16"): 512 * 5 + 2 * 5,
    ("TipAdapter", "vit_b16"): 512 * 5 * 16,
    ("TipAdapter", "vit_b16_training_free"): 0,
}


@pytest.mark.parametrize(("method", "learned"), COUNTS.items())
def test_learned_parameters_at_the_width_of_vit_b16(method, learned):
    name, config = method
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/trainers" / name / f"{config}.yaml"))
    cfg.merge_from_list(["TRAINER.NAME", name, "DATASET.NUM_SHOTS", 16])
    trainer_class = TRAINER_REGISTRY.get(name)
    run = trainer_class.__new__(trainer_class)
    run.cfg, run.device = cfg, torch.device("cpu")
    run.dm = SimpleNamespace(dataset=SimpleNamespace(template=None))
    run.check_cfg(cfg)
    clip_model = CLIP(512, 32, 1, 64, 16, 77, 49408, 64, 1, 1).requires_grad_(False)
    learner = run.build_learner(clip_model, NAMES)
    assert sum(tensor.numel() for tensor in learner.parameters() if tensor.requires_grad) == learned


def test_underscores_of_class_names_stay_where_they_are_published(golden_checkpoint):
    weights, names = golden_checkpoint("tiny_public"), ["american_bulldog", "cat"]
    for name in ("TaskRes", "CLAP", "ZSLinearProbe"):
        tokens = []
        for keep in (True, False):
            settings = {f"TRAINER.{name.upper()}.KEEP_UNDERSCORES": keep}
            options = {"weights": weights, "device": "cpu", "settings": settings}
            learner = TRAINER_REGISTRY.get(name).from_clip("ViT-B/16", names, **options).prompt_learner
            tokens.append(learner.sentences.tokens)
        assert not torch.equal(tokens[0][0], tokens[1][0])
        assert torch.equal(tokens[0][1], tokens[1][1])
