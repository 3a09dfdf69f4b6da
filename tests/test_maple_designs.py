"""MaPLe against what its paper weighs it with: depths by branch, the other direction, other beginnings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_image_features, plain_text_features, relative_error

import prompted_clip

NAMES = ["abyssinian", "american_bulldog", "bengal", "german shorthaired"]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(**settings: Any) -> Any:
        torch.manual_seed(0)
        settings = {"PREC": "fp32", "PROMPT_DEPTH": 3, **settings}
        options = [item for key, value in settings.items() for item in (f"TRAINER.MAPLE.{key}", value)]
        config = "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
        options += ["INPUT.SIZE", (32, 32)]
        return bare_trainer("MaPLe", golden_checkpoint("tiny_public"), NAMES, options, config)

    return make


def logits_of(run: Any, source: str, text_depth: int, image_depth: int) -> torch.Tensor:
    """The paper's formula: the tokens of `source` are learned, and those of the other made of them."""
    model, learner = run.model.clip_model, run.model.prompt_learner
    state = {name: tensor.detach() for name, tensor in learner.named_parameters()}
    own = [state["ctx"]]
    while f"compound_prompts_{source}.{len(own) - 1}" in state:
        own.append(state[f"compound_prompts_{source}.{len(own) - 1}"])
    coupled = []
    for depth, tokens in enumerate(own):
        key = "proj" if depth == 0 else f"compound_prompt_projections.{depth - 1}"
        key = key if f"{key}.weight" in state else "proj"
        if f"{key}.weight" in state:
            coupled.append(tokens @ state[f"{key}.weight"].t() + state[f"{key}.bias"])
    text, image = (own, coupled) if source == "text" else (coupled, own)
    text, image = text[:text_depth], image[:image_depth]
    sentences = prompted_clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    image_features = plain_image_features(model, IMAGES, image[0] if image else None, image[1:])
    text_features = plain_text_features(model, sentences, text[0] if text else None, text[1:])
    return (
        model.logit_scale.exp() * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).t()
    )


@pytest.mark.parametrize("coupling", ["per_layer", "shared"])
@pytest.mark.parametrize("source", ["text", "image"])
@pytest.mark.parametrize(
    ("depth", "text", "image", "expected"),
    [
        (3, -1, -1, (3, 3)),
        (3, 1, -1, (1, 3)),
        (3, -1, 2, (3, 2)),
        (1, 4, 2, (4, 2)),
        (3, 0, -1, (0, 3)),
        (3, -1, 0, (3, 0)),
    ],
)
def test_depths_and_directions(depth, text, image, expected, source, coupling, make_trainer):
    target = "image" if source == "text" else "text"
    run = make_trainer(
        PROMPT_DEPTH=depth,
        PROMPT_DEPTH_TEXT=text,
        PROMPT_DEPTH_VISION=image,
        DIRECTION=f"{source}_to_{target}",
        COUPLING=coupling,
    )
    run.model.double()
    assert relative_error(run.model(IMAGES), logits_of(run, source, *expected)) < 1e-12


def test_the_default_is_the_published_design(make_trainer):
    plain, named = make_trainer(), make_trainer(PROMPT_DEPTH_TEXT=3, PROMPT_DEPTH_VISION=3, DEEP_INIT="noise")
    for name, tensor in plain.model.prompt_learner.named_parameters():
        assert torch.equal(tensor, named.model.prompt_learner.get_parameter(name)), name


def test_deep_prompts_that_start_from_words(make_trainer):
    run = make_trainer(DEEP_INIT="words")
    words = run.model.clip_model.embed_words(prompted_clip.tokenize("a photo of a")[0, 1:3])
    learner = run.model.prompt_learner
    for tokens in [learner.ctx, *learner.compound_prompts_text]:
        assert torch.equal(tokens, words)
    noise = make_trainer().model.prompt_learner.compound_prompts_text
    assert not torch.equal(noise[0], noise[1])


def test_image_tokens_as_the_source_start_from_noise(make_trainer):
    learner = make_trainer(DIRECTION="image_to_text").model.prompt_learner
    assert learner.ctx.shape == (2, 128)
    assert 0.01 < learner.ctx.std() < 0.03
    assert learner.proj.weight.shape == (64, 128)
    assert set(dict(learner.named_children())) >= {"compound_prompts_image", "compound_prompt_projections"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"DIRECTION": "both"},
            r"TRAINER\.MAPLE\.DIRECTION is 'both'; allowed are text_to_image, image_to_t",
        ),
        ({"DEEP_INIT": "zeros"}, r"TRAINER\.MAPLE\.DEEP_INIT is 'zeros'; allowed are noise, words\."),
        ({"PROMPT_DEPTH_TEXT": -2}, r"PROMPT_DEPTH_TEXT is -2; allowed is -1 or more \(-1 is PROMPT_DEPTH"),
        ({"PROMPT_DEPTH_TEXT": 0, "PROMPT_DEPTH_VISION": 0}, "are 0; one of them must be 1 or more"),
        ({"DEEP_INIT": "words", "CTX_INIT": ""}, r"DEEP_INIT is 'words'.* Give words and text_to_image"),
        ({"DEEP_INIT": "words", "DIRECTION": "image_to_text"}, "Give words and text_to_image, or noise"),
    ],
)
def test_designs_that_cannot_be_are_refused(settings, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)
