"""Old trainers on this CLIP (clip/legacy.py): the reference's numbers, names, calls and checkpoints."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    GOLDEN,
    ROOT,
    golden_script,
    plain_block,
    plain_image_features,
    plain_text_features,
    plain_transformer,
    randomise,
    relative_error,
    tiny_clip,
    write_archive,
)
from safetensors.torch import load_file
from tolerances import half_precision_error
from torch import nn

import clip
import prompted_clip.resnet
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from train import load_plugin

OLD_TRAINERS = ROOT / "tests" / "old_trainers.py"
CASES = [
    "tiny_maple_nctx2_d3",
    "tiny_maple_nctx2_d9",  # deeper than the encoders
    "tiny_ivlp_v2t2_dv3dt3",
    "tiny_ivlp_v3t2_dv1dt3",
    "tiny_vpt_v4_d1",
    "tiny_vpt_v8_d12",  # deeper than the encoder
    "tiny_coop_nctx4_words_end",
]
IVLP = {"trainer": "IVLP", "vision_depth": 2, "vision_ctx": 3, "language_depth": 5, "language_ctx": 2}


OWNERS = (clip, clip.clip, clip.model, clip.model.ResidualAttentionBlock)


@pytest.fixture(scope="module")
def names_before():
    """What the owners of names hold without the plugin."""
    return [dict(vars(owner)) for owner in OWNERS]


@pytest.fixture(scope="module")
def old(names_before):
    """The old trainers, loaded behind the plugin as `train.py` does it; afterwards all is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
        load_plugin("clip.legacy")
        load_plugin(str(OLD_TRAINERS))
        yield sys.modules["old_trainers"]
    for owner, names in zip(OWNERS, names_before, strict=True):
        for name, value in dict(vars(owner)).items():
            if name not in names:
                delattr(owner, name)
            elif value is not names[name]:
                setattr(owner, name, names[name])
    del sys.modules["clip.legacy"], sys.modules["old_trainers"]


@pytest.fixture(scope="module")
def weights():
    """The state dict of a CLIP with three blocks an encoder."""
    return tiny_clip(3, 3, torch.float32).state_dict()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(old, trainer: str, cfg: dict, classnames: list[str], state_dict: dict, half: bool = False):
    """The model of an old trainer, with settings under the old keys."""

    def setting(name: str):
        return cfg[f"TRAINER.{trainer.upper()}.{name}"]

    if trainer == "MaPLe":
        design = old.design_of_maple(setting("N_CTX"))
    elif trainer == "CoOp":
        design = None
    else:
        design = {
            "trainer": trainer,
            "vision_depth": setting("PROMPT_DEPTH_VISION"),
            "vision_ctx": setting("N_CTX_VISION"),
            "language_depth": setting("PROMPT_DEPTH_TEXT") if trainer == "IVLP" else 0,
            "language_ctx": setting("N_CTX_TEXT") if trainer == "IVLP" else 0,
        }
    clip_model = clip.clip.build_model(state_dict, design)
    assert clip_model.dtype == torch.float16
    assert not clip_model.training
    if not half:
        clip_model.float()
    if trainer == "MaPLe":
        learner = old.MultiModalPromptLearner(
            classnames, clip_model, setting("N_CTX"), setting("PROMPT_DEPTH")
        )
        model = old.CustomMaPLe(learner, clip_model)
    elif trainer == "VPT":
        model = old.CustomVPT(classnames, clip_model)
    else:
        n_ctx = setting("N_CTX_TEXT" if trainer == "IVLP" else "N_CTX")
        model = old.CustomCLIP(old.PromptLearner(classnames, clip_model, n_ctx), clip_model)
    old.freeze(model)
    return model


