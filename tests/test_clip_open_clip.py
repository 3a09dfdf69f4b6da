"""open_clip's models by name: which are accepted, which are refused and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import prompted_clip
from prompted_clip import open_clip_models
from prompted_clip.mlp import QuickGELU


def accepted(architecture: str) -> bool:
    try:
        open_clip_models.model_options(f"open_clip:{architecture}")
    except ValueError:
        return False
    return True


ACCEPTED = [architecture for architecture in open_clip.list_models() if accepted(architecture)]
REFUSED = {
    "ViT-B-16-SigLIP": "its image encoder is not CLIP's ViT",
    "EVA02-B-16": "its image encoder is not CLIP's ViT",
    "convnext_base": "its image encoder is not CLIP's ViT",
    "MobileCLIP-B": "its image encoder is not CLIP's ViT",
    "RN50": "its image encoder is not CLIP's ViT",
    "roberta-ViT-B-32": "its text encoder is not causal",
    "xlm-roberta-large-ViT-H-14": "its text encoder is not causal",
    "ViT-L-14-CLIPA": "its text encoder is not causal",
    "coca_ViT-B-32": "it is a captioner, not a CLIP",
    "ViT-M-16-alt": "it needs ls_init_value=0.0001",
}


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("something is downloaded")

    monkeypatch.setattr(open_clip_models, "download_pretrained", download)


def test_the_vits_of_open_clip_are_accepted():
    published = {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"}
    assert published < set(ACCEPTED)
    assert {name.removesuffix("-quickgelu") for name in ACCEPTED if name.endswith("quickgelu")} < set(
        ACCEPTED
    )


@pytest.mark.parametrize("architecture", ACCEPTED)
def test_an_accepted_model_has_open_clip_s_weights(architecture):
    """Same keys and shapes, without any memory for them; the heads divide the widths."""
    with torch.device("meta"):
        config = open_clip.get_model_config(architecture)
        custom = config.pop("custom_text", False)
        theirs = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    state_dict = prompted_clip.weights.clean_state_dict(theirs.state_dict(), "open_clip")
    ours = prompted_clip.factory._build(state_dict, "open_clip", f"open_clip:{architecture}")
    tower = theirs.text.transformer if custom else theirs.transformer
    for mine, other in (
        (ours.visual.transformer, theirs.visual.transformer),
        (ours.transformer, tower),
    ):
        assert mine.resblocks[0].attn.num_heads == other.resblocks[0].attn.num_heads
        assert isinstance(mine.resblocks[0].mlp.gelu, QuickGELU) == config.get("quick_gelu", False)
    assert ours.visual.input_resolution == config["vision_cfg"]["image_size"]


def test_what_sets_other_models_apart_is_said():
    """For what needs CLIP's own towers; they are loaded as they are, tests/test_other_towers.py."""
    others = set(open_clip.list_models()) - set(ACCEPTED)
    assert set(REFUSED) < others
    for architecture in others:
        with pytest.raises(
            ValueError, match=rf"'open_clip:{architecture}/x', whose towers are not CLIP's"
        ) as caught:
            open_clip_models.model_options(f"open_clip:{architecture}/x")
        message = str(caught.value)
        assert "\n" not in message
        assert REFUSED.get(architecture, "") in message
        assert "such as open_clip:ViT-B-16/laion2b_s34b_b88k." in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text_cfg": {"hf_tokenizer_name": "bert-base-uncased"}}, "does not use CLIP's tokenizer"),
        ({"text_cfg": {"vocab_size": 32000}}, "it needs vocab_size=32000"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "whitespace"}}}, "it needs tokenizer_kwargs={"),
        ({"text_cfg": {"no_causal_mask": True}}, "its text encoder is not causal"),
        ({"text_cfg": {"pool_type": "last"}}, "it needs pool_type=last"),
        ({"text_cfg": {"proj_bias": True}}, "it needs proj_bias=True"),
        ({"text_cfg": {"embed_cls": True}}, "it needs embed_cls=True"),
        ({"vision_cfg": {"pool_type": "avg"}}, "it needs pool_type=avg"),
        ({"vision_cfg": {"attentional_pool": True}}, "it needs attentional_pool=True"),
        ({"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}}, "its encoders differ in activation"),
        ({"init_logit_bias": -10}, "its logits have a bias"),
    ],
)
def test_options_that_this_clip_has_not_are_found(change, reason, monkeypatch):
    config = open_clip.get_model_config("ViT-B-16")
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "changed", config)
    assert reason in open_clip_models.why_not(open_clip_models.config_of("open_clip:changed/tag"))


