"""open_clip's models with towers that are not CLIP's, made tiny: their own numbers, and prompts in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error, tiny_clip
from PIL import Image
from tiny_open_clip import KINDS, NAMES, make
from torch import Tensor

import prompted_clip
from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Adapters, BlockAdapter, Prompts, class_sentences, open_clip_models, other_towers
from prompted_clip.prompt_learner import IndependentPromptLearner, TemplateEnsemble
from prompted_clip.prompted_clip import PromptedCLIP
from scripts import backbones
from trainers import MMA, MMRL, CLIPLoRA, CoOp, MaPLe, TwoStageFS, ZeroshotCLIP, features, load
from trainers.cocoop import ConditionalContextLearner
from trainers.coop import ContextLearner
from trainers.export import export_pt2
from trainers.maple import MultiModalPromptLearner
from trainers.tcp import ClassAwareLearner

FETCH = open_clip_models.fetch_weights
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=KINDS)
def model(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A tiny model of each kind: as it is loaded here, open_clip's own, and its tokenizer."""
    name, theirs, tokenizer = make(request.param, tmp_path, monkeypatch)
    torch.manual_seed(0)
    return prompted_clip.load_model(name).requires_grad_(False), theirs, tokenizer


def logits_of_open_clip(theirs: Any, tokenizer: Any, template: str) -> Tensor:
    sentences = tokenizer([template.format(name) for name in NAMES])
    with torch.no_grad():
        image = theirs.encode_image(IMAGES, normalize=True)
        logits = theirs.logit_scale.exp() * image @ theirs.encode_text(sentences, normalize=True).t()
    return logits if theirs.logit_bias is None else logits + theirs.logit_bias


def test_zero_shot_logits_are_open_clip_s(model):
    ours, theirs, tokenizer = model
    right = logits_of_open_clip(theirs, tokenizer, "a photo of a {}.")
    found = PromptedCLIP(ours, TemplateEnsemble(ours, NAMES, ["a photo of a {}."]))(IMAGES)
    assert relative_error(found, right) < 1e-5
    sentences = ours.tokenize([f"a photo of a {name}." for name in NAMES])
    assert relative_error(ours(IMAGES, sentences)[0], right) < 1e-5


def test_text_of_clip_beside_another_image_encoder_shares_its_prefix(model):
    """Known from the model: the text is this project's own then."""
    ours, theirs, _ = model
    assert ours.shares_prefixes == (type(ours) is prompted_clip.CLIP)
    if ours.shares_prefixes:
        assert theirs.text.attn_mask is not None


def test_maple_learns_in_both_towers(model):
    """Each tensor has a gradient, and each token of text, which those of the image are made of."""
    ours = model[0]
    learner = MultiModalPromptLearner(ours, NAMES, 2, "a photo of a", 3, 2)
    whole = PromptedCLIP(ours, learner)
    F.cross_entropy(whole(IMAGES), torch.tensor([0, 2])).backward()
    learned = dict(learner.named_parameters())
    assert [name for name, each in learned.items() if each.grad is None or not each.grad.any()] == []
    assert not any(each.grad is not None for each in ours.parameters())
    for each in (learner.ctx, *learner.compound_prompts_text):
        assert bool(each.grad.any(dim=-1).all())


def test_a_context_of_words_says_what_the_words_say(model):
    """MaPLe that has learned nothing has, beside its image tokens, the sentence with these words."""
    ours, theirs, tokenizer = model
    learner = MultiModalPromptLearner(ours, NAMES, 2, "a photo of a", 1, 0)
    right = logits_of_open_clip(theirs, tokenizer, "a photo of a {}.")
    assert relative_error(PromptedCLIP(ours, learner)(IMAGES), right) < 1e-5