class Recording:
    """A recorded case, and the old model that has to repeat it, at the recorded initial values."""

    def __init__(self, name: str, old, golden_checkpoint, half: bool = False) -> None:
        self.case = json.loads((GOLDEN / "cases" / f"{name}.json").read_text())
        self.recorded = load_file(GOLDEN / "cases" / f"{name}.safetensors")
        self.images = load_file(GOLDEN / "inputs_tiny_public.safetensors")["images"]
        self.labels = torch.tensor(self.case["labels"])
        state_dict = load_file(golden_checkpoint("tiny_public"))
        trainer, classnames = self.case["trainer"], self.case["classnames"]
        self.model = build(old, trainer, self.case["cfg"], classnames, state_dict, half)
        self.learned = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        assert list(self.learned) == [entry["name"] for entry in self.case["trainable"]]
        for entry in self.case["trainable"]:
            key = entry["name"]
            if entry["init"] == "token_embedding":
                assert torch.equal(self.learned[key].float(), self.recorded[f"init.{key}"].float())
                continue
            initial = golden_script.prompt_init(key, self.case["preset_args"]["seed"], tuple(entry["shape"]))
            self.learned[key].data.copy_(torch.from_numpy(initial))

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Relative to the recorded tensor, of which there may be samples only."""
        if key in self.case["sampled"]:
            ours = ours.flatten()[:: self.case["sampled"][key]["stride"]]
        return relative_error(ours, self.recorded[key])


# --- the reference's numbers


@pytest.mark.parametrize("name", CASES)
def test_old_trainers_repeat_the_reference(name, old, golden_checkpoint):
    case = Recording(name, old, golden_checkpoint)
    start, stop = case.case["traj"]["batch_slices"][0]
    assert case.error("logits", case.model(case.images[start:stop])) <= 1e-5
    assert case.error("logits_all8", case.model(case.images)) <= 1e-5
    case.model(case.images[start:stop], case.labels[start:stop]).backward()
    for key, tensor in case.model.named_parameters():
        if key not in case.learned or key in case.case["no_grad"]:
            assert tensor.grad is None, key
        else:
            assert case.error(f"grad.{key}", tensor.grad) <= 1e-4, key


def test_half_precision_is_as_near_as_the_reference_s(old, golden_checkpoint):
    """On a CPU, too: as near to the recorded fp32 numbers as float16's rounding lets it be."""
    exact = load_file(GOLDEN / "cases" / "tiny_maple_nctx2_d3.safetensors")["logits_all8"]
    case = Recording("tiny_maple_nctx2_d3__fp16", old, golden_checkpoint, half=True)
    ours = case.model(case.images)
    assert ours.dtype == torch.float16
    encoders = SimpleNamespace(
        transformer=case.model.text_encoder.transformer, visual=case.model.image_encoder
    )
    assert 0 < relative_error(ours.float(), exact) <= half_precision_error("fp16", encoders)