def test_a_config_of_one_s_own_may_leave_out_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    (tmp_path / "mine.json").write_text('{"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}')
    open_clip.add_model_config(tmp_path)
    options = open_clip_models.model_options("open_clip:mine")
    assert (options["vision_heads"], options["transformer_heads"]) == (12, 8)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "ViT-B16",
            ["MODEL.BACKBONE.NAME is 'ViT-B16'; allowed are RN50, RN101,", "Did you mean 'ViT-B/16'?"],
        ),
        ("nothing of the kind", ["MODEL.BACKBONE.NAME is 'nothing of the kind'; allowed are RN50"]),
        ("open_clip:ViT-B/16", ["open_clip has no model 'ViT-B'. Did you mean open_clip:ViT-B-16?"]),
        ("open_clip:none", ["open_clip has no model 'none'. Its models are listed by"]),
        ("open_clip:", ["open_clip has no model ''."]),
        ("open_clip:hf-hub:someone/something", ["open_clip has no model 'hf-hub:someone'."]),
        ("open_clip:ViT-B-16", ["does not say which weights of ViT-B-16. Give one of", "laion2b_s34b_b88k"]),
        ("open_clip:ViT-B-16/nothing", ["there are no weights 'nothing' of ViT-B-16. Give one of openai"]),
    ],
)
def test_unknown_names_are_refused_before_any_download(name, parts, no_download):
    with pytest.raises(ValueError, match=r"^MODEL\.BACKBONE\.NAME") as caught:
        prompted_clip.load_model(name)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_tag_tells_the_activation():
    """Some weights of "ViT-B-16" were trained with OpenAI's activation, though the name does not say so."""
    for tag, quick in (
        ("openai", True),
        ("dfn2b", True),
        ("metaclip_400m", True),
        ("laion2b_s34b_b88k", False),
    ):
        options = open_clip_models.model_options(f"open_clip:ViT-B-16/{tag}")
        assert (options["activation"] is QuickGELU) == quick, tag
    assert open_clip_models.model_options("open_clip:ViT-B-16-quickgelu")["activation"] is QuickGELU


def test_weights_of_another_architecture_are_refused(clip_weights, tmp_path):
    save_file(clip_weights, tmp_path / "a.safetensors")
    name = "open_clip:ViT-B-16/laion2b_s34b_b88k"
    with pytest.raises(
        ValueError, match=f"'{name}', whose vision_width is 768, but the weights given have 128"
    ):
        prompted_clip.load_model(name, tmp_path / "a.safetensors")


def test_open_clip_s_weights_are_fetched_by_open_clip(clip_weights, tmp_path, monkeypatch):
    asked = []
    config = open_clip.get_model_config("ViT-B-16")
    config["embed_dim"] = 32
    config["vision_cfg"] |= {"image_size": 32, "layers": 1, "width": 128}
    config["text_cfg"] |= {"width": 64, "heads": 2, "layers": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16", config)
    save_file(clip_weights, tmp_path / "a.safetensors")

    def download(pretrained: dict[str, Any]) -> str:
        asked.append(pretrained["hf_hub"])
        return str(tmp_path / "a.safetensors")

    monkeypatch.setattr(open_clip_models, "download_pretrained", download)
    model = prompted_clip.load_model("open_clip:ViT-B-16/laion2b_s34b_b88k")
    assert asked == ["laion/CLIP-ViT-B-16-laion2B-s34B-b88K/"]
    assert model.transformer.resblocks[0].attn.num_heads == 2

    def fail(_: Any) -> str:
        raise RuntimeError("no route to the hub\nand a long story")

    monkeypatch.setattr(open_clip_models, "download_pretrained", fail)
    with pytest.raises(ConnectionError) as caught:
        prompted_clip.load_model("open_clip:ViT-B-16/laion2b_s34b_b88k")
    assert str(caught.value) == (
        "The weights of open_clip:ViT-B-16/laion2b_s34b_b88k could not be downloaded (no route to the hub); "
        "fetch the file elsewhere and give it as MODEL.BACKBONE.PATH."
    )


def test_normalisation_is_the_one_of_the_weights():
    assert prompted_clip.pixel_statistics("ViT-B/16") == (
        prompted_clip.factory.MEAN,
        prompted_clip.factory.STD,
    )
    assert prompted_clip.pixel_statistics("open_clip:ViT-B-16/laion2b_s34b_b88k") == (
        prompted_clip.factory.MEAN,
        prompted_clip.factory.STD,
    )
    assert prompted_clip.pixel_statistics("open_clip:ViT-L-14/laion2b_s32b_b82k") == ((0.5,) * 3, (0.5,) * 3)


def test_preprocessing_is_the_one_of_the_model(tmp_path, monkeypatch):
    """With the mean, std and interpolation that its weights were trained with."""
    weights = tmp_path / "weights.safetensors"
    theirs = open_clip.create_model("ViT-B-32", force_image_size=64)
    save_file(theirs.state_dict(), weights)
    monkeypatch.setattr(open_clip_models, "fetch_weights", lambda _: weights)
    tag = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    monkeypatch.setattr(open_clip_models, "get_pretrained_cfg", lambda *_: tag)
    _, preprocess = prompted_clip.load("open_clip:ViT-B-32/laion2b_s34b_b79k", device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    right = open_clip.image_transform(64, is_train=False, **tag)
    assert torch.equal(preprocess(image), right(image))