@pytest.mark.parametrize(
    "build",
    [
        lambda clip: ContextLearner(clip, NAMES, 4),
        lambda clip: ContextLearner(clip, NAMES, 3, position="middle"),
        lambda clip: ContextLearner(clip, NAMES, 2, class_specific=True, position="front"),
        lambda clip: ConditionalContextLearner(clip, NAMES, 2, "", meta_width=32),
        lambda clip: IndependentPromptLearner(clip, NAMES, "a photo of a", image_tokens=3, image_depth=2),
        lambda clip: IndependentPromptLearner(clip, NAMES, "a photo of a", 2, 3, 2, 2),
        lambda clip: ClassAwareLearner(clip, NAMES, block=1),
    ],
    ids=["CoOp", "CoOp, middle", "CoOp, front, per class", "CoCoOp", "VPT", "IVLP", "TCP"],
)
@pytest.mark.parametrize("model", ["siglip", "eva", "bert"], indirect=True)
def test_other_methods_learn(model, build):
    ours = model[0]
    learner = build(ours)
    logits = PromptedCLIP(ours, learner)(IMAGES)
    assert logits.shape == (2, 3)
    F.cross_entropy(logits, torch.tensor([0, 2])).backward()
    learned = dict(learner.named_parameters())
    assert [name for name, each in learned.items() if each.grad is None or not each.grad.any()] == []


@pytest.mark.parametrize("model", ["siglip"], indirect=True)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_context_may_stand_on_any_side_of_the_name(model, position):
    ours, theirs, tokenizer = model
    learner = ContextLearner(ours, NAMES, ctx_init="one big photo of", position=position)
    sentence = {"end": "one big photo of {}", "middle": "one big {} photo of", "front": "{} one big photo of"}
    right = logits_of_open_clip(theirs, tokenizer, sentence[position])
    assert relative_error(PromptedCLIP(ours, learner)(IMAGES), right) < 1e-5


@pytest.mark.parametrize("model", ["siglip"], indirect=True)
def test_fixed_sentences_are_encoded_once(model, monkeypatch):
    """Until a weight changes, or someone watches."""
    ours = model[0]
    learner = IndependentPromptLearner(ours, NAMES, "a photo of a", image_tokens=2)
    whole = PromptedCLIP(ours, learner)
    called: list[int] = []
    encode = ours.text.forward
    monkeypatch.setattr(ours.text, "forward", lambda *each: called.append(1) or encode(*each))
    first, again = whole(IMAGES), whole(IMAGES)
    assert torch.equal(first, again)
    assert len(called) == 1
    ours.text.module.ln_final.weight.mul_(2)
    assert relative_error(whole(IMAGES), first) > 1e-3
    ours.text.module.ln_final.register_forward_hook(lambda *_: None)
    whole(IMAGES)
    assert len(called) == 3


def test_prompts_act_as_in_this_project_s_own_encoders():
    """The same weights, once as CLIP and once as other towers: the same logits and gradients."""
    own = tiny_clip()
    vision = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
    towers = open_clip.CustomTextCLIP(32, vision, text, quick_gelu=True).double().eval()
    weights = {
        (key if key.startswith(("visual.", "logit")) else f"text.{key}"): each
        for key, each in own.state_dict().items()
    }
    towers.load_state_dict(weights)
    other = other_towers.OtherCLIP(towers, open_clip.SimpleTokenizer(), 32).requires_grad_(False)
    torch.manual_seed(0)
    learners = [
        MultiModalPromptLearner(each, NAMES, 2, "a photo of a", 3, 3).double() for each in (own, other)
    ]
    learners[1].load_state_dict(learners[0].state_dict())
    found = []
    for clip_model, learner in zip((own, other), learners, strict=True):
        logits = PromptedCLIP(clip_model, learner)(IMAGES.double())
        logits.square().sum().backward()
        found.append([logits, *(each.grad for each in learner.parameters())])
    for ours, right in zip(*found, strict=True):
        assert relative_error(ours, right) < 1e-9


