"""What all methods share: precision, the text encoded once, the published settings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, relative_error
from tolerances import half_precision_error
from torch import nn

import prompted_clip
from dassl.config import get_cfg_default
from train import extend_cfg

CLASSES = ["abyssinian", "bengal", "german shorthaired"]
CONFIG = "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"


@pytest.fixture
def maple(bare_trainer, golden_checkpoint):
    def build(precision: str = "fp32"):
        options = ["TRAINER.MAPLE.PREC", precision, "TRAINER.MAPLE.PROMPT_DEPTH", 3, "INPUT.SIZE", (32, 32)]
        torch.manual_seed(0)
        return bare_trainer("MaPLe", golden_checkpoint("tiny_public"), CLASSES, options, CONFIG)

    return build


@pytest.mark.parametrize(
    ("precision", "stored", "multiplied"),
    [
        ("fp32", torch.float32, torch.float32),
        ("fp16", torch.float16, torch.float16),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("amp", torch.float32, torch.bfloat16),  # autocast's type on a CPU
    ],
)
def test_each_precision_means_what_it_says(precision, stored, multiplied, maple):
    run = maple(precision)
    seen = {}
    for tower in (run.model.clip_model.visual.transformer, run.model.clip_model.transformer):
        layer = tower.resblocks[1].mlp.c_fc
        layer.register_forward_hook(lambda module, inputs, output: seen.update({module: output.dtype}))
    logits = run.model_inference(torch.randn(2, 3, 32, 32))
    block = run.model.clip_model.visual.transformer.resblocks[0]
    assert block.mlp.c_fc.weight.dtype == stored
    assert block.ln_1.weight.dtype == torch.float32
    assert set(seen.values()) == {multiplied}
    assert logits.dtype == torch.float32
    assert {tensor.dtype for tensor in run.model.prompt_learner.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
def test_half_precision_is_near_the_full_one(precision, maple):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    full, half = (maple(name) for name in ("fp32", precision))
    with torch.no_grad():
        error = relative_error(half.model_inference(images), full.model_inference(images))
    assert 0 < error < half_precision_error(precision, full.model.clip_model)


def test_a_test_encodes_the_text_once(maple, monkeypatch):
    run = maple()
    batches = [{"img": torch.randn(2, 3, 32, 32), "label": torch.tensor([0, 2])} for _ in range(3)]
    run.test_loader = batches
    run.dm = SimpleNamespace(dataset=run.dm.dataset)
    calls = []
    encode = prompted_clip.SharedPrefixText.encode
    monkeypatch.setattr(
        prompted_clip.SharedPrefixText, "encode", lambda *words: calls.append(1) or encode(*words)
    )
    run.test()
    assert len(calls) == 1
    run.model_inference(batches[0]["img"])
    assert len(calls) == 2, "outside of a test the text is what the learner holds now"


def test_what_is_learned_gets_gradients_and_the_rest_none(maple):
    run = maple()
    loss = sum(run.losses(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).values())
    loss.backward()
    for name, tensor in run.model.named_parameters():
        assert (tensor.grad is not None) == name.startswith("prompt_learner."), name
    learned = {id(tensor) for tensor in run.model.prompt_learner.parameters()}
    assert {id(tensor) for group in run.optim.param_groups for tensor in group["params"]} == learned


def test_a_model_without_an_optimizer_is_not_stepped(maple):
    run = maple()
    teacher = nn.Linear(1, 1)
    run.register_model("teacher", teacher)
    before, weight = run.model.prompt_learner.ctx.detach().clone(), teacher.weight.detach().clone()
    run.num_batches, run.batch_idx = 2, 0
    run.forward_backward({"img": torch.randn(2, 3, 32, 32), "label": torch.tensor([0, 1])})
    assert not torch.equal(run.model.prompt_learner.ctx, before)
    assert torch.equal(teacher.weight, weight)


def test_what_a_program_without_a_trainer_saved_is_loaded(maple, tmp_path):
    saved, run = maple(), maple()
    saved.model.prompt_learner.identity = {}  # as of a learner that no trainer has built
    saved.model.prompt_learner.ctx.data.normal_()
    saved.save_model(0, str(tmp_path))
    run.load_model(str(tmp_path), epoch=1)
    assert torch.equal(run.model.prompt_learner.ctx, saved.model.prompt_learner.ctx)


def test_a_run_that_is_not_this_one_is_refused_before_anything_is_loaded(maple, tmp_path):
    saved, run = maple(), maple()
    saved.model.prompt_learner.identity["data"]["SEED"] = 7
    saved.model.prompt_learner.ctx.data.normal_()
    saved.save_model(0, str(tmp_path))
    before = run.model.prompt_learner.ctx.detach().clone()
    with pytest.raises(ValueError, match=r"cannot be continued by this one: SEED was 7, here -1\."):
        run.resume_model_if_exist(str(tmp_path))
    assert torch.equal(run.model.prompt_learner.ctx, before)


def test_one_class_and_one_image(bare_trainer, golden_checkpoint):
    options = ["TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 1, "INPUT.SIZE", (32, 32)]
    run = bare_trainer("MaPLe", golden_checkpoint("tiny_public"), ["cat"], options, CONFIG)
    assert run.model(torch.randn(1, 3, 32, 32)).shape == (1, 1)
    assert isinstance(run.model.prompt_learner.compound_prompts_text, nn.ParameterList)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (CONFIG, {"OPTIM.LR": 0.0035, "OPTIM.MAX_EPOCH": 5, "TRAINER.MAPLE.PROMPT_DEPTH": 9}),
        (
            "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets.yaml",
            {"OPTIM.LR": 0.0026, "OPTIM.MAX_EPOCH": 2, "TRAINER.MAPLE.PROMPT_DEPTH": 3},
        ),
    ],
)
def test_published_configurations(name, expected):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/trainers" / name))
    published = {
        **expected,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "DATALOADER.TEST.BATCH_SIZE": 100,
        "INPUT.SIZE": (224, 224),
        "INPUT.INTERPOLATION": "bicubic",
        "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
        "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
        "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
        "OPTIM.NAME": "sgd",
        "OPTIM.LR_SCHEDULER": "cosine",
        "OPTIM.WARMUP_EPOCH": 1,
        "OPTIM.WARMUP_TYPE": "constant",
        "OPTIM.WARMUP_CONS_LR": 1e-5,
        "MODEL.BACKBONE.NAME": "ViT-B/16",
        "TRAINER.MAPLE.N_CTX": 2,
        "TRAINER.MAPLE.CTX_INIT": "a photo of a",
        "TRAINER.MAPLE.PREC": "fp16",
    }
    for key, value in published.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert (list(node) if isinstance(value, list) else node) == value, key
