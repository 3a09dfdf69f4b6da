"""PromptSRC and KgCoOp, which hold prompts near the frozen CLIP: against the formulas of their papers."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_image_features, plain_text_features, relative_error
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

import prompted_clip

NAMES = ["abyssinian", "american_bulldog", "bengal", "german shorthaired"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1])


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str, *options: Any) -> Any:
        torch.manual_seed(0)
        words = ["INPUT.SIZE", (32, 32), f"TRAINER.{name.upper()}.PREC", "fp32", *options]
        template = "a photo of a {}, a type of pet."
        checkpoint = golden_checkpoint("tiny_public")
        run = bare_trainer(name, checkpoint, NAMES, words, "vit_b16.yaml", template=template)
        run.model.double()
        for tensor in run.model.prompt_learner.parameters():
            tensor.data.normal_(std=0.1)
        return run

    return make


def sentences(template: str) -> Tensor:
    return prompted_clip.tokenize([template.replace("{}", name.replace("_", " ")) for name in NAMES])


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def probabilities(run: Any, image_features: Tensor, text_features: Tensor) -> Tensor:
    scores = run.model.clip_model.logit_scale.exp() * unit(image_features) @ unit(text_features).t()
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


def prompted(run: Any) -> tuple[Tensor, Tensor]:
    """Image and text features with the prompts in, written out."""
    learner, model = run.model.prompt_learner, run.model.clip_model
    image, text = learner.image_prompts(), learner.text_prompts()
    return (
        plain_image_features(model, IMAGES, image and image.tokens, image.deep if image else ()),
        plain_text_features(model, sentences("a photo of a {}."), text.tokens, text.deep),
    )


@pytest.mark.parametrize("name", ["PromptSRC", "MaPLeSRC"])
def test_promptsrc_s_losses_are_the_paper_s(name, make_trainer):
    run = make_trainer(name)
    model = run.model.clip_model
    losses = run.losses(IMAGES, LABELS)

    image, text = (unit(features) for features in prompted(run))
    clip_image = unit(plain_image_features(model, IMAGES))
    of_templates = [plain_text_features(model, sentences(t("{}"))) for t in OPENAI_IMAGENET_TEMPLATES[:60]]
    clip_text = unit(torch.stack(of_templates).mean(dim=0))
    ours, clips = probabilities(run, image, text), probabilities(run, clip_image, clip_text)
    divergence = (clips * (clips / ours).log()).sum(dim=1).mean()
    expected = {
        "loss_ce": -ours[range(3), LABELS].log().mean(),
        "loss_text": 25 * (text - clip_text).abs().mean(),
        "loss_image": 10 * (image - clip_image).abs().mean(),
        "loss_logits": divergence / len(NAMES),
    }
    assert losses.keys() == expected.keys()
    for term, value in expected.items():
        assert value > 0
        assert relative_error(losses[term], value) < 1e-12, term
    parameters = list(run.model.prompt_learner.parameters())
    ours, right = (
        torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True)
        for terms in (losses, expected)
    )
    for gradient, right_gradient in zip(ours, right, strict=True):
        assert (gradient is None) == (right_gradient is None)  # depths beyond the tiny encoders
        if gradient is not None:
            assert relative_error(gradient, right_gradient) < 1e-10


def test_kgcoop_s_loss_is_the_paper_s(make_trainer):
    run = make_trainer("KgCoOp")
    losses = run.losses(IMAGES, LABELS)
    model = run.model.clip_model
    image, text = (unit(features) for features in prompted(run))
    clip_text = unit(plain_text_features(model, sentences("a photo of a {}, a type of pet.")))
    distance = (text - clip_text).square().sum(dim=1).mean()  # ‖w − w_clip‖² in the mean over the classes
    expected = {
        "loss_ce": -probabilities(run, image, text)[range(3), LABELS].log().mean(),
        "loss_kg": 8 * distance / 2,
    }
    assert losses.keys() == expected.keys()
    for term, value in expected.items():
        assert value > 0
        assert relative_error(losses[term], value) < 1e-12, term


def test_without_weights_they_are_the_methods_that_they_build_on(make_trainer):
    run = make_trainer("KgCoOp", "TRAINER.KGCOOP.W", 0)
    losses = run.losses(IMAGES, LABELS)
    assert losses["loss_kg"] == 0
    assert relative_error(losses["loss_ce"], F.cross_entropy(run.model(IMAGES), LABELS)) < 1e-12


@pytest.mark.parametrize(("mean", "std", "epochs"), [(3, 1.0, 4), (2, 1.0, 3), (2.5, 30.0, 5)])
def test_the_last_model_is_the_gaussian_mean_over_the_epochs(mean, std, epochs, make_trainer, monkeypatch):
    options = ["OPTIM.MAX_EPOCH", epochs, "OPTIM.LR", 0.01, "TRAINER.PROMPTSRC.GPA_MEAN", mean]
    run = make_trainer("PromptSRC", *options, "TRAINER.PROMPTSRC.GPA_STD", std)
    learner = run.model.prompt_learner
    after = []

    def run_epoch() -> None:
        type(run).run_epoch(run)
        after.append({name: tensor.detach().clone() for name, tensor in learner.named_parameters()})

    monkeypatch.setattr(run, "run_epoch", run_epoch)
    run.train_loader_x = [{"img": IMAGES, "label": LABELS}, {"img": IMAGES.flip(0), "label": LABELS.flip(0)}]
    run.test_loader = run.train_loader_x
    run.train()

    density = [NormalDist(mean, std).pdf(epoch) for epoch in range(1, epochs + 1)]
    weights = [each / sum(density) for each in density]
    for name, tensor in learner.named_parameters():
        expected = sum(weight * tensors[name] for weight, tensors in zip(weights, after, strict=True))
        assert relative_error(tensor, expected) < 1e-6, name
        if name in ("ctx", "image_tokens"):
            assert relative_error(tensor, after[-1][name]) > 1e-6, "the mean is not the last epoch's"


def test_a_checkpoint_without_the_mean_is_not_continued(make_trainer, tmp_path):
    run = make_trainer("PromptSRC")
    run.save_model(0, str(tmp_path))
    (file,) = tmp_path.glob("*/model.pth.tar-1")
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["average"]
    torch.save(checkpoint, file)
    before = run.model.prompt_learner.ctx.data.normal_().clone()
    with pytest.raises(ValueError, match=r"has no mean over its epochs and cannot be continued; test it"):
        run.resume_model_if_exist(str(tmp_path))
    assert torch.equal(run.model.prompt_learner.ctx, before)
    run.load_model(str(tmp_path), epoch=1)


def test_a_deviation_of_0_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match=r"TRAINER\.PROMPTSRC\.GPA_STD is 0\.0; allowed is more than 0 epoch"
    ):
        make_trainer("PromptSRC", "TRAINER.PROMPTSRC.GPA_STD", 0)