@pytest.mark.parametrize("model", ["eva"], indirect=True)
def test_tokens_of_an_image_have_no_place_in_it(model):
    """A rotary tower turns patches by their places; a prompt between other prompts acts alike."""
    tower = model[0].visual
    tokens = torch.randn(3, tower.transformer.width)
    there, back = (tower(IMAGES, Prompts(each, [each])) for each in (tokens, tokens.flip(0)))
    assert relative_error(there, back) < 1e-5
    assert relative_error(there, tower(IMAGES)) > 1e-3


def test_bfloat16_casts_the_towers_and_not_the_scale(model):
    ours = model[0]
    learner = MultiModalPromptLearner(ours, NAMES, 2, "a photo of a", 2, 2)
    whole = PromptedCLIP(ours, learner)
    right = whole(IMAGES)
    prompted_clip.model.convert_weights(ours, torch.bfloat16)
    found = whole(IMAGES)
    assert found.dtype == ours.logit_scale.dtype == torch.float32
    assert 0 < relative_error(found, right) < 0.1


@pytest.mark.parametrize("model", ["siglip", "bert"], indirect=True)
def test_a_name_that_is_too_long_is_refused_by_its_class(model):
    ours = model[0]
    length = ours.context_length
    words = length - ours.first_slot - 1 - 4  # beside "a photo of a"
    class_sentences(ours, ["x " * words], "a photo of a {}.")
    with pytest.raises(ValueError, match=rf"^The sentence of class .* than the {length} tokens that"):
        class_sentences(ours, ["cat", "x " * (words + 1)], "a photo of a {}.")


