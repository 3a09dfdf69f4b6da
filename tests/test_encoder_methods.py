"""ProGrad, TCP, MMA, MMRL, MMRL++ and CoPrompt: what their recorded numbers do not show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative_error
from safetensors.torch import load_file
from torch import Tensor

import prompted_clip
from dassl.engine import TRAINER_REGISTRY
from experiments.methods import config_name, read_methods
from experiments.sweeps.units import config_file
from prompted_clip.errors import MissingFileError, UserError
from trainers.mma import AdapterLearner
from trainers.mmrl import MMRL

NAMES = ["abyssinian", "american_bulldog", "bengal"]
# Keys of the authors' checkpoints that are not loaded: words, and CLIP once or twice.
DROPPED = {
    "ProGrad": ["token_prefix", "token_suffix"],
    "TCP": ["token_prefix", "token_suffix"],
    "MMA": ["token_embedding", "tokenized_prompts"],
    "MMRL": ["prompt_embeddings", "logit_scale", "image_encoder.", "text_encoder."],
    "MMRLpp": ["prompt_embeddings", "logit_scale", "image_encoder.", "text_encoder."],
    "CoPrompt": [
        "prompt_learner.token_prefix",
        "logit_scale",
        "image_encoder.",
        "text_encoder.",
        "model_distill.",
    ],
}


@pytest.fixture
def make(bare_trainer, golden_checkpoint):
    def made(name: str, **settings: Any) -> Any:
        options: list[Any] = ["INPUT.SIZE", (32, 32), f"TRAINER.{name.upper()}.PREC", "fp32"]
        for key, value in settings.items():
            options += [f"TRAINER.{name.upper()}.{key}", value]
        return bare_trainer(name, golden_checkpoint("tiny_public"), NAMES, options, "vit_b16.yaml")

    return made


def batch() -> dict[str, Tensor]:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"img": images, "label": torch.arange(3)}


def disturb(run: Any) -> None:
    for tensor in run.model.prompt_learner.parameters():
        tensor.data += 0.1 * torch.randn_like(tensor)


def step(run: Any) -> dict[str, Any]:
    run.num_batches, run.batch_idx = 2, 0
    return run.forward_backward(batch())


# --- checkpoints


def authors_tensors(golden_checkpoint: Any, prefix: str) -> dict[str, Tensor]:
    """What the authors' models keep of words and of CLIP, whole or twice, under their names."""
    weights = load_file(golden_checkpoint("tiny_public"))
    if prefix == "logit_scale":
        return {prefix: weights[prefix]}
    if not prefix.endswith("."):  # words
        return {prefix: torch.zeros(3, 1, 64)}
    if prefix == "model_distill.":
        return {f"{prefix}{key}": value for key, value in weights.items()}
    if prefix == "image_encoder.":
        return {key.replace("visual.", prefix): value for key, value in weights.items() if "visual." in key}
    own = ("transformer.", "positional_embedding", "ln_final.", "text_projection")
    return {f"{prefix}{key}": value for key, value in weights.items() if key.startswith(own)}


@pytest.mark.parametrize("name", DROPPED)
def test_a_checkpoint_of_the_authors_is_loaded(name, make, golden_checkpoint, tmp_path: Path) -> None:
    trained, fresh = make(name), make(name)
    disturb(trained)
    saved = trained._models[trained.model_name].state_dict()
    state = {key: value for key, value in saved.items() if isinstance(value, Tensor)}
    for key in DROPPED[name]:
        state |= authors_tensors(golden_checkpoint, key)
    folder = tmp_path / trained.model_name
    folder.mkdir()
    torch.save({"state_dict": state, "epoch": 5}, folder / "model.pth.tar-5")
    fresh.load_model(str(tmp_path), epoch=5)
    images = batch()["img"]
    assert torch.equal(fresh.model_inference(images), trained.model_inference(images))


@pytest.mark.parametrize(
    ("name", "key", "value"), [("MMRL", "TEST_LOGITS", "class"), ("MMRLpp", "BETA_TEST", 0.1)]
)
def test_a_test_may_have_another_rule_than_the_training(name, key, value, make, tmp_path: Path) -> None:
    trained, tested = make(name), make(name, **{key: value})
    disturb(trained)
    folder = tmp_path / trained.model_name
    folder.mkdir()
    state = {"state_dict": trained._models[trained.model_name].state_dict(), "epoch": 1}
    torch.save(state, folder / "model.pth.tar-1")
    tested.load_model(str(tmp_path))
    for run in (trained, tested):
        run.set_model_mode("eval")
    images = batch()["img"]
    assert not torch.allclose(tested.model_inference(images), trained.model_inference(images), rtol=1e-3)
    other = make(name, ALPHA=0.1)
    with pytest.raises(ValueError, match=r"ALPHA was 0\.7, here 0\.1"):
        other.load_model(str(tmp_path))


