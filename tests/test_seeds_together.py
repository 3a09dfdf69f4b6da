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
from stand_in_gpu import StandIn

from experiments.jobs import IN_USE, LOCK_FILE, differences
from experiments.seeds import of_each_seed
from train import build_parser, command_line
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.joint_step import JointStep
from trainers.maple import MaPLe
from trainers.step_graph import WARM_UPS, ReplayedStep

# Python 3.12 and later warn where a process with threads forks, which a loader with workers does.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """TensorBoard takes seconds to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


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


@pytest.fixture
def gpu(monkeypatch) -> StandIn:
    """Replays the steps of seeds together, and of no seed by itself."""
    gpu = StandIn()

    def replayed(self: Any, step: Any, why_not: str) -> ReplayedStep | None:
        together = isinstance(step.__self__, JointStep)
        return ReplayedStep(step, 1e-3, gpu) if together else None  # type: ignore[arg-type]

    monkeypatch.setattr(CLIPPromptTrainer, "replayed", replayed)
    return gpu


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


def test_a_replayed_run_is_the_one_by_itself(job, tmp_path, gpu, capsys):
    assert command_line(job(("--seeds", 1, 2), "both/seed{seed}")) == 0
    assert gpu.replays == 9 - WARM_UPS
    assert "is not replayed" not in capsys.readouterr().out
    for seed in (1, 2):
        assert command_line(job(("--seed", seed), f"alone/seed{seed}")) == 0
        assert_same_run(tmp_path / f"both/seed{seed}", tmp_path / f"alone/seed{seed}")


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


@pytest.mark.parametrize(("replays", "batch"), [(False, 1), (True, 2)])
def test_a_loss_that_is_not_finite_names_its_seed(
    replays, batch, job, tmp_path, monkeypatch, capsys, request
):
    gpu = request.getfixturevalue("gpu") if replays else None
    losses = MaPLe.losses

    def spoilt(self: Any, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        wrong = self.cfg.SEED == 2 and (self.epoch, self.batch_idx) == (1, batch - 1)
        return {
            name: term * torch.nan if wrong else term for name, term in losses(self, images, labels).items()
        }

    monkeypatch.setattr(MaPLe, "losses", spoilt)
    options = ("TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 2)
    assert command_line(job(("--seeds", 1, 2, 3), "seed{seed}", *options)) == 2
    assert capsys.readouterr().err.strip() == (
        f"train.py: Seed 2: Loss is infinite or NaN! (epoch 2, batch {batch}) "
        "The others go on from their checkpoints with --seeds 1 3."
    )
    assert gpu is None or gpu.replays == 2
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