@pytest.mark.parametrize("model", ["siglip"], indirect=True)
def test_what_cannot_enter_is_refused(model):
    ours = model[0]
    sentences = class_sentences(ours, NAMES, "a {}.")
    adapters = Adapters([BlockAdapter(mlp=torch.nn.Identity())])
    for encode in (
        lambda: ours.encode_image(IMAGES, None, adapters),
        lambda: sentences.encode(ours, None, adapters),
    ):
        with pytest.raises(
            ValueError, match=r"^Adapters cannot enter a .*, whose blocks are not CLIP's\. Prompts can"
        ):
            encode()
    inserted = Prompts(torch.zeros(2, 32), first_block=1)
    with pytest.raises(ValueError, match=r"^Prompts cannot be inserted into a sentence of a TextTransformer"):
        ours.encode_text(sentences.tokens, inserted)
    with pytest.raises(ValueError, match=r"first_block=2\): this encoder has 2 blocks"):
        ours.encode_image(IMAGES, Prompts(torch.zeros(2, 48), first_block=2))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of noise, four photos of each class."""
    for label, name in enumerate(NAMES):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("kind", ["siglip", "eva"])
def test_maple_is_trained_saved_loaded_and_asked(kind, photos, tmp_path, monkeypatch):
    """By the name of a folder, which has the weights, and says what the images are."""
    (tmp_path / "weights").mkdir()
    name, _, _ = make(kind, tmp_path / "weights", monkeypatch)
    config = open_clip.get_model_config(name.partition(":")[2])
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (tmp_path / "weights" / "open_clip_config.json").write_text(json.dumps(content))
    monkeypatch.delitem(open_clip.factory._MODEL_CONFIGS, name.partition(":")[2])
    monkeypatch.setattr(open_clip_models, "fetch_weights", FETCH)

    model = MaPLe.from_clip(f"open_clip:local-dir:{tmp_path / 'weights'}", NAMES, device="cpu")
    before = model(IMAGES)
    model.fit(photos, shots=1, epochs=1, calibrate=False)
    assert relative_error(model(IMAGES), before) > 1e-4
    assert model.preprocess(Image.new("RGB", (50, 40), "white")).unique().tolist() == [1.0]
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert torch.equal(again(IMAGES), model(IMAGES))
    found = again.predict(photos / "cat" / "0.png", ["dog", "cat", "house"])
    assert sorted(found.names) == ["cat", "dog", "house"]
    with pytest.raises(ValueError, match=r"has a tower that is not CLIP's: a graph of it"):
        export_pt2(model, tmp_path / "graphs")


@pytest.mark.parametrize(
    "method", [name for kind in (backbones.PROMPTS, backbones.TEXT) for name in backbones.methods()[kind]]
)
def test_the_methods_that_the_page_names_are_trained(method, photos, tmp_path, monkeypatch):
    name, _, _ = make("siglip", tmp_path, monkeypatch)
    needed = {"TRAINER.COPROMPT.DESCRIPTIONS": "template", "TRAINER.COPROMPT.PROMPT_DEPTH": 2}
    settings = needed if method == "CoPrompt" else {}
    model = TRAINER_REGISTRY.get(method).from_clip(name, NAMES, device="cpu", settings=settings)
    model.fit(photos, shots=1, epochs=1, calibrate=False, settings=settings)
    assert sum(model.predict(photos / "cat" / "0.png").probabilities) == pytest.approx(1)


@pytest.mark.parametrize(("method", "kept"), [(MaPLe, features.PIXELS), (CoOp, features.FEATURES)])
def test_features_are_kept_where_no_prompt_enters_the_image_encoder(method, kept, tmp_path, monkeypatch):
    name, _, _ = make("siglip", tmp_path, monkeypatch)
    assert features.place_of(method.from_clip(name, NAMES, device="cpu")) == kept


def test_a_method_that_changes_blocks_is_refused_before_training(tmp_path, monkeypatch):
    name, _, _ = make("siglip", tmp_path, monkeypatch)
    for method in (MMA, MMRL, CLIPLoRA, TwoStageFS):
        with pytest.raises(
            ValueError, match=rf"is '{name}': {method.__name__} changes what is inside the blocks"
        ):
            method.from_clip(name, NAMES, device="cpu")


def test_an_image_encoder_without_tokens_takes_prompts_of_text_alone(tmp_path, monkeypatch):
    name, theirs, tokenizer = make("eva", tmp_path, monkeypatch, image="convnext_base")
    with pytest.raises(ValueError, match=rf"is '{name}', whose image encoder is a ConvNeXt.* MaPLe could"):
        MaPLe.from_clip(name, NAMES, device="cpu")
    model = ZeroshotCLIP.from_clip(name, NAMES, device="cpu")
    assert relative_error(model(IMAGES), logits_of_open_clip(theirs, tokenizer, "a photo of a {}.")) < 1e-5
    model = CoOp.from_clip(name, NAMES, device="cpu")
    model.requires_grad_(True)
    model(IMAGES).sum().backward()
    assert bool(model.prompt_learner.ctx.grad.any(dim=-1).all())


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    name, _, _ = make("siglip", tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"its tokenizer takes the package transformers.* pip install"):
        prompted_clip.load_model(name)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=rf"a\.safetensors does not hold the weights of {name}:"):
        prompted_clip.load_model(name, tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file of CLIP weights at .*b\.safetensors"):
        prompted_clip.load_model(name, tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no .*open_clip_config\.json"):
        prompted_clip.load_model(f"open_clip:local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {"depth": 3}}}')
    with pytest.raises(ValueError, match=r"open_clip_config\.json is no configuration of an open_clip model"):
        prompted_clip.load_model(f"open_clip:local-dir:{tmp_path}")


def test_the_page_says_which_models_take_which_methods():
    """All of open_clip's configurations are tried; one that the page was written without is let pass."""
    rows = [line.strip("| \n").split(" | ") for line in backbones.PAGE.read_text().splitlines()]
    models = {model: row[:3] for row in rows if len(row) == 4 for model in row[3].split(", ")}
    known = [architecture for architecture in open_clip.list_models() if architecture in models]
    assert {"ViT-B-16", "ViT-B-16-SigLIP2", "EVA02-L-14", "coca_ViT-B-32", "convnext_base"} <= set(known)
    assert {each: list(backbones.backbone_of(each)) for each in known} == {
        each: models[each] for each in known
    }
    assert backbones.methods_table() in backbones.PAGE.read_text()
