"""CLIP-LoRA and 2SFS beside the recorded numbers: files of others, and classes that were not trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainers import CLIPLoRA, TwoStageFS, load
from trainers.cliplora import chosen_blocks

BACKBONE = "ViT-Shapes/8"
NAMES = ["red circle", "blue square", "green star"]
NEW = ["yellow cross", "red square"]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def learned(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.prompt_learner.named_parameters())


def test_the_authors_files_are_read(tmp_path):
    """They count the blocks that are adapted, those of the text encoder first."""
    model = CLIPLoRA.from_clip(BACKBONE, NAMES, settings={"TRAINER.CLIPLORA.POSITION": "half-up"})
    names = [*chosen_blocks("half-up", 4), *chosen_blocks("half-up", 6)]
    assert names == [2, 3, 3, 4, 5]
    weights, right = {}, {}
    for number, block in enumerate(names):
        tower = "" if number < 2 else "visual."
        layer = weights[f"layer_{number}"] = {}
        for matrix in ("q_proj", "k_proj", "v_proj"):
            layer[matrix] = {}
            for key in ("w_lora_A", "w_lora_B"):
                name = f"{tower}transformer.resblocks.{block}.attn.{matrix}.{key}"
                right[name] = layer[matrix][key] = torch.randn(learned(model)[name].shape)
    metadata = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "half-up"}
    torch.save({"weights": weights, "metadata": metadata}, tmp_path / "lora_weights.pt")
    settings = {"TRAINER.CLIPLORA.POSITION": "half-up"}
    read = CLIPLoRA.from_clip(BACKBONE, NAMES, settings=settings, checkpoint=tmp_path / "lora_weights.pt")
    assert all(torch.equal(tensor, right[name]) for name, tensor in learned(read).items())
    with pytest.raises(ValueError, match=r"adapters of 5 blocks, here are 10\. .*'half-up'"):
        CLIPLoRA.from_clip(BACKBONE, NAMES, checkpoint=tmp_path / "lora_weights.pt")


@pytest.mark.parametrize(
    ("position", "blocks"),
    [
        ("all", range(12)),
        ("bottom", range(4)),
        ("mid", range(4, 8)),
        ("up", range(8, 12)),
        ("half-up", range(6, 12)),
        ("half-bottom", range(6)),
        ("top3", range(9, 12)),
    ],
)
def test_positions_are_those_of_twelve_blocks(position, blocks):
    assert chosen_blocks(position, 12) == list(blocks)


def test_halves_of_more_blocks():
    assert chosen_blocks("half-up", 24) == list(range(12, 24))


def test_low_rank_adapters_are_saved_for_peft_too(tmp_path):
    model = CLIPLoRA.from_clip(BACKBONE, NAMES, settings={"TRAINER.CLIPLORA.PARAMS": "qo"})
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["use_rslora"]) == (
        "LORA",
        2,
        1,
        True,
    )
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    module = "vision_model.encoder.layers.5.self_attn.out_proj"
    assert module in config["target_modules"]
    ours = learned(model)["visual.transformer.resblocks.5.attn.proj.w_lora_A"]
    assert torch.equal(tensors[f"base_model.model.{module}.lora_A.weight"], ours)
    assert len(tensors) == len(learned(model))
    # A model that has none takes those of the one before away.
    TwoStageFS.from_clip(BACKBONE, NAMES).save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("adapter_*"))


@pytest.mark.parametrize(
    ("trainer", "key", "value", "allowed"),
    [
        (CLIPLoRA, "R", 0, "allowed is 1 or more"),
        (CLIPLoRA, "DROPOUT", 1.0, "allowed is 0 to below 1"),
        (CLIPLoRA, "PARAMS", "qx", "allowed are letters of qkvo"),
        (CLIPLoRA, "PARAMS", "", "allowed are letters of qkvo"),
        (CLIPLoRA, "POSITION", "top", "allowed are all, bottom"),
        (TwoStageFS, "PEFT", "norms", "allowed are ln, bitfit, lora"),
        (TwoStageFS, "FRACTION", 1.5, "allowed is 0 to 1"),
        (TwoStageFS, "VISION_START", -1, "allowed is 0 or more"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(trainer, key, value, allowed):
    name = f"TRAINER.{trainer.__name__.upper()}.{key}"
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}") + f".*{allowed}"):
        trainer.from_clip(BACKBONE, NAMES, settings={name: value})


# --- two stages: a row of the classifier, or a text feature


@pytest.fixture(params=["ln", "lora"])
def two_stages(request):
    """A model in its second stage, whose tensors are moved from where they started."""
    model = TwoStageFS.from_clip(BACKBONE, NAMES, settings={"TRAINER.TWOSTAGEFS.PEFT": request.param})
    learner = model.prompt_learner
    for tensor in learned(model).values():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    learner.start_classifier(model.clip_model)
    text = learner.classifier.clone()
    learner.classifier.data += 0.1 * torch.randn(text.shape, generator=torch.Generator().manual_seed(2))
    return model, text


def test_a_class_has_its_row_and_another_its_tuned_text_feature(two_stages):
    model, _ = two_stages
    rows = nn.functional.normalize(model.prompt_learner.classifier, dim=-1)
    assert torch.equal(model.encode_text(), rows)
    mixed = model.with_classnames([NEW[0], NAMES[1], NEW[1]])
    features = mixed.encode_text()
    assert torch.allclose(features[1], rows[1])
    # The others are the encoder's, tuned: those that a first stage alone gives.
    model.prompt_learner.classifier.data.zero_()
    model.prompt_learner.stage = 0
    first_stage = model.with_classnames(NEW)
    assert first_stage.prompt_learner.stage == 0
    assert torch.allclose(features[[0, 2]], first_stage.encode_text(), atol=1e-6)


def test_one_rule_for_all_has_text_features(two_stages):
    model, text = two_stages
    model.prompt_learner.rule = "text"
    assert torch.allclose(model.encode_text(), text, atol=1e-6)


def test_the_second_stage_is_saved_and_loaded(two_stages, tmp_path):
    model, _ = two_stages
    before = model.probabilities(IMAGES)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.prompt_learner.stage == 1
    assert torch.equal(again.probabilities(IMAGES), before)
    other = model.with_classnames(NEW).probabilities(IMAGES)
    assert torch.allclose(again.with_classnames(NEW).probabilities(IMAGES), other, atol=1e-6)
    has_peft = (Path(tmp_path) / "saved" / "adapter_config.json").exists()
    assert has_peft == hasattr(model.prompt_learner, "rank")
