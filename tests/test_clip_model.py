"""CLIP's encoders: against open_clip's own, and with prompts against plain formulas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers import (
    golden_script,
    plain_block,
    plain_image_features,
    plain_text_features,
    randomise,
    relative_error,
    tiny_clip,
)
from open_clip.model import convert_weights_to_fp16
from safetensors.torch import save_file
from torch import Tensor, nn

import prompted_clip
from prompted_clip import Prompts
from prompted_clip.model import CLIP, ResidualAttentionBlock, Transformer, convert_weights

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16}
OPENAI = {  # name of a published model → a small model of its kind
    "ViT-B/16": VIT,
    "ViT-B/32": VIT | {"patch_size": 8, "layers": 3},
    "RN50": {"image_size": 64, "layers": [3, 4, 6, 3], "width": 16},
    "RN101": {"image_size": 96, "layers": [1, 2, 1, 1], "width": 8},
}
LIKE_BIGG = VIT | {"width": 104, "head_width": 26, "mlp_ratio": 4.9231, "patch_size": 14, "image_size": 28}
OPEN_CLIP = {  # vision config, text config, quick_gelu, custom text
    "gelu": (VIT, TEXT, False, False),
    "quick gelu": (VIT, TEXT, True, False),
    "heads and perceptrons of other widths": (LIKE_BIGG, TEXT | {"heads": 4, "mlp_ratio": 2.5}, False, False),
    "no norm before the blocks": (VIT | {"no_ln_pre": True}, TEXT, False, False),
    "text in a module of its own": (VIT, TEXT, False, True),
    "epsilon and approximation": (
        VIT | {"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}},
        TEXT | {"norm_kwargs": {"eps": 1e-2}, "act_kwargs": {"approximate": "tanh"}},
        False,
        False,
    ),
    "norm after pooling": (VIT | {"final_ln_after_pool": True}, TEXT, False, False),
    "sines for positions": (VIT | {"pos_embed_type": "sin_cos_2d"}, TEXT, False, False),
    "a short context": (VIT, TEXT | {"context_length": 16}, False, False),
}


def their_clip(vision: dict[str, Any], text: dict[str, Any], quick: bool, custom: bool = False) -> nn.Module:
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return randomise(kind(embed_dim=48, vision_cfg=vision, text_cfg=text, quick_gelu=quick)).eval()


@torch.no_grad()
def compare(ours: CLIP, theirs: nn.Module, image_size: int) -> None:
    """Both in float64: features and logits are the same."""
    ours, theirs = ours.double(), theirs.double()
    images = torch.randn(3, 3, image_size, image_size, dtype=torch.float64)
    sentences = ["a cat", "a photo of a german shorthaired.", "x", ""]
    text = prompted_clip.tokenize(sentences, ours.context_length)
    assert relative_error(ours.encode_image(images), theirs.encode_image(images)) < 1e-12
    assert relative_error(ours.encode_text(text), theirs.encode_text(text)) < 1e-12
    logits, transposed = theirs.get_logits(images, text)
    assert relative_error(ours(images, text)[0], logits) < 1e-12
    assert relative_error(ours(images, text)[1], transposed) < 1e-12


@pytest.mark.parametrize("name", OPENAI)
def test_openai_models_are_open_clip_s(name, tmp_path):
    """From nothing but the weights; those of float16 are rounded."""
    config = OPENAI[name]
    theirs = their_clip(config, TEXT, quick=True)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = prompted_clip.load_model(name, tmp_path / "weights.safetensors")
    assert ours.visual.input_resolution == config["image_size"]
    assert not ours.training
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    convert_weights_to_fp16(theirs)
    compare(ours, theirs, config["image_size"])


@pytest.mark.parametrize("case", OPEN_CLIP)
def test_open_clip_models_are_open_clip_s(case, tmp_path, monkeypatch):
    vision, text, quick, custom = OPEN_CLIP[case]
    config = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config | {"custom_text": custom})
    theirs = their_clip(vision, text, quick, custom)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = prompted_clip.load_model("open_clip:small", tmp_path / "weights.safetensors")
    compare(ours, theirs, vision["image_size"])


def test_float16_is_where_openai_has_it():
    theirs = their_clip(VIT, TEXT, quick=True)
    ours = prompted_clip.build_model(theirs.state_dict())
    convert_weights_to_fp16(theirs)
    expected = {key: tensor.dtype for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.dtype for key, tensor in ours.state_dict().items()} == expected
    assert set(expected.values()) == {torch.float16, torch.float32}
    assert ours.dtype == torch.float16


def test_state_dict_has_openai_s_names():
    state_dict = golden_script.make_state_dict(**golden_script.PRESETS["tiny_public"])
    weights = {key: torch.from_numpy(value) for key, value in state_dict.items()}
    ours = prompted_clip.build_model(weights).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.reshape(()).shape if key == "logit_scale" else tensor.shape
        for key, tensor in weights.items()
    }


def test_a_resnet_keeps_its_counters():
    """Whole numbers stay whole numbers."""
    theirs = their_clip(OPENAI["RN101"], TEXT, quick=True).state_dict()
    theirs["visual.bn1.num_batches_tracked"] += 7
    ours = prompted_clip.build_model(theirs).state_dict()
    assert ours["visual.bn1.num_batches_tracked"] == 7
    assert ours["visual.bn1.num_batches_tracked"].dtype == torch.int64
    assert ours.keys() == theirs.keys()


def test_built_models_share_nothing():
    """A trained student does not move the teacher that was built of the same state dict."""
    weights = tiny_clip(dtype=torch.float32).state_dict()
    before = copy.deepcopy(weights)
    student, teacher = prompted_clip.build_model(weights), prompted_clip.build_model(weights)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor.float(), before[key].to(tensor.dtype).float()), key
        assert torch.equal(weights[key], before[key]), key


# --- the transformer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (1, 4), (3, 5)])
def test_a_transformer_called_from_outside_returns_every_position(shape, causal):
    mask = torch.full((9, 9), -torch.inf).triu(1) if causal else None
    transformer = randomise(Transformer(12, 3, 2, mask)).double()
    x = torch.randn(*shape, 12, dtype=torch.float64)
    expected = x
    for block in transformer.resblocks:
        one = block(expected)
        expected = plain_block(block, expected, causal)
        assert relative_error(one, expected) < 1e-12
    transformer(x, positions=[0])  # leaves nothing behind
    assert transformer(x).shape == (*shape, 12)
    assert relative_error(transformer(x), expected) < 1e-12


def test_one_position_is_that_position():
    for mask in (None, torch.full((6, 6), -torch.inf).triu(1)):
        transformer = randomise(Transformer(12, 3, 2, mask)).double()
        x = torch.randn(6, 2, 12, dtype=torch.float64)
        everything = transformer(x)
        for position in range(6):
            one = transformer(x, positions=[position])
            assert relative_error(one, everything[position : position + 1]) < 1e-12


def test_text_blocks_see_no_later_word():
    model = tiny_clip()
    text = prompted_clip.tokenize(["a photo of a cat."])
    x = model.embed_words(text).transpose(0, 1)
    changed = x.clone()
    changed[4:] += torch.randn_like(changed[4:])
    before, after = model.transformer(x), model.transformer(changed)
    assert torch.equal(before[:4], after[:4])
    assert not torch.isclose(before[4:], after[4:]).all(dim=-1).any()


def test_blocks_take_openai_s_arguments():
    mask = torch.full((4, 4), -torch.inf).triu(1)
    block = ResidualAttentionBlock(8, 2, mask)
    assert block.attn_mask is mask
    names = {name.rsplit(".", 1)[0] for name, _ in block.named_parameters()}
    assert names == {"attn", "attn.out_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"}
    assert block(torch.randn(3, 2, 8)).shape == (3, 2, 8)


def test_use_in_inference_mode_does_not_spoil_training():
    model = tiny_clip(dtype=torch.float32).double()  # the mask is brought to float64 in its first use
    text = prompted_clip.tokenize("a cat")
    with torch.inference_mode():
        model.encode_text(text)
    tokens = torch.randn(2, 64, requires_grad=True)
    model.encode_text(text, Prompts(tokens)).sum().backward()
    assert tokens.grad is not None


# --- prompts --------------------------------------------------------------------------------------------


def prompts_of(shape: tuple[int, ...], depth: int) -> tuple[Tensor, list[Tensor]]:
    tokens, *deep = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(depth))
    return tokens, deep


def compare_with_prompts(encode: Any, plain: Any, tokens: Tensor, deep: list[Tensor], used: int) -> None:
    """Features and every gradient; of `deep`, the first `used` have one."""
    features, expected = encode(Prompts(tokens, deep)), plain(tokens, deep)
    assert features.dtype == torch.float64
    assert relative_error(features, expected) < 1e-12
    weights = torch.randn_like(expected)
    learned = [tokens, *deep[:used]]
    for ours, right in zip(
        torch.autograd.grad((features * weights).sum(), learned),
        torch.autograd.grad((expected * weights).sum(), learned),
        strict=True,
    ):
        assert right.abs().max() > 0
        assert relative_error(ours, right) < 1e-12
    for unused in deep[used:]:
        assert torch.autograd.grad(encode(Prompts(tokens, deep)).sum(), unused, allow_unused=True) == (None,)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (3, 2)])
def test_image_prompts(shape, depth):
    """Behind the patches, before `ln_pre`; the deep ones take their places before the next blocks."""
    model = tiny_clip()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    tokens, deep = prompts_of((*shape, 128), depth)
    compare_with_prompts(
        lambda prompts: model.encode_image(images, prompts),
        lambda tokens, deep: plain_image_features(model, images, tokens, deep),
        tokens,
        deep,
        used=min(depth, 3) - 1,
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (3, 2)])
def test_text_prompts(shape, depth):
    """Behind SOS, before the positions are added; the deep ones take their places before the next blocks."""
    model = tiny_clip()
    text = prompted_clip.tokenize(
        ["a photo of a cat.", "X X X X german shorthaired.", "a photo of a dog house."]
    )
    tokens, deep = prompts_of((*shape, 64), depth)
    compare_with_prompts(
        lambda prompts: model.encode_text(text, prompts),
        lambda tokens, deep: plain_text_features(model, text, tokens, deep),
        tokens,
        deep,
        used=min(depth, 3) - 1,
    )


def test_without_prompts_the_encoders_are_plain_clip():
    model = tiny_clip()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    text = prompted_clip.tokenize(["a cat", "a photo of a dog."])
    expected = plain_image_features(model, images)
    for features in (model.encode_image(images), model.visual(images), model.encode_image(images, Prompts())):
        assert relative_error(features, expected) < 1e-12
    (ours,) = torch.autograd.grad(model.encode_image(images).sum(), images)
    assert relative_error(ours, torch.autograd.grad(expected.sum(), images)[0]) < 1e-12
    for prompts in (None, Prompts()):
        assert relative_error(model.encode_text(text, prompts), plain_text_features(model, text)) < 1e-12
    # Zeros behind EOT change nothing, so they need not be there.
    assert relative_error(model.encode_text(text[:, :8]), plain_text_features(model, text)) < 1e-12


def test_prompts_of_each_sample_are_that_sample_s():
    model = tiny_clip()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    tokens, deep = prompts_of((3, 2, 128), 2)
    together = model.encode_image(images, Prompts(tokens, deep))
    for k in range(3):
        alone = model.encode_image(images[k : k + 1], Prompts(tokens[k], [deep[0][k]]))
        assert relative_error(together[k : k + 1], alone) < 1e-12


def test_a_resnet_takes_no_image_prompts():
    model = tiny_clip(
        vision_layers=(1, 1, 1, 1), vision_width=16, vision_patch_size=None, image_resolution=64
    )
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert model.encode_image(images).shape == (1, 32)
    with pytest.raises(ValueError, match="image encoder is a ResNet: it has no tokens for image prompts"):
        model.encode_image(images, Prompts(torch.randn(2, 128)))


# --- precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("everything", [False, True], ids=["weights", "everything"])
def test_half_precision_runs_on_a_cpu(dtype, everything):
    """Learned tokens stay float32, and so do their gradients."""
    exact = tiny_clip(dtype=torch.float32)
    model = copy.deepcopy(exact)
    if everything:
        model.to(dtype)
    else:
        convert_weights(model, dtype)
        assert model.ln_final.weight.dtype == model.token_embedding.weight.dtype == torch.float32
    images, text = (
        torch.randn(2, 3, 32, 32),
        prompted_clip.tokenize(["a photo of a cat.", "a photo of a dog."]),
    )
    for encode, reference, batch, width in (
        (model.encode_image, exact.encode_image, images, 128),
        (model.encode_text, exact.encode_text, text, 64),
    ):
        tokens, deep = torch.randn(2, width, requires_grad=True), torch.randn(2, width, requires_grad=True)
        features = encode(batch, Prompts(tokens, [deep]))
        assert features.dtype == dtype
        assert relative_error(features.float(), reference(batch, Prompts(tokens, [deep]))) < 0.1
        features.float().sum().backward()
        assert tokens.grad.dtype == deep.grad.dtype == torch.float32
        assert deep.grad.abs().max() > 0


def test_a_resnet_runs_in_half_precision():
    options = {"vision_layers": (1, 1, 1, 1), "vision_width": 16, "vision_patch_size": None}
    exact = tiny_clip(dtype=torch.float32, image_resolution=64, **options)
    images = torch.randn(2, 3, 64, 64)
    for dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(exact)
        convert_weights(model, dtype)
        features = model.encode_image(images)
        assert features.dtype == dtype
        assert relative_error(features.float(), exact.encode_image(images)) < 0.1


def test_float32_prompts_in_a_float64_model_are_only_widened():
    model = tiny_clip()
    tokens = torch.randn(2, 64, requires_grad=True)
    features = model.encode_text(prompted_clip.tokenize("a photo of a cat."), Prompts(tokens))
    assert features.dtype == torch.float64
    features.sum().backward()
    assert tokens.grad.dtype == torch.float32


def test_training_from_scratch_starts_as_openai_s():
    torch.manual_seed(0)
    model = CLIP(512, 32, 2, 256, 8, 77, 4000, 128, 2, 4)
    assert float(model.token_embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(model.positional_embedding.detach().std()) == pytest.approx(0.01, rel=0.03)
    assert float(model.text_projection.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    block = model.transformer.resblocks[0]
    assert float(block.attn.in_proj_weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    assert float(block.mlp.c_fc.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    for weight in (block.attn.out_proj.weight, block.mlp.c_proj.weight):
        assert float(weight.detach().std()) == pytest.approx((128 * 8) ** -0.5, rel=0.02)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)
    images, text = torch.randn(2, 3, 32, 32), prompted_clip.tokenize(["a", "b"]).clamp(max=3999)
    loss = model(images, text)[0].diagonal().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pickled_and_copied_models_are_the_same(tmp_path: Path):
    model = tiny_clip()
    text = prompted_clip.tokenize("a photo of a cat.")
    expected = model.encode_text(text)
    assert torch.equal(copy.deepcopy(model).encode_text(text), expected)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False).encode_text(text), expected)
