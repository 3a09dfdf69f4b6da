"""Every registered trainer of this project: what learns, and that it trains, saves, goes on, loads and tests.

A new method is tested by being registered.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT, relative_error
from tolerances import half_precision_error

import prompted_clip
import trainers
from dassl.engine import TRAINER_REGISTRY
from experiments.sweeps.wanted import Wanted
from train import command_line
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.cocoop import ConditionalContextLearner
from trainers.coop import ContextLearner
from trainers.maple import MultiModalPromptLearner

NAMES = ["abyssinian", "american_bulldog", "bengal", "german shorthaired"]
METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), CLIPPromptTrainer)
    and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
]
LEARNING = [name for name in METHODS if not name.startswith("Zeroshot")]
# Settings that change what is learned, beside each method's defaults.
FORMS: dict[str, list[dict[str, Any]]] = {
    "CoOp": [
        {"N_CTX": 4, "CLASS_TOKEN_POSITION": "middle"},
        {"N_CTX": 3, "CLASS_TOKEN_POSITION": "front"},
        {"N_CTX": 2, "CSC": True},
        {"CSC": True, "CLASS_TOKEN_POSITION": "middle"},
        {"CTX_INIT": "a photo of a"},
    ],
    "CoCoOp": [{"CTX_INIT": "a photo of a"}, {"META_NET_WIDTH": 8, "META_NET_LAYERS": 4}],
    "IVLP": [{"N_CTX_VISION": 0, "PROMPT_DEPTH_VISION": 0}, {"N_CTX_TEXT": 6, "PROMPT_DEPTH_TEXT": 1}],
    "VPT": [{"N_CTX_VISION": 4, "PROMPT_DEPTH_VISION": 3}],
    "CLIPLoRA": [
        {"ENCODER": "text", "POSITION": "half-up", "PARAMS": "qo"},
        {"ENCODER": "vision", "DROPOUT_MASKS": "shared", "R": 1},
    ],
    "ProGrad": [
        {"CTX_INIT": "", "CSC": True},
        {"CTX_INIT": "a photo of a", "CLASS_TOKEN_POSITION": "middle"},
    ],
    "TCP": [{"CTX_INIT": "a photo of a", "BLOCK": 3}],
    "MMA": [{"ADAPTER_START": 3, "ADAPTER_END": 3, "GRADIENT": "true"}],
    "MMRL": [{"REP_LAYERS": (1, 3), "N_REP_TOKENS": 1, "TEST_LOGITS": "class"}, {"TEST_LOGITS": "fused"}],
    "MMRLpp": [{"REP_LAYERS": (1, 3), "BETA": 0.3, "BETA_TEST": 0.9}],
    "CoPrompt": [{"DISTILL": "mse", "COUPLING": "shared"}],
    "TwoStageFS": [{"PEFT": "bitfit"}, {"PEFT": "lora", "MODALITY": "vision"}, {"CLASSIFIER": "text"}],
    "CLAP": [{"CONSTRAINT": "balanced"}],
    "CLIPAdapter": [{"RATIO": 1.0, "REDUCTION": 1}],
    "LPPlusPlus": [{"ALPHA_GRADIENT": "true"}],
    "TaskRes": [{"ALPHA": 1.0, "KEEP_UNDERSCORES": False}],
    "TipAdapter": [{"ALPHA": 5.0, "BETA": 2.5}],
    "MaPLe": [
        {"PROMPT_DEPTH": 1},
        {"COUPLING": "shared"},
        {"PROMPT_DEPTH_TEXT": 2},
        {"PROMPT_DEPTH_TEXT": 0},
        {"PROMPT_DEPTH_VISION": 0},
        {"DIRECTION": "image_to_text"},
        {"DIRECTION": "image_to_text", "PROMPT_DEPTH_VISION": 2, "COUPLING": "shared"},
        {"DEEP_INIT": "words"},
    ],
}
CASES = [(name, form) for name in METHODS for form in ({}, *FORMS.get(name, []))]
# As deep as the tiny encoders: a prompt beyond them is not used. And LP++ learns all it has in each step.
DEPTHS = {"PROMPT_DEPTH": 4, "PROMPT_DEPTH_TEXT": 4, "PROMPT_DEPTH_VISION": 4, "ALPHA_EVERY": 1}
# What a method needs beside the settings that all are tried with.
NEEDED: dict[str, list[Any]] = {
    "CoPrompt": ["TRAINER.COPROMPT.DESCRIPTIONS", "template"],
    # The stages have epochs of their own: one and two of the three.
    "TwoStageFS": ["OPTIM.WARMUP_EPOCH", 0, "TRAINER.TWOSTAGEFS.FRACTION", 0.34],
}


def options_of(name: str, precision: str, **form: Any) -> list[Any]:
    settings = TRAINER_REGISTRY.get(name).settings
    values = {key: depth for key, depth in DEPTHS.items() if settings.get(key, 0) > 1}
    values |= {"PREC": precision, **form}
    own = [item for key, value in values.items() for item in (f"TRAINER.{name.upper()}.{key}", value)]
    return [*NEEDED.get(name, []), *own]


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str, precision: str = "fp32", **form: Any) -> Any:
        torch.manual_seed(0)
        options = ["INPUT.SIZE", (32, 32), *options_of(name, precision, **form)]
        return bare_trainer(name, golden_checkpoint("tiny_public"), NAMES, options, "vit_b16.yaml")

    return make


def batch(images: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "img": torch.randn(images, 3, 32, 32, generator=generator),
        "label": torch.arange(images) % len(NAMES),
    }


def test_all_methods_of_the_papers_are_registered():
    assert {
        "ZeroshotCLIP",
        "ZeroshotCLIP2",
        "CoOp",
        "CoCoOp",
        "KgCoOp",
        "VPT",
        "IVLP",
        "MaPLe",
        "PromptSRC",
        "MaPLeSRC",
    } <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_imported_from_trainers(name):
    assert getattr(trainers, name) is TRAINER_REGISTRY.get(name)
    assert name in trainers.__all__


@pytest.mark.parametrize(("name", "form"), CASES)
def test_each_learned_tensor_gets_a_gradient_and_each_frozen_one_none(name, form, make_trainer):
    run = make_trainer(name, **form)
    named = dict(run.model.named_parameters())
    learned = [key for key in named if key.startswith("prompt_learner.")]
    assert [key for key, tensor in named.items() if tensor.requires_grad] == learned
    frozen = {key: tensor.clone() for key, tensor in named.items() if key not in learned}
    if not learned:
        assert run.get_model_names() == []
        return
    optimised = {id(tensor) for group in run.optim.param_groups for tensor in group["params"]}
    assert optimised == {id(named[key]) for key in learned}

    # From noise, so that no term of the loss stands at its optimum; biases above 0, so that ReLUs are open.
    for key in learned:
        torch.nn.init.normal_(named[key], std=0.1)
        if key.endswith("bias"):
            named[key].data.abs_()
    reached = set()
    run.num_batches, run.batch_idx = 2, 0
    for phase in range(len(run.phase_steps())):
        run.begin_phase(phase)
        run.set_model_mode("train")
        before = {key: named[key].detach().clone() for key in learned}
        summary = run.forward_backward(batch())
        assert all(torch.isfinite(torch.tensor(value)) for value in summary.values())
        for key in learned:
            moved = not torch.equal(named[key], before[key])
            assert moved == (named[key].grad is not None), f"{key} moved without a gradient, or did not move"
            if moved:
                assert named[key].grad.abs().max() > 0, f"the gradient of {key} is 0"
                reached.add(key)
    assert reached == set(learned)
    for key in frozen:
        assert named[key].grad is None, f"{key} has a gradient"
        assert torch.equal(named[key], frozen[key]), f"{key} moved"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "amp"])
@pytest.mark.parametrize("name", METHODS)
def test_logits_are_float32_and_what_is_learned_stays_float32(name, precision, make_trainer):
    run = make_trainer(name, precision)
    logits = run.model_inference(batch()["img"])
    assert logits.shape == (3, len(NAMES))
    assert logits.dtype == torch.float32
    assert {tensor.dtype for tensor in run.model.prompt_learner.parameters()} <= {torch.float32}
    full = make_trainer(name)
    error = relative_error(logits, full.model_inference(batch()["img"]))
    assert error < (1e-5 if precision == "fp32" else half_precision_error(precision, full.model.clip_model))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_text_is_encoded_once_a_test_unless_it_depends_on_the_image(name, form, make_trainer, monkeypatch):
    run = make_trainer(name, **form)
    run.test_loader = [batch(), batch()]
    calls = []
    encode = prompted_clip.SharedPrefixText.encode
    monkeypatch.setattr(
        prompted_clip.SharedPrefixText,
        "encode",
        lambda *words, **how: calls.append(1) or encode(*words, **how),
    )
    run.test()
    learner = run.model.prompt_learner
    # Vectors that are learned in place of text features need no text.
    once = 0 if hasattr(learner, "prototypes") else len(getattr(learner, "ensemble", [1]))
    assert len(calls) == (2 if learner.conditional else once)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_one_class_and_one_image(name, form, bare_trainer, golden_checkpoint):
    options = ["INPUT.SIZE", (32, 32), *options_of(name, "fp32", **form)]
    run = bare_trainer(name, golden_checkpoint("tiny_public"), ["cat"], options, "vit_b16.yaml")
    assert run.model(batch(1)["img"]).shape == (1, 1)


@pytest.mark.parametrize("name", [name for name in METHODS if name in ("VPT", "IVLP", "MaPLe", "PromptSRC")])
def test_tokens_for_a_resnet_are_refused(name, make_trainer, bare_trainer, tmp_path):
    with pytest.raises(ValueError, match=f"'RN50', a ResNet: {name} puts tokens .* needs a ViT, such as"):
        bare_trainer(name, tmp_path / "none.pt", NAMES, ["MODEL.BACKBONE.NAME", "RN50"], "vit_b16.yaml")


# --- a run


@pytest.fixture
def job(tmp_path, small_dtd, golden_checkpoint):
    def flags(name: str, output: str, precision: str, *options: Any, more: tuple = ()) -> list[str]:
        words: list[Any] = ["--root", small_dtd, "--seed", 1, "--trainer", name]
        words += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
        words += ["--config-file", ROOT / "configs/trainers/vit_b16.yaml", "--output-dir", tmp_path / output]
        words += [*more, "MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
        words += ["DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2, "OPTIM.LR", 0.002, "USE_CUDA", False]
        words += ["OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 1]
        return [str(word) for word in (*words, *options_of(name, precision), *options)]

    return flags


def saved_tensors(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    (file,) = folder.glob(f"*/model.pth.tar-{epoch}")
    state = torch.load(file, weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def accuracy(printed: str) -> list[str]:
    return re.findall(r"^\* accuracy: ([\d.]+)%$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in LEARNING), ("MaPLe", "amp"), ("MaPLe", "bf16")]
)
def test_trains_saves_goes_on_loads_and_tests(name, precision, job, tmp_path, capsys, monkeypatch):
    whole = job(name, "whole", precision)
    assert command_line(whole) == 0
    (trained,) = accuracy(capsys.readouterr().out)

    # Interrupted in its last epoch and started again, it ends with the same tensors.
    trainer = TRAINER_REGISTRY.get(name)
    step = trainer.forward_backward

    def stop_in_the_last_epoch(self: Any, batch: Any) -> Any:
        if self.epoch == 2 and self.batch_idx + 1 == self.num_batches:
            raise KeyboardInterrupt
        return step(self, batch)

    interrupted = job(name, "interrupted", precision)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "forward_backward", stop_in_the_last_epoch)
        assert command_line(interrupted) == 130
    assert command_line(interrupted) == 0
    printed = capsys.readouterr().out
    assert "Previous epoch: 2" in printed
    assert accuracy(printed) == [trained]
    expected = saved_tensors(tmp_path / "whole", 3)
    assert expected
    for key, tensor in saved_tensors(tmp_path / "interrupted", 3).items():
        assert torch.equal(tensor, expected[key]), key

    again = job(name, "again", precision, more=("--eval-only", "--model-dir", str(tmp_path / "whole")))
    assert command_line(again) == 0
    assert accuracy(capsys.readouterr().out) == [trained]


@pytest.mark.parametrize("precision", ["amp", "bf16"])
@pytest.mark.parametrize("name", LEARNING)
def test_trains_loads_and_tests_in_half_precision(name, precision, job, tmp_path, capsys):
    assert command_line(job(name, "whole", precision)) == 0
    again = job(name, "again", precision, more=("--eval-only", "--model-dir", str(tmp_path / "whole")))
    assert command_line(again) == 0
    trained, loaded = accuracy(capsys.readouterr().out)
    assert loaded == trained


@pytest.mark.parametrize("name", [name for name in LEARNING if not TRAINER_REGISTRY.get(name).class_specific])
def test_a_sweep_knows_what_a_test_of_other_classes_has_loaded(
    name, make_trainer, bare_trainer, golden_checkpoint, tmp_path
):
    trained = make_trainer(name)
    with torch.no_grad():
        for tensor in trained.model.prompt_learner.state_dict().values():
            tensor.add_(0.1) if isinstance(tensor, torch.Tensor) else None
    trained.save_model(0, trained.output_dir)
    options = ["INPUT.SIZE", (32, 32), *options_of(name, "fp32")]
    run = bare_trainer(name, golden_checkpoint("tiny_public"), ["cat", "dog"], options, "vit_b16.yaml")
    run.load_model(trained.output_dir)
    assert run.loaded_parts == Wanted().tested(type(run), Path(trained.output_dir), None)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LEARNING])
def test_zero_shot_tests_with_and_without_eval_only(name, job, capsys):
    assert command_line(job(name, "plain", "fp32")) == 0
    assert command_line(job(name, "eval", "amp", more=("--eval-only",))) == 0
    assert len(accuracy(capsys.readouterr().out)) == 2


# --- the published settings


PUBLISHED = {
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx"): 3_555_072,
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"): 1_185_024,
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_shared"): 403_200,
    ("CoOp", "vit_b16_ctxv1"): 2_048,
    ("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1"): 35_360,
    ("IVLP", "vit_b16_c2_ep5_batch4_2+2ctx"): 30_720,
}
# Not published; stated in the README.
COUNTED = {
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_shallow"): 395_008,
    ("VPT", "vit_b16_c2_ep5_batch4_4"): 73_728,
    ("IVLP", "vit_b16_c2_ep5_batch4_4ctx_language_only"): 24_576,
    ("PromptSRC", "vit_b16_c2_ep20_batch4_4+4ctx"): 46_080,
    ("KgCoOp", "vit_b16_ep100_ctxv1"): 2_048,
    ("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1_heavy"): 3_679_232,
    ("ProGrad", "vit_b16_ep100"): 8_192,
    ("TCP", "vit_b16"): 331_904,
    ("MMA", "vit_b16"): 674_560,
    ("MMRL", "vit_b16"): 4_992_256,
    ("MMRL", "per_dataset/eurosat"): 18_762_496,
    ("MMRLpp", "vit_b16"): 813_312,
    ("CoPrompt", "vit_b16"): 5_014_528,
    ("CoPrompt", "per_dataset/dtd"): 5_002_240,
    ("CoPrompt", "per_dataset/oxford_flowers"): 3_826_432,
    # As counted on the authors' code; a classifier of 4 classes beside 2SFS's norms.
    ("CLIPLoRA", "vit_b16"): 184_320,
    ("TwoStageFS", "vit_b16"): 61_440 + 4 * 512,
}


@pytest.fixture(scope="module")
def base_16(tmp_path_factory):
    """A CLIP with the widths and depths of ViT-B/16 and no memory behind its weights but the words'."""
    with torch.device("meta"):
        model = prompted_clip.model.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    model.token_embedding = torch.nn.Embedding.from_pretrained(torch.zeros(1, 512).expand(49408, 512))
    return model