# --- what is published, and its sound alternative


def test_mma_s_published_gradient_is_that_of_the_loss_divided_by_the_scale(make) -> None:
    gradients = {}
    for rule in ("published", "true"):
        torch.manual_seed(0)
        run = make("MMA", GRADIENT=rule, ADAPTER_SCALE=0.1)
        step(run)
        gradients[rule] = {key: each.grad for key, each in run.model.prompt_learner.named_parameters()}
        if rule == "true":  # the loss, a little further along one direction
            tensor = run.model.prompt_learner.text_adapter["4"]["up"].weight
            gradient, change = tensor.grad, torch.randn_like(tensor)
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor += sign * 1e-2 * change
                    losses.append(run.losses(*run.parse_batch_train(batch()))["loss_ce"].double())
                    tensor -= sign * 1e-2 * change
            assert float((losses[0] - losses[1]) / 2e-2) == pytest.approx(
                float((gradient * change).sum()), rel=2e-2
            )
    for key, gradient in gradients["true"].items():
        assert relative_error(gradients["published"][key], gradient / 0.1) <= 1e-5, key


def test_a_method_says_what_its_test_is_told(make) -> None:
    for name in ("MMRL", "MMRLpp"):
        assert "trained on" in MMRL.oracle(make("MMRL").cfg)
        for rule in ("class", "fused"):
            run = make(name, TEST_LOGITS=rule)
            assert run.oracle(run.cfg) == ""


def test_blend_of_a_test(make) -> None:
    """BETA_TEST is the share in a test alone."""
    torch.manual_seed(0)
    run, other = make("MMRLpp", BETA=0.9, BETA_TEST=0.2), make("MMRLpp", BETA=0.2)
    disturb(run)
    other.model.prompt_learner.load_state_dict(run.model.prompt_learner.state_dict())
    images = batch()["img"]
    same = []
    for mode in ("eval", "train"):
        for each in (run, other):
            each.set_model_mode(mode)
        same.append(torch.equal(run.model(images), other.model(images)))
    assert same == [True, False]


def test_blocks_of_an_encoder_of_twelve_are_those_published(bare_trainer) -> None:
    with torch.device("meta"):
        model = prompted_clip.model.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    found = {}
    for name in ("TCP", "MMA", "MMRL"):
        run = TRAINER_REGISTRY.get(name).__new__(TRAINER_REGISTRY.get(name))
        run.cfg = _defaults(name)
        run.dm = type("DM", (), {"dataset": type("Data", (), {"template": None})})
        found[name] = run.build_learner(model, NAMES)
    assert found["TCP"].block == 8
    assert isinstance(found["MMA"], AdapterLearner)
    assert list(found["MMA"].shared_adapter) == [str(block) for block in range(5, 13)]
    assert found["MMRL"].blocks == [6, 7, 8, 9, 10, 11, 12]


def _defaults(name: str) -> Any:
    from dassl.config import get_cfg_default
    from train import extend_cfg

    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.TRAINER.NAME = name
    return cfg


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "MMA",
            {"ADAPTER_START": 0},
            "are 0 and -1; allowed are blocks 1 to 4, and -1.*not used in the paper",
        ),
        ("MMA", {"ADAPTER_END": 5}, "are -1 and 5; allowed are blocks 1 to 4"),
        ("MMA", {"ADAPTER_SCALE": 0.0}, "ADAPTER_SCALE is 0.0; allowed is above 0"),
        ("MMA", {"GRADIENT": "mine"}, "GRADIENT is 'mine'; allowed are published, true"),
        ("MMRL", {"REP_LAYERS": (2, 5)}, r"REP_LAYERS is \(2, 5\); allowed are blocks from 1 to 4"),
        ("MMRL", {"REP_LAYERS": (3, 2)}, "each once and in order"),
        ("MMRL", {"TEST_LOGITS": "both"}, "TEST_LOGITS is 'both'; allowed are published, class, fused"),
        ("MMRLpp", {"BETA": -1.0}, r"BETA is -1\.0; allowed is 0 to 1\."),
        ("MMRLpp", {"BETA_TEST": 2.0}, r"BETA_TEST is 2\.0; allowed is 0 to 1, and -1"),
        ("TCP", {"BLOCK": 4}, "BLOCK is 4; this text encoder has 4 blocks, allowed are 1 to 3"),
        (
            "ProGrad",
            {"N_CTX": 3},
            'N_CTX is 3; allowed is 4 or more: the context starts from the words "a photo of a"',
        ),
        ("ProGrad", {"T": 0.0}, "T is 0.0; allowed is more than 0"),
        ("CoPrompt", {"DISTILL": "l1"}, "DISTILL is 'l1'; allowed are cosine, mse"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, settings, message, make) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **settings)


