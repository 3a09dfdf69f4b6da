"""The steps of several seeds at once: each seed's are those of its run by itself, replayed or not."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import relative_error
from stand_in_gpu import StandIn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.seeds_together import Seed, SeedsTogether
from trainers.step_graph import WARM_UPS, ReplayedStep

NOTICE = "The training step is not replayed as a CUDA graph: "
NAMES = ["abyssinian", "american_bulldog", "bengal", "german shorthaired"]
# Settings that change what the encoders are given, beside each method's defaults.
FORMS: dict[str, list[dict[str, Any]]] = {
    "CoOp": [{"CLASS_TOKEN_POSITION": "middle"}, {"CSC": True}],
    "MaPLe": [{"PROMPT_DEPTH": 1}, {"PROMPT_DEPTH_TEXT": 0}, {"PROMPT_DEPTH_VISION": 0}],
    "IVLP": [{"N_CTX_VISION": 0, "PROMPT_DEPTH_VISION": 0}],
}
LEARNING = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), CLIPPromptTrainer)
    and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
    and not name.startswith("Zeroshot")
]
CASES = [(name, form) for name in LEARNING for form in ({}, *FORMS.get(name, []))]


@pytest.fixture
def make_trainers(bare_trainer, golden_checkpoint):
    """Trainers of seeds 1, 2 and 3, without images, in the middle of an epoch."""

    def make(name: str, dtype: torch.dtype, **form: Any) -> list[Any]:
        options = [item for key, value in form.items() for item in (f"TRAINER.{name.upper()}.{key}", value)]
        options += ["INPUT.SIZE", (32, 32), f"TRAINER.{name.upper()}.PREC", "fp32"]
        trainers = []
        for seed in (1, 2, 3):
            torch.manual_seed(seed)
            trainer = bare_trainer(name, golden_checkpoint("tiny_public"), NAMES, options, "vit_b16.yaml")
            trainer.model.to(dtype)
            for tensor in trainer.model.prompt_learner.parameters():
                tensor.data.normal_(std=0.1)
            trainer.num_batches, trainer.batch_idx = 100, 0
            trainers.append(trainer)
        return trainers

    return make


def batch(images: int, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.randn(images, 3, 32, 32, generator=generator, dtype=dtype),
        "label": torch.randint(len(NAMES), (images,), generator=generator),
    }


def joined(trainers: list[Any]) -> SeedsTogether:
    seeds = [Seed(number, sys.stdout) for number in range(1, 1 + len(trainers))]
    for seed, trainer in zip(seeds, trainers, strict=True):
        seed.trainer = trainer
    return SeedsTogether(seeds)


def assert_step_as_alone(
    together: SeedsTogether, trainers: list[Any], alone: list[Any], batches: list[Any], tolerance: float
) -> None:
    """Takes a step of each, from equal tensors."""
    for trainer, other in zip(trainers, alone, strict=True):
        other.model.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
    summaries = together.step(trainers, batches)
    for trainer, other, images, summary in zip(trainers, alone, batches, summaries, strict=True):
        expected = other.forward_backward(images)
        assert summary.keys() == expected.keys()
        for key, value in expected.items():
            assert summary[key].item() == pytest.approx(value, rel=tolerance, abs=tolerance)
        pairs = zip(
            trainer.model.prompt_learner.named_parameters(),
            other.model.prompt_learner.parameters(),
            strict=True,
        )
        for (key, ours), right in pairs:
            assert (ours.grad is None) == (right.grad is None), key
            if right.grad is not None and right.grad.any():
                assert relative_error(ours.grad, right.grad) < tolerance, key
                assert ours.grad.stride() == right.grad.stride(), key


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(("name", "form"), CASES)
def test_each_step_s_gradients_are_those_of_the_run_by_itself(name, form, dtype, tolerance, make_trainers):
    trainers, alone = make_trainers(name, dtype, **form), make_trainers(name, dtype, **form)
    together = joined(trainers)
    assert len({id(trainer.model.clip_model) for trainer in trainers}) == 1
    for step in range(3):
        # The last batch of an epoch may be smaller.
        batches = [batch(size, 10 * step + size, dtype) for size in (3, 2, 4)]
        assert_step_as_alone(together, trainers, alone, batches, tolerance)


def replayed(together: SeedsTogether, trainers: list[Any]) -> StandIn:
    """Lets a stand-in for a GPU replay the steps."""
    gpu = StandIn()
    together.step.begin_epoch(trainers)
    together.step.replayed_step = ReplayedStep(together.step.gradient_step, 1e-3, gpu)  # type: ignore[arg-type]
    return gpu


@pytest.mark.parametrize(
    ("name", "form", "scaled", "dtype", "tolerance"),
    [
        *((*case, False, torch.float64, 1e-10) for case in CASES),
        ("MaPLe", {}, True, torch.float64, 1e-10),
        ("MaPLe", {}, True, torch.float32, 1e-4),
        ("PromptSRC", {}, True, torch.float32, 1e-4),
    ],
)
def test_replayed_steps_are_those_of_the_run_by_itself(
    name, form, scaled, dtype, tolerance, make_trainers, capsys
):
    trainers, alone = make_trainers(name, dtype, **form), make_trainers(name, dtype, **form)
    together = joined(trainers)
    gpu = replayed(together, trainers)
    for trainer, other, exponent in zip(trainers, alone, (4, 10, 16), strict=True):
        for each in (trainer, other):  # each seed has a scale of its own, which grows
            each.scaler = torch.amp.GradScaler(
                "cpu", enabled=scaled, init_scale=2.0**exponent, growth_interval=2
            )
    for step in range(WARM_UPS + 3):
        batches = [batch(size, 10 * step + size, dtype) for size in (3, 2, 4)]
        assert_step_as_alone(together, trainers, alone, batches, tolerance)
    assert gpu.replays == 3
    batches = [batch(size, size, dtype) for size in (3, 2, 1)]  # one is not complete
    assert_step_as_alone(together, trainers, alone, batches, tolerance)
    # One seed has no batch left; what it did last changes nothing.
    assert_step_as_alone(together, trainers[:2], alone[:2], batches[:2], tolerance)
    assert gpu.replays == 3
    assert NOTICE not in capsys.readouterr().out


def test_a_scale_that_is_too_large_skips_the_step_of_its_seed_alone(make_trainers):
    trainers = make_trainers("CoOp", torch.float32)
    together = joined(trainers)
    replayed(together, trainers)
    for trainer in trainers:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    batches = [batch(2, seed, torch.float32) for seed in (1, 2, 3)]
    for _ in range(WARM_UPS + 2):
        together.step(trainers, batches)
    trainers[1].scaler.update(2.0**127)
    before = [trainer.model.prompt_learner.ctx.clone() for trainer in trainers]
    together.step(trainers, batches)
    moved = [
        not torch.equal(trainer.model.prompt_learner.ctx, old)
        for trainer, old in zip(trainers, before, strict=True)
    ]
    assert moved == [True, False, True]
    assert [trainer.scaler.get_scale() for trainer in trainers] == [2.0**10, 2.0**126, 2.0**10]


class TestWhatIsReplayed:
    """On a machine that seems to have a GPU."""

    @pytest.fixture
    def trainers(self, make_trainers, monkeypatch):
        monkeypatch.setattr("trainers.clip_trainer.Gpu", lambda device: StandIn())
        made = make_trainers("MaPLe", torch.float32)
        for trainer in made:
            trainer.device = SimpleNamespace(type="cuda")
        return made

    def test_steps_of_all_that_train_in_an_epoch(self, trainers, capsys):
        step = joined(trainers).step
        kept = []
        for those in (trainers[:2], trainers[:2], trainers):  # the last was behind, for an epoch
            step.begin_epoch(those)
            assert step.replayed_step is not None
            kept.append(step.replayed_step)
        assert kept[0] is kept[1] is not kept[2]
        assert NOTICE not in capsys.readouterr().out

    def test_not_where_it_is_off(self, trainers, capsys):
        for trainer in trainers:
            trainer.cfg.defrost()
            trainer.cfg.TRAIN.CUDA_GRAPHS = "off"
        step = joined(trainers).step
        step.begin_epoch(trainers)
        assert step.replayed_step is None
        assert NOTICE not in capsys.readouterr().out

    def test_not_where_one_of_them_may_not(self, trainers, capsys):
        trainers[2].model.prompt_learner.ctx.register_hook(lambda gradient: 2 * gradient)
        step = joined(trainers).step
        for _ in range(2):
            step.begin_epoch(trainers)
        assert step.replayed_step is None
        assert capsys.readouterr().out.count(f"{NOTICE}there are hooks on gradients\n") == 1


def test_the_frozen_encoders_run_once_a_step(make_trainers, monkeypatch):
    """PromptSRC asks for each image twice, with prompts and without, and for its classes' templates once."""
    trainers = make_trainers("PromptSRC", torch.float64)
    together = joined(trainers)
    assert trainers[0].clip_text_features is trainers[2].clip_text_features
    seen = []
    encode_image = CLIP.encode_image

    def counted(self: CLIP, image: torch.Tensor, *prompts: Any) -> torch.Tensor:
        seen.append(len(image))
        return encode_image(self, image, *prompts)

    monkeypatch.setattr(CLIP, "encode_image", counted)
    together.step(trainers, [batch(2, seed, torch.float64) for seed in (1, 2, 3)])
    assert seen == [6, 6]


def test_seeds_with_other_classes_are_refused(make_trainers):
    trainers = make_trainers("CoOp", torch.float32)
    trainers[1].dm.dataset.classnames = NAMES[:3]
    with pytest.raises(ValueError, match="other classes for seed 2 than for seed 1"):
        joined(trainers)
