"""MaPLe†: one coupling for all depths; against a plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_image_features, plain_text_features, relative_error
from torch import Tensor

import prompted_clip

NAMES = ["german_shorthaired", "cat", "staffordshire bull terrier"]


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(depth: int, coupling: str = "shared", count: int = 2, words: str = "a photo of a") -> Any:
        options = {
            "TRAINER.MAPLE.N_CTX": count,
            "TRAINER.MAPLE.CTX_INIT": words,
            "TRAINER.MAPLE.PROMPT_DEPTH": depth,
            "TRAINER.MAPLE.COUPLING": coupling,
            "TRAINER.MAPLE.PREC": "fp32",
        }
        torch.manual_seed(0)
        return bare_trainer(
            "MaPLe",
            golden_checkpoint("tiny_public"),
            NAMES,
            ["INPUT.SIZE", (32, 32), *(item for pair in options.items() for item in pair)],
            "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
        )

    return make


def plain_logits(model: Any, images: Tensor, words: str) -> Tensor:
    """One linear layer makes the image's tokens of the text's, at every depth."""
    learner, frozen = model.prompt_learner, model.clip_model
    text = prompted_clip.tokenize([f"{words} {name.replace('_', ' ')}." for name in NAMES])
    context, deep = learner.ctx, list(learner.compound_prompts_text)
    tokens, *further = (each @ learner.proj.weight.t() + learner.proj.bias for each in [context, *deep])
    image_features = plain_image_features(frozen, images, tokens, further)
    text_features = plain_text_features(frozen, text, context, deep)
    cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).t()
    return frozen.logit_scale.exp() * cosines


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("count", "words"), [(2, "a photo of a"), (4, "a photo of a"), (5, "")])
def test_logits_and_gradients_are_the_formula_s(depth, count, words, make_trainer):
    model = make_trainer(depth, count=count, words=words).model.double()
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    logits = model(images)
    expected = plain_logits(model, images, words or " ".join(["X"] * count))
    assert relative_error(logits, expected) < 1e-12
    learned = dict(model.prompt_learner.named_parameters())
    ours, right = (
        torch.autograd.grad(F.cross_entropy(each, labels), list(learned.values()), allow_unused=True)
        for each in (logits, expected)
    )
    for name, gradient, right_gradient in zip(learned, ours, right, strict=True):
        if (
            name.startswith("compound_prompts_text.") and int(name.split(".")[1]) >= 3
        ):  # the encoder has 4 blocks
            assert gradient is None
            assert right_gradient is None
        else:
            assert right_gradient.abs().max() > 0
            assert relative_error(gradient, right_gradient) < 1e-11, name


def test_there_is_one_coupling(make_trainer):
    trainer = make_trainer(4)
    assert set(trainer.model.prompt_learner.state_dict()) == {
        "ctx",
        "proj.weight",
        "proj.bias",
        *(f"compound_prompts_text.{k}" for k in range(3)),
        "_extra_state",
    }
    prompts = trainer.model.prompt_learner.image_prompts()
    assert len(prompts.deep) == 3
    deep = trainer.model.prompt_learner.compound_prompts_text
    for made, of in zip(prompts.deep, deep, strict=True):
        assert torch.equal(made, trainer.model.prompt_learner.proj(of))


def test_a_step_moves_all_that_is_learned(make_trainer):
    trainer = make_trainer(4)
    learner = trainer.model.prompt_learner
    before = {name: tensor.detach().clone() for name, tensor in learner.named_parameters()}
    frozen = {name: tensor.clone() for name, tensor in trainer.model.clip_model.state_dict().items()}
    trainer.num_batches, trainer.batch_idx = 2, 0
    trainer.forward_backward({"img": torch.randn(3, 3, 32, 32), "label": torch.tensor([0, 1, 2])})
    for name, tensor in learner.named_parameters():
        assert not torch.equal(tensor, before[name]), name
    for name, tensor in trainer.model.clip_model.state_dict().items():
        assert torch.equal(tensor, frozen[name]), name


def test_shallow_is_the_same_in_both(make_trainer):
    images = torch.randn(2, 3, 32, 32)
    shared, per_layer = make_trainer(1).model, make_trainer(1, "per_layer").model
    assert shared.prompt_learner.state_dict().keys() == per_layer.prompt_learner.state_dict().keys()
    assert torch.equal(shared(images), per_layer(images))


def test_an_unknown_coupling_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match=r"TRAINER\.MAPLE\.COUPLING is 'both'; allowed are per_layer, shared\."
    ):
        make_trainer(3, "both")