# --- files of descriptions


def described(tmp_path: Path, content: Any) -> str:
    (tmp_path / "sentences.json").write_text(json.dumps(content))
    return str(tmp_path / "sentences.json")


GOOD = {name.replace("_", " "): [f"a {name} that sleeps", f"the {name} runs"] for name in NAMES}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "bengal": ["one alone"]}, "has 1 sentences for 'bengal'; 'abyssinian' has 2"),
        ({**GOOD, "bengal": "a text"}, "has no list of sentences for 'bengal'"),
        ({"bengal": ["a cat"]}, "has no sentences for abyssinian, american bulldog. Add them"),
        ([], "no object of class names"),
        ({**GOOD, "bengal": ["word " * 80, "a cat"]}, "a sentence is too long for the text encoder"),
    ],
)
def test_descriptions_that_are_not_as_many_for_each_class_are_refused(
    content, message, make, tmp_path
) -> None:
    run = make("CoPrompt", DESCRIPTIONS=described(tmp_path, content))
    with pytest.raises(UserError, match=message):
        run.before_train()


def test_a_training_needs_descriptions_and_a_test_does_not(make, tmp_path: Path) -> None:
    run = make("CoPrompt")
    assert run.model_inference(batch()["img"]).shape == (3, 3)
    with pytest.raises(UserError, match=r"DESCRIPTIONS is empty; a training needs a json file"):
        run.before_train()
    with pytest.raises(MissingFileError, match=r"nothing\.json': there is no such file"):
        make("CoPrompt", DESCRIPTIONS="nothing.json").before_train()


def test_the_content_of_descriptions_is_part_of_a_run_s_identity(make, tmp_path: Path) -> None:
    path = described(tmp_path, GOOD)
    before = make("CoPrompt", DESCRIPTIONS=path).model_parts()["descriptions"]
    elsewhere = tmp_path / "copied.json"
    elsewhere.write_bytes(Path(path).read_bytes())
    assert make("CoPrompt", DESCRIPTIONS=str(elsewhere)).model_parts()["descriptions"] == before
    described(tmp_path, {**GOOD, "bengal": ["another", "sentence"]})
    assert make("CoPrompt", DESCRIPTIONS=path).model_parts()["descriptions"] != before


def test_each_step_takes_one_sentence_of_every_class(make, tmp_path: Path) -> None:
    run = make("CoPrompt", DESCRIPTIONS=described(tmp_path, GOOD))
    drawn = {int(run.parse_batch_train(batch())[2]) for _ in range(30)}
    assert drawn == {0, 1}
    alone = {name: sentences[:1] for name, sentences in GOOD.items()}
    other = make("CoPrompt", DESCRIPTIONS=described(tmp_path, alone))
    assert torch.equal(run.sentence_features[0], other.sentence_features[0])


# --- settings for each dataset


def test_a_method_may_have_a_file_for_each_dataset() -> None:
    methods = {method.key: method for method in read_methods()}
    mmrl = methods["MMRL"]
    assert mmrl.config("base2new", "dtd", 16) == "per_dataset/dtd"
    assert mmrl.config("few_shot", "dtd", 4) == "per_dataset_few_shot/dtd"
    assert {"per_dataset/dtd", "per_dataset_few_shot/dtd", "vit_b16_cross_datasets"} <= mmrl.configs
    assert methods["MMRL-one"].config("base2new", "dtd", 16) == "vit_b16"
    with pytest.raises(
        MissingFileError, match=r"no configs.*per_dataset.*mine\.yaml; in its folder are caltech101"
    ):
        config_file("trainers", f"MMRL/{mmrl.config('base2new', 'mine', 16)}.yaml")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("configs/trainers/MMRL/per_dataset/dtd.yaml", "per_dataset/dtd"),
        ("/somewhere/configs/trainers/MMRL/vit_b16.yaml", "vit_b16"),
        ("output/MMRL/mine.yaml", "mine"),
        ("", ""),
    ],
)
def test_the_name_of_a_configuration(file: str, name: str) -> None:
    assert config_name(file, "MMRL") == name
