"""CoOp and CoCoOp: where the class name stands, whose context it is, and how long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import relative_error, tiny_clip

import prompted_clip
from prompted_clip import tokenize_classes
from prompted_clip.errors import UserError

# Names that end in signs run together with the full stop.
NAMES = ["crane (bird)", "st. bernard", "american_bulldog", "cat", "oh, no!"]


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str = "CoOp", classnames: list[str] = NAMES, **settings: Any) -> Any:
        torch.manual_seed(0)
        settings = {"PREC": "fp32", "N_CTX": 5, **settings}
        options = [
            item for key, value in settings.items() for item in (f"TRAINER.{name.upper()}.{key}", value)
        ]
        options += ["INPUT.SIZE", (32, 32)]
        return bare_trainer(name, golden_checkpoint("tiny_public"), classnames, options, "vit_b16.yaml")

    return make


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize(("position", "before"), [("end", 5), ("middle", 2), ("front", 0)])
def test_the_context_stands_around_the_name(position, before, csc, make_trainer):
    """CoOp's section 3.2, on embeddings: [V]1 ... [V]m [CLASS] [V]m+1 ... [V]M and the full stop."""
    run = make_trainer(CLASS_TOKEN_POSITION=position, CSC=csc)
    run.model.double()
    model, context = run.model.clip_model, run.model.prompt_learner.ctx
    assert context.shape == ((5, 5, 64) if csc else (5, 64))
    tokenizer = prompted_clip.simple_tokenizer.default_tokenizer()
    expected = []
    for k, name in enumerate(NAMES):
        words = prompted_clip.tokenize(f"X X X X X {name.replace('_', ' ')}.")[0].long()
        length = len(tokenizer.encode(name.replace("_", " ")))
        embedded = model.token_embedding.weight[words]
        own = context[k] if csc else context
        parts = [embedded[:1], own[:before], embedded[6 : 6 + length], own[before:], embedded[6 + length :]]
        x = torch.cat(parts) + model.positional_embedding
        x = model.transformer(x[:, None])[:, 0]
        expected.append(model.ln_final(x[words.argmax()]) @ model.text_projection)
    learner = run.model.prompt_learner
    assert relative_error(learner.text_features(model), torch.stack(expected)) < 1e-12
    whole = learner.sentences.encode(model, learner.text_prompts(), whole_sentences=True)
    assert relative_error(whole, torch.stack(expected)) < 1e-12


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_sentence_of_the_template_is_arranged_as_those_of_the_classes(position, make_trainer):
    learner = make_trainer(CLASS_TOKEN_POSITION=position).model.prompt_learner
    template = learner.sentences.template
    sentences = [template.replace("{}", name.replace("_", " ")) for name in NAMES]
    tokens, slots = learner.place_prompts(prompted_clip.tokenize(sentences))
    assert torch.equal(tokens, learner.sentences.tokens)
    assert torch.equal(slots, learner.sentences.slots)


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "KgCoOp"])
def test_as_many_tokens_as_there_are_words(name, make_trainer):
    run = make_trainer(name, CTX_INIT="this_is_one of the many photos of a", N_CTX=16)
    words = run.model.clip_model.embed_words(prompted_clip.tokenize("this is one of the many photos of a")[0])
    assert torch.equal(run.model.prompt_learner.ctx, words[1:10])


def test_a_class_specific_context_from_words_is_said_not_to_be(make_trainer, capsys):
    run = make_trainer(CTX_INIT="a photo of a", CSC=True)
    assert run.model.prompt_learner.ctx.shape == (4, 64)
    assert "TRAINER.COOP.CSC is not used, as in the reference" in capsys.readouterr().out


def test_contexts_of_other_classes_are_not_loaded(make_trainer, tmp_path):
    make_trainer(CSC=True).save_model(0, str(tmp_path))
    make_trainer(CSC=True).load_model(str(tmp_path), epoch=1)
    others = [*NAMES[:4], "dog"]
    with pytest.raises(ValueError, match="it has contexts for other classes"):
        make_trainer(CSC=True, classnames=others).load_model(str(tmp_path), epoch=1)
    make_trainer().save_model(1, str(tmp_path))
    make_trainer(classnames=others).load_model(str(tmp_path), epoch=2)


def test_cocoop_s_context_moves_with_the_image(make_trainer):
    """v_m(x) = v_m + h(x), a linear layer, ReLU and a linear layer of the image's features."""
    run = make_trainer("CoCoOp", N_CTX=4)
    learner, features = run.model.prompt_learner, torch.randn(3, 32)
    first, second = learner.meta_net.linear1, learner.meta_net.linear2
    assert first.weight.shape == (2, 32), "a 16th of the features"
    hidden = (features @ first.weight.t() + first.bias).clamp(min=0)
    bias = hidden @ second.weight.t() + second.bias
    expected = torch.stack([learner.ctx + each for each in bias])
    assert relative_error(learner.text_prompts(features).tokens, expected) < 1e-6


def test_cocoop_gives_the_same_in_parts(make_trainer, monkeypatch):
    """Many images with many classes are encoded a few at a time."""
    run, images = make_trainer("CoCoOp", N_CTX=4), torch.randn(5, 3, 32, 32)
    whole = run.model(images)
    own = run.model.prompt_learner.sentences.suffix_tokens
    monkeypatch.setattr("prompted_clip.prompted_clip.MOST_TOKENS", 2 * own)
    assert relative_error(run.model(images), whole) < 1e-5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("CoOp", {"N_CTX": 0}, r"TRAINER\.COOP\.N_CTX is 0; allowed is 1 or more"),
        ("CoOp", {"CLASS_TOKEN_POSITION": "back"}, r"is 'back'; allowed are end, middle, front\."),
        ("CoOp", {"N_CTX": 75}, r"class 'crane \(bird\)' is longer than the 77 tokens"),
        ("CoCoOp", {"META_NET_LAYERS": 0}, r"TRAINER\.COCOOP\.META_NET_LAYERS is 0; allowed is 1 or more"),
        ("CoCoOp", {"META_NET_WIDTH": -1}, r"META_NET_WIDTH is -1; allowed is 0 or more \(0 is a 16th"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, settings, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(name, **settings)


@pytest.mark.parametrize("template", ["a photo of a {}. {}.", "a photo.", "{}{}"])
def test_a_sentence_has_one_place_for_the_name(template):
    with pytest.raises(UserError, match=r"needs \{\} once"):
        tokenize_classes(tiny_clip(), ["ant"], template)