LAYOUTS = {
    "MaPLe (tiny, depth 3)": ("MaPLe", {"N_CTX": 2, "PROMPT_DEPTH": 3}),
    "IVLP (tiny, config depth 12)": (
        "IVLP",
        {"N_CTX_TEXT": 2, "N_CTX_VISION": 2, "PROMPT_DEPTH_TEXT": 12, "PROMPT_DEPTH_VISION": 12},
    ),
    "VPT (tiny, depth 12)": ("VPT", {"N_CTX_VISION": 8, "PROMPT_DEPTH_VISION": 12}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_checkpoints_load(layout, old, golden_checkpoint):
    """Keys and shapes are the recorded ones, in their order: optimizer states know parameters by place."""
    trainer, settings = LAYOUTS[layout]
    recorded = json.loads((GOLDEN / "checkpoint_layout.json").read_text())[layout]["state_dict"]
    cfg = {f"TRAINER.{trainer.upper()}.{key}": value for key, value in settings.items()}
    state_dict = load_file(golden_checkpoint("tiny_public"))
    model = build(old, trainer, cfg, ["cat", "dog", "fox", "owl"], state_dict)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(ours.items()) == [(key, shape) for key, (shape, _) in recorded.items()]

    published = {key: random(*shape, seed=k) for k, (key, (shape, _)) in enumerate(recorded.items())}
    result = model.load_state_dict(published, strict=False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(torch.equal(tensor, published[key]) for key, tensor in model.state_dict().items())


# --- the model and its parts


@pytest.mark.parametrize(
    "design", [None, {}, {"trainer": "CoOp"}, {"trainer": "Mine", "vision_depth": -3, "maple_length": "?"}]
)
def test_other_trainers_get_plain_clip(design, old, weights):
    plain = sys.modules["clip.legacy"].plain_build_model(weights)
    model = clip.build_model(weights) if design is None else clip.build_model(weights, design)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [p.dtype for p in model.parameters()] == [p.dtype for p in plain.parameters()]
    model, plain = model.double(), plain.double()
    images, text = random(2, 3, 32, 32).double(), clip.tokenize(["a cat.", "a photo of a dog."])
    with torch.no_grad():
        assert relative_error(model.encode_image(images), plain.encode_image(images)) < 1e-12
        assert relative_error(model.encode_text(text), plain.encode_text(text)) < 1e-12
        for ours, right in zip(model(images, text), plain(images, text), strict=True):
            assert relative_error(ours, right) < 1e-12


def test_a_fork_with_a_trainer_name_of_its_own_may_call_as_maple_does(old, weights):
    model = clip.build_model(weights, {"trainer": "CoPrompt", "maple_length": 2}).double()
    images, shared, deep = random(2, 3, 32, 32).double(), random(2, 128), [random(2, 128, seed=1)]
    right = plain_image_features(model, images, shared, deep)
    assert relative_error(model.visual(images, shared, deep), right) < 1e-6
    own = [tokens.expand(2, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None] for tokens in (shared, *deep)]
    right = plain_image_features(model, images, own[0], own[1:])
    assert relative_error(model.visual(images, own[0], own[1:]), right) < 1e-6
    assert relative_error(model.visual(images, own[0], torch.stack(own[1:])), right) < 1e-6


@pytest.mark.parametrize("design", [None, IVLP])
def test_parts_are_sequence_first_and_give_every_position(design, old, weights):
    model = clip.build_model(weights, design).double()
    image_deep = [model.visual.transformer.resblocks[1].VPT_shallow] if design else []
    text_deep = [model.transformer.resblocks[k].VPT_shallow for k in (1, 2)] if design else []
    x = random(9, 2, 128).double()
    right = plain_transformer(model.visual.transformer, x, image_deep, len(x) - 3, causal=False)
    assert relative_error(model.visual.transformer(x), right) < 1e-12
    x = random(77, 2, 64).double()
    right = plain_transformer(model.transformer, x, text_deep, 1, causal=True)
    assert relative_error(model.transformer(x), right) < 1e-12
    assert relative_error(model.transformer(x, positions=[4]), right[4:5]) < 1e-12


def test_planted_prompts_are_used_by_the_whole_encoders(old, weights):
    torch.manual_seed(0)
    model = clip.build_model(weights, IVLP).double()
    planted = {name: tensor for name, tensor in model.named_parameters() if "VPT" in name}
    assert list(planted) == [
        "visual.VPT",
        "visual.transformer.resblocks.1.VPT_shallow",
        "transformer.resblocks.1.VPT_shallow",
        "transformer.resblocks.2.VPT_shallow",
    ]
    images, text = random(2, 3, 32, 32).double(), clip.tokenize(["a cat.", "a photo of a dog."])
    right = plain_image_features(model, images, planted["visual.VPT"], list(planted.values())[1:2])
    assert relative_error(model.visual(images), right) < 1e-12
    right = plain_text_features(model, text, deep=list(planted.values())[2:])
    assert relative_error(model.encode_text(text), right) < 1e-12


def test_planted_prompts_are_drawn_as_published(old, weights):
    torch.manual_seed(0)
    model = clip.build_model(weights, {**IVLP, "vision_ctx": 100, "language_ctx": 70})
    planted = [tensor for name, tensor in model.named_parameters() if "VPT" in name]
    assert all(tensor.requires_grad for tensor in planted)
    for tensor in (parameter.detach() for parameter in planted):
        assert tensor.dtype == torch.float32, "cast where they enter, as in the reference"
        assert float(tensor.std()) == pytest.approx(0.02, rel=0.05)
        assert float(tensor.mean()) == pytest.approx(0, abs=0.002)
    assert not torch.equal(planted[2], planted[3])


def test_new_code_may_still_pass_prompts(old, weights):
    model = clip.build_model(weights, old.design_of_maple(2)).double()
    images, text = random(2, 3, 32, 32).double(), clip.tokenize(["a cat.", "a photo of a dog."])
    for encode, plain, x, width in (
        (model.encode_image, plain_image_features, images, 128),
        (model.encode_text, plain_text_features, text, 64),
    ):
        tokens, deep = random(2, width), [random(2, width, seed=1), random(2, width, seed=2)]
        ours = encode(x, clip.Prompts(tokens, deep))
        assert relative_error(ours, plain(model, x, tokens, deep)) < 1e-12


@pytest.mark.parametrize("text", [True, False])
def test_a_block_takes_a_tensor_or_a_list(text, old, weights):
    model = clip.build_model(weights, old.design_of_maple(2)).double()
    blocks = (model.transformer if text else model.visual.transformer).resblocks
    x, width = random(11, 3, 64 if text else 128).double(), 64 if text else 128
    deep = [random(2, width, seed=1), random(3, 2, width, seed=2)]

    def right(block, x, tokens=None):
        if tokens is not None:
            x = x.clone()
            x[slice(1, 3) if text else slice(9, 11)] = tokens.expand(3, -1, -1).transpose(0, 1).double()
        return plain_block(block, x, causal=text)

    # block, counter, the tokens that have to enter, the counter after it
    for k, counter, tokens, after in [
        (0, 0, None, 0),
        (1, 0, deep[0], 1),
        (2, 0, deep[0], 1),
        (2, 1, deep[1], 2),
        (2, 2, None, 2),
    ]:
        y, same, now = blocks[k]([x, deep, counter])
        assert same is deep
        assert now == after
        assert relative_error(y, right(blocks[k], x, tokens)) < 1e-12
        assert relative_error(blocks[k](x), right(blocks[k], x)) < 1e-12
    assert blocks[1]([x, [], 0])[2] == 0
    with pytest.raises(ValueError, match=r"deep_prompts\[0\] holds 3 tokens; allowed are 2, .*maple_length"):
        blocks[1]([x, [random(3, width)], 0])


def test_attention_of_a_block_alone(old, weights):
    model = clip.build_model(weights, IVLP).double()
    for transformer, width, length in ((model.transformer, 64, 77), (model.visual.transformer, 128, 5)):
        block, x = transformer.resblocks[0], random(length, 2, width).double()
        hidden = x + block.attention(block.ln_1(x))
        assert relative_error(hidden + block.mlp(block.ln_2(hidden)), block(x)) < 1e-12
        own = clip.model.ResidualAttentionBlock(width, 2, None)  # also of a block that old code makes itself
        assert own.attention(random(length, 2, width)).shape == (length, 2, width)


def test_blocks_can_be_hooked_and_put_in_place_of_others(old, weights):
    class Doubled(nn.Module):
        """As old code wraps a block: knows tensors only."""

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(2 * x)

    model = clip.build_model(weights).double()
    seen = []
    model.visual.transformer.resblocks[1].register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    images = random(2, 3, 32, 32).double()
    before = model.encode_image(images)
    assert [tuple(tensor.shape) for tensor in seen[0]] == [(5, 2, 128)] * 2
    model.visual.transformer.resblocks[2] = Doubled(model.visual.transformer.resblocks[2])
    x = plain_block(model.visual.transformer.resblocks[2].block, 2 * seen[0][1], causal=False)[0]
    right = model.visual.ln_post(x) @ model.visual.proj
    assert relative_error(model.encode_image(images), right) < 1e-12
    assert relative_error(before, right) > 1e-3


def test_a_copy_stands_by_itself(old, weights):
    model = clip.build_model(weights, IVLP).float()
    images, text = random(2, 3, 32, 32), clip.tokenize(["a cat."])
    twin = copy.deepcopy(model)
    assert torch.equal(twin.encode_image(images), model.encode_image(images))
    assert torch.equal(twin.encode_text(text), model.encode_text(text))
    before = model.encode_image(images).clone()
    twin.visual.transformer.resblocks[1].VPT_shallow.data.copy_(random(3, 128))
    assert torch.equal(model.encode_image(images), before)
    assert relative_error(twin.encode_image(images), before) > 1e-3


def test_load_takes_design_details(old, weights, tmp_path):
    torch.save(weights, tmp_path / "weights.pt")
    model, preprocess = clip.load(str(tmp_path / "weights.pt"), device="cpu", design_details=IVLP)
    assert model.visual.VPT.shape == (3, 128)
    assert model.dtype == torch.float32
    assert preprocess.transforms[0].size == model.visual.input_resolution
    plain, _ = clip.load(str(tmp_path / "weights.pt"), "cpu", False, None)
    assert not [name for name, _ in plain.named_parameters() if "VPT" in name]


def test_words_that_a_small_checkpoint_lacks_are_named(old, weights):
    """Old code calls `token_embedding` itself; zeros for a word would be wrong numbers without an error."""
    rows = clip.tokenize("a photo of a cat.").unique().long()
    small = {key: value for key, value in weights.items() if key != "token_embedding.weight"}
    small |= {"token_embedding.rows": rows, "token_embedding.values": random(len(rows), 64)}
    for model in (clip.build_model(small), copy.deepcopy(clip.build_model(small))):
        assert model.token_embedding(clip.tokenize("a photo of a cat.")).shape == (1, 77, 64)
        with pytest.raises(ValueError, match="no 'dog'"):
            model.token_embedding(clip.tokenize("a photo of a dog."))


# --- what cannot be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": "MaPLe"}, r"design_details\['maple_length'\] is missing; .*'MaPLe' is .* 1 or more"),
        ({"trainer": "MaPLe", "maple_length": 0}, r"\['maple_length'\] is 0; .* 1 or more"),
        ({"vision_depth": -1}, r"design_details\['vision_depth'\] is -1; .*'IVLP' is .* 0 or more"),
        ({"language_depth": "3"}, r"\['language_depth'\] is '3'"),
        ({"vision_ctx": None}, r"\['vision_ctx'\] is None"),
        ({"language_ctx": 2.0}, r"\['language_ctx'\] is 2\.0"),
        ({"trainer": "VPT", "vision_depth": True}, r"\['vision_depth'\] is True; .*'VPT'"),
    ],
)
def test_values_that_cannot_be_are_refused(change, message, old, weights):
    with pytest.raises(ValueError, match=message) as refused:
        clip.build_model(weights, {**IVLP, **change})
    assert "\n" not in str(refused.value)


def test_design_details_are_a_dict(old, weights):
    with pytest.raises(ValueError, match="design_details is 'MaPLe'; allowed is a dict, or None"):
        clip.build_model(weights, "MaPLe")


def test_what_is_not_used_may_be_missing(old, weights):
    """The reference reads no number of tokens where there are none."""
    for design in (
        {"trainer": "IVLP", "vision_depth": 0, "language_depth": 1},
        {"trainer": "VPT", "vision_depth": 1, "vision_ctx": 2, "language_depth": 0},
    ):
        planted = [name for name, _ in clip.build_model(weights, design).named_parameters() if "VPT" in name]
        assert planted == ["visual.VPT"] * (design["trainer"] == "VPT")


@pytest.mark.parametrize("trainer", ["MaPLe", "VPT", "IVLP"])
def test_a_resnet_has_no_tokens(trainer, old):
    options = {"embed_dim": 32, "image_resolution": 64, "vision_width": 8, "vision_patch_size": None}
    text = {"transformer_width": 64, "transformer_heads": 1, "transformer_layers": 2}
    resnet = CLIP(vision_layers=(1, 1, 1, 1), context_length=77, vocab_size=49408, **options, **text)
    weights = randomise(resnet).state_dict()
    with pytest.raises(
        ValueError, match=rf"design_details\['trainer'\] is '{trainer}'.*ResNet.*Allowed is a ViT"
    ):
        clip.build_model(weights, {**IVLP, "trainer": trainer, "maple_length": 2})
    model = clip.build_model(weights, {**IVLP, "vision_depth": 0}).float()
    assert model.encode_image(random(1, 3, 64, 64)).shape == (1, 32)
    assert model.transformer.resblocks[1].VPT_shallow.shape == (2, 64)


# --- the plugin


def test_the_plugin_puts_these_names_in_place_and_no_others(names_before, old):
    changed = [
        {name for name, value in vars(owner).items() if names.get(name) is not value}
        for owner, names in zip(OWNERS, names_before, strict=True)
    ]
    assert changed == [
        {"build_model", "load", "legacy"},
        {"build_model", "load"},
        {"build_model"},
        {"attention"},
    ]
    legacy = sys.modules["clip.legacy"]
    assert clip.build_model is clip.clip.build_model is clip.model.build_model is legacy.build_model
    assert clip.load is clip.clip.load is legacy.load
    assert clip.model.Bottleneck is prompted_clip.resnet.Bottleneck
    assert clip.model.AttentionPool2d is prompted_clip.resnet.AttentionPool2d


def test_nothing_imports_the_plugin():
    folders = ("clip", "prompted_clip", "dassl", "datasets", "trainers", "scripts")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    assert ROOT / "clip" / "legacy.py" in files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert "legacy" not in ".".join(names).split("."), file


def run_commands(*commands: list[str]) -> str:
    """Runs commands of `train.py` one after the other in a process of their own; returns what they print."""
    program = "import json, sys, train; sys.exit(sum(map(train.command_line, json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", program, json.dumps(commands)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def job(small_dtd, golden_checkpoint, tmp_path):
    """The arguments of a short training run on OpenAI's kind of file."""
    archive = tmp_path / "ViT-Tiny.pt"
    write_archive(load_file(golden_checkpoint("tiny_public")), archive)

    def arguments(trainer: str, output: Path, *plugins: object) -> list[str]:
        words = [word for plugin in plugins for word in ("--plugin", plugin)]
        words += ["--root", small_dtd, "--seed", 1, "--trainer", trainer, "--output-dir", output]
        words += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
        words += ["--config-file", ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"]
        words += ["MODEL.BACKBONE.PATH", archive, "INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0]
        words += ["TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 3, "DATASET.NUM_SHOTS", 4]
        words += ["OPTIM.MAX_EPOCH", 1, "USE_CUDA", False]
        return [str(word) for word in words]

    return arguments


def saved(output: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(output / "MultiModalPromptLearner" / "model.pth.tar-1", weights_only=True)
    return checkpoint["state_dict"]


def test_an_old_trainer_runs_by_the_command_line(job, tmp_path):
    train = job("OldMaPLe", tmp_path / "old", "clip.legacy", OLD_TRAINERS)
    test = job("OldMaPLe", tmp_path / "test")  # the plugins are there already
    printed = run_commands(train, ["--eval-only", "--model-dir", str(tmp_path / "old"), *test])
    learned = saved(tmp_path / "old")
    assert learned["prompt_learner.ctx"].shape == (2, 64)
    assert any(key.startswith("image_encoder.") for key in learned), "the whole model, as it was registered"
    assert printed.count("* total: 12") == 2
    accuracies = [line for line in printed.splitlines() if line.startswith("* accuracy")]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]


def test_own_trainers_learn_the_same_with_it(job, tmp_path):
    without, with_it = tmp_path / "without", tmp_path / "with"
    run_commands(job("MaPLe", without), job("MaPLe", with_it, "clip.legacy"))
    right, ours = saved(without), saved(with_it)
    tensors = [key for key, value in right.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) >= 9
    assert all(torch.equal(ours[key], right[key]) for key in tensors)