@pytest.fixture(scope="module")
def zero_16(base_16):
    """The same with weights of 0, on the CPU and unwritten: TCP computes with them when it is built."""
    model = copy.deepcopy(base_16)
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_meta:
                zeros = torch.zeros(tensor.shape, dtype=tensor.dtype)
                owner = module._parameters if name in module._parameters else module._buffers
                owner[name] = torch.nn.Parameter(zeros, False) if owner is module._parameters else zeros
    return model


@pytest.mark.parametrize("learner", [ContextLearner, ConditionalContextLearner, MultiModalPromptLearner])
def test_a_learner_built_by_a_program_says_nothing_and_is_on_clip_s_device(learner, base_16, capsys):
    built = learner(base_16, NAMES)
    assert capsys.readouterr().out == ""
    assert {tensor.device.type for tensor in built.parameters()} == {"meta"}
    assert {tensor.device.type for tensor in built.buffers()} == {"meta"}


COOP_LOG = ["Initializing a generic context", 'Initial context: "X X"', "Number of context words (tokens): 2"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "MaPLe",
            [
                "MaPLe design: Multi-modal Prompt Learning",
                'Initial context: "a photo of a"',
                "Number of MaPLe context words (tokens): 2",
            ],
        ),
        ("CoOp", COOP_LOG),
        ("CoCoOp", COOP_LOG),
    ],
)
def test_a_run_s_log_has_the_reference_s_lines(name, lines, make_trainer, capsys):
    make_trainer(name, N_CTX=2)
    printed = capsys.readouterr().out.splitlines()
    start = printed.index("Building custom CLIP") + 1
    assert printed[start : start + 3] == lines


@pytest.mark.parametrize(("method", "learned"), [*PUBLISHED.items(), *COUNTED.items()])
def test_learned_parameters_in_the_published_settings(method, learned, zero_16, monkeypatch):
    from dassl.config import get_cfg_default
    from train import extend_cfg

    name, config = method
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/trainers" / name / f"{config}.yaml"))
    cfg.TRAINER.NAME = name
    trainer_class = TRAINER_REGISTRY.get(name)
    run = trainer_class.__new__(trainer_class)
    run.cfg, run.dm = cfg, SimpleNamespace(dataset=SimpleNamespace(template=None))
    run.check_cfg(cfg)
    learner = run.build_learner(zero_16, NAMES)
    assert sum(tensor.numel() for tensor in learner.parameters()) == learned
