"""`train.py --seeds 1 2`: each seed's run is the one that it would be by itself."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers import ROOT, relative_error

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from experiments.jobs import IN_USE, LOCK_FILE, differences
from experiments.seeds import of_each_seed
from train import build_parser, command_line
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.maple import MaPLe
from trainers.seeds_together import Seed, SeedsTogether

# Python 3.12 and later warn where a process with threads forks, which a loader with workers does.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

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


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """TensorBoard takes seconds to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


# --- a step


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


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(("name", "form"), CASES)
def test_each_step_s_gradients_are_those_of_the_run_by_itself(name, form, dtype, tolerance, make_trainers):
    trainers, alone = make_trainers(name, dtype, **form), make_trainers(name, dtype, **form)
    together = joined(trainers)
    assert len({id(trainer.model.clip_model) for trainer in trainers}) == 1
    for step in range(3):
        for trainer, other in zip(trainers, alone, strict=True):  # from equal state
            other.model.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
        # The last batch of an epoch may be smaller.
        batches = [batch(size, 10 * step + size, dtype) for size in (3, 2, 4)]
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


# --- whole runs


@pytest.fixture
def job(tmp_path, small_dtd, golden_checkpoint):
    """Flags of a short training run; options go behind."""

    def flags(
        seeds: tuple, output: str, *options: object, trainer: str = "MaPLe", more: tuple = ()
    ) -> list[str]:
        words = ["--root", small_dtd, "--trainer", trainer, "--output-dir", tmp_path / output, *seeds, *more]
        words += ["--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"]
        words += ["--config-file", ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"]
        words += ["MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
        words += ["DATALOADER.NUM_WORKERS", 0, f"TRAINER.{trainer.upper()}.PREC", "fp32", "USE_CUDA", False]
        words += ["DATASET.NUM_SHOTS", 3, "OPTIM.MAX_EPOCH", 3, "TRAIN.PRINT_FREQ", 1, *options]
        return [str(word) for word in words]

    return flags


@pytest.fixture
def drawn(monkeypatch) -> dict[str, list[tuple[list[str], torch.Tensor]]]:
    """By folder of results: the paths and the pixels of each training batch."""
    seen: dict[str, list] = defaultdict(list)
    parse = CLIPPromptTrainer.parse_batch_train

    def parse_batch_train(self: Any, batch: Any) -> Any:
        seen[Path(self.output_dir).parent.name + self.output_dir[-1]].append((batch["impath"], batch["img"]))
        return parse(self, batch)

    monkeypatch.setattr(CLIPPromptTrainer, "parse_batch_train", parse_batch_train)
    return seen


def learned(folder: Path, epoch: int = 3) -> dict[str, torch.Tensor]:
    (file,) = folder.glob(f"*/model.pth.tar-{epoch}")
    state = torch.load(file, weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def assert_same_run(one: Path, other: Path) -> None:
    ours, right = learned(one), learned(other)
    assert ours.keys() == right.keys()
    for key, value in right.items():
        assert relative_error(ours[key], value) < 1e-4, key


@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        ("MaPLe", ()),
        ("MaPLe", ("DATALOADER.NUM_WORKERS", 2)),
        ("MaPLe", ("DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", 2)),
        ("PromptSRC", ("TEST.FINAL_MODEL", "best_val")),
    ],
)
def test_each_seed_s_run_is_the_one_by_itself(trainer, options, job, tmp_path, drawn):
    assert command_line(job(("--seeds", 1, 2), "both/seed{seed}", *options, trainer=trainer)) == 0
    for seed in (1, 2):
        assert command_line(job(("--seed", seed), f"alone/seed{seed}", *options, trainer=trainer)) == 0
        together, alone = tmp_path / f"both/seed{seed}", tmp_path / f"alone/seed{seed}"
        assert len(drawn[f"both{seed}"]) == len(drawn[f"alone{seed}"]) > 0
        for ours, right in zip(drawn[f"both{seed}"], drawn[f"alone{seed}"], strict=True):
            assert ours[0] == right[0], "the same images in the same order"
            assert torch.equal(ours[1], right[1]), "with the same augmentation"
        assert_same_run(together, alone)
        assert (together / "few_shot.json").read_text() == (alone / "few_shot.json").read_text()
        ours, right = (json.loads((folder / "result.json").read_text()) for folder in (together, alone))
        for key in ("seed", "sample_sha256", "trained_on", "total", "epochs", "learned_parameters"):
            assert ours[key] == right[key]
        assert ours["correct"] == pytest.approx(right["correct"], abs=1)
        assert differences(right["settings"], ours) == []
    assert drawn["both1"][0][0] != drawn["both2"][0][0]


@pytest.mark.parametrize("precision", ["bf16", "amp"])
def test_each_precision_trains_as_by_itself(precision, job, tmp_path):
    options = ("TRAINER.MAPLE.PREC", precision, "OPTIM.MAX_EPOCH", 1)
    assert command_line(job(("--seeds", 1, 2), "both/seed{seed}", *options)) == 0
    assert command_line(job(("--seed", 2), "alone", *options)) == 0
    ours, right = learned(tmp_path / "both/seed2", epoch=1), learned(tmp_path / "alone", epoch=1)
    for key, value in right.items():
        assert ours[key].dtype == torch.float32
        assert relative_error(ours[key], value) < 1e-4, key  # of a step at the rate of the warm-up


def test_each_seed_has_its_log_and_the_terminal_tells_them_apart(job, tmp_path, capsys):
    assert command_line(job(("--seeds", 1, 2), "seed{seed}")) == 0
    printed = capsys.readouterr().out
    assert command_line(job(("--seed", 2), "alone")) == 0
    logs = {name: (tmp_path / name / "log.txt").read_text() for name in ("seed1", "seed2", "alone")}

    def figures(log: str) -> list[str]:
        """Epoch, batch, loss and learning rate of each line; what is measured in seconds is left out."""
        found = re.findall(r"(epoch \S+ batch \S+) time .* (loss \S+) \S+ (lr \S+)", log)
        return [" ".join(each) for each in found]

    assert figures(logs["seed2"]) == figures(logs["alone"]) != figures(logs["seed1"])
    assert len(figures(logs["seed2"])) == 9
    assert "* accuracy" in logs["seed1"]
    assert "seed 1: " not in logs["seed1"]
    assert "seed 1: epoch [3/3] batch [3/3]" in printed
    assert "seed 2: epoch [3/3] batch [3/3]" in printed


def test_goes_on_with_those_that_are_behind_first(job, tmp_path, monkeypatch, capsys):
    """Seed 1 has two epochs by itself; then both go on together, as if nothing had been."""
    save = ("TRAIN.CHECKPOINT_FREQ", 1)
    assert command_line(job(("--seeds", 1, 2), "whole/seed{seed}", *save)) == 0
    after_epoch = MaPLe.after_epoch

    def stop(self: Any) -> None:
        after_epoch(self)
        if self.epoch == 1 and self.cfg.SEED == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(MaPLe, "after_epoch", stop)
    capsys.readouterr()
    assert command_line(job(("--seeds", 1, 2), "cut/seed{seed}", *save)) == 130
    assert capsys.readouterr().err.strip() == (
        "train.py: Interrupted in epoch 2 of 3. Saved is of seed 1 epoch 2, of seed 2 epoch 1; "
        "the same command goes on from there."
    )
    monkeypatch.undo()
    assert command_line(job(("--seeds", 1, 2), "cut/seed{seed}", *save)) == 0
    printed = capsys.readouterr().out
    assert "seed 1: epoch [2/3]" not in printed
    assert "seed 2: epoch [2/3]" in printed
    for seed in (1, 2):
        assert_same_run(tmp_path / f"cut/seed{seed}", tmp_path / f"whole/seed{seed}")


def test_a_loss_that_is_not_finite_names_its_seed(job, tmp_path, monkeypatch, capsys):
    losses = MaPLe.losses

    def spoilt(self: Any, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        wrong = self.cfg.SEED == 2 and self.epoch == 1
        return {
            name: term * torch.nan if wrong else term for name, term in losses(self, images, labels).items()
        }

    monkeypatch.setattr(MaPLe, "losses", spoilt)
    options = ("TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 2)
    assert command_line(job(("--seeds", 1, 2, 3), "seed{seed}", *options)) == 2
    assert capsys.readouterr().err.strip() == (
        "train.py: Seed 2: Loss is infinite or NaN! (epoch 2, batch 1) "
        "The others go on from their checkpoints with --seeds 1 3."
    )
    for seed in (1, 2, 3):
        assert all(value.isfinite().all() for value in learned(tmp_path / f"seed{seed}", epoch=1).values())


# --- what is refused


@pytest.mark.parametrize(
    ("seeds", "output", "options", "said"),
    [
        (("--seeds", 1, 2), "run", {}, "it has to hold {seed}"),
        (("--seeds", 1, 1), "run{seed}", {}, "each once"),
        (("--seeds", -1, 1), "run{seed}", {}, "seeds from 0"),
        (("--seeds", 1, 2, "--seed", 3), "run{seed}", {}, "--seed 3"),
        (("--seeds", 1, 2, "--eval-only"), "run{seed}", {}, "--eval-only"),
        (("--seeds", 1, 2, "--resume", "before"), "run{seed}", {}, "--resume is 'before'"),
        (("--seeds", 1, 2), "run{seed}", {"options": ("SEED", 7)}, "SEED is 7"),
        (("--seeds", 1, 2), "run{seed}", {"trainer": "ZeroshotCLIP"}, "learns nothing"),
    ],
)
def test_refused_in_one_line_before_anything_is_written(seeds, output, options, said, job, tmp_path, capsys):
    before = set(tmp_path.rglob("*"))
    argv = job(seeds, output, *options.get("options", ()), trainer=options.get("trainer", "MaPLe"))
    assert command_line(argv) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("train.py: ")
    assert "\n" not in message
    assert said in message
    left = {path for path in set(tmp_path.rglob("*")) - before if not path.is_relative_to(tmp_path / "data")}
    assert left == set()


@pytest.mark.parametrize("hook", ["forward_backward", "train"])
def test_a_trainer_with_steps_of_its_own_is_refused(hook, job, monkeypatch, capsys):
    monkeypatch.setattr(MaPLe, hook, lambda self, *batch: None)
    assert command_line(job(("--seeds", 1, 2), "run{seed}")) == 2
    assert "steps in a way of its own" in capsys.readouterr().err


def test_several_processes_are_refused(job, monkeypatch):
    args = build_parser().parse_args(job(("--seeds", 1, 2), "run{seed}"))
    with pytest.raises(ValueError, match="without torchrun"):
        of_each_seed(args, one_of_several=True)


def test_a_folder_in_use_is_refused(job, tmp_path, capsys):
    (tmp_path / "run2").mkdir()
    with FileLock(tmp_path / "run2" / LOCK_FILE):
        assert command_line(job(("--seeds", 1, 2), "run{seed}")) == IN_USE
    assert "run2 is in use" in capsys.readouterr().err


def test_seeds_with_other_classes_are_refused(make_trainers):
    trainers = make_trainers("CoOp", torch.float32)
    trainers[1].dm.dataset.classnames = NAMES[:3]
    with pytest.raises(ValueError, match="other classes for seed 2 than for seed 1"):
        joined(trainers)
