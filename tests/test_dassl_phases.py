"""Trainings of so many steps, in several phases, with a schedule that is stepped each iteration."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer


@DATASET_REGISTRY.register()
class PhasesToy(DatasetBase):
    """10 images of 2 classes: 3 batches of 4, or 2 without the smaller one."""

    def __init__(self, cfg: Any) -> None:
        folder = Path(cfg.DATASET.ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        items = []
        for index in range(10):
            path = folder / f"{index}.png"
            pixels = np.random.RandomState(index).randint(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            items.append(Datum(str(path), label=index % 2, classname="ab"[index % 2]))
        super().__init__(train_x=items, val=None, test=items)


class Steps(TrainerX):
    """Notes the epoch, the size of the batch and the learning rate of each step."""

    stop_at: tuple[int, int] | None = None

    def build_model(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
        optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model(
            "model", self.model, optim, build_lr_scheduler(optim, self.cfg.OPTIM, self.schedule_phases())
        )
        self.steps: list[tuple[int, int, float]] = []
        self.begun: list[tuple[int, int]] = []

    def begin_phase(self, phase: int) -> None:
        self.begun.append((phase, self.epoch))

    def forward_backward(self, batch: Any) -> dict[str, float]:
        if (self.epoch, self.batch_idx) == self.stop_at:
            raise KeyboardInterrupt
        image, label, _ = self.parse_batch_train(batch)
        self.steps.append((self.epoch, len(label), self.get_current_lr()))
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if self.schedules_by_iteration() or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


class TwoPhases(Steps):
    def phase_steps(self) -> list[int]:
        return [4, self.total_steps() - 4]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # takes seconds to import


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR, cfg.DATASET.ROOT = str(tmp_path / "out"), str(tmp_path / "data")
    cfg.DATASET.NAME, cfg.INPUT.SIZE, cfg.USE_CUDA, cfg.VERBOSE = "PhasesToy", (8, 8), False, False
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.TRAIN.PRINT_FREQ = 0, 4, 1
    cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.LR_SCHEDULER = "sgd", 0.1, "cosine"
    return cfg


def trained(cfg: Any, trainer_class: type[Steps] = Steps) -> Steps:
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.train()
    return trainer


def cosine(step: int, length: int, lr_min: float = 0.0) -> float:
    return lr_min + (0.1 - lr_min) * (1 + math.cos(math.pi * step / length)) / 2


def test_a_smaller_last_batch_is_dropped_or_kept(cfg):
    cfg.OPTIM.MAX_EPOCH = 1
    assert [size for _, size, _ in trained(cfg).steps] == [4, 4]
    cfg.DATALOADER.TRAIN_X.DROP_LAST, cfg.OUTPUT_DIR = False, cfg.OUTPUT_DIR + "2"
    assert [size for _, size, _ in trained(cfg).steps] == [4, 4, 2]


def test_so_many_steps_whatever_an_epoch_has(cfg, capsys):
    cfg.OPTIM.MAX_ITER, cfg.OPTIM.MAX_EPOCH = 7, 50
    trainer = trained(cfg)
    assert [epoch for epoch, _, _ in trainer.steps] == [0, 0, 1, 1, 2, 2, 3]
    # One step of the schedule per epoch, of which there are four.
    rates = [lr for _, _, lr in trainer.steps]
    assert rates == pytest.approx([cosine(epoch, 4) for epoch, _, _ in trainer.steps])
    assert "epoch [4/4] batch [1/1]" in capsys.readouterr().out


def test_steps_per_shot_need_shots(cfg):
    cfg.OPTIM.ITER_PER_SHOT, cfg.DATASET.NUM_SHOTS = 3, 2
    assert len(trained(cfg).steps) == 6
    cfg.DATASET.NUM_SHOTS = -1
    with pytest.raises(ValueError, match=r"ITER_PER_SHOT is 3, but DATASET\.NUM_SHOTS is -1: .*MAX_ITER"):
        Steps(cfg)


def test_the_schedule_is_stepped_each_iteration_down_to_its_end(cfg):
    cfg.OPTIM.MAX_ITER, cfg.OPTIM.SCHEDULE_BY, cfg.OPTIM.LR_MIN = 5, "iteration", 0.01
    trainer = trained(cfg)
    rates = [lr for _, _, lr in trainer.steps]
    assert rates == pytest.approx([cosine(step, 5, 0.01) for step in range(5)])
    assert trainer.get_current_lr() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SCHEDULE_BY", "step", "OPTIM.SCHEDULE_BY is 'step'"),
        ("LR_SCHEDULER", "single_step", "OPTIM.SCHEDULE_BY is iteration, which goes with .* cosine"),
        ("WARMUP_EPOCH", 1, "OPTIM.SCHEDULE_BY is iteration, which goes with .*WARMUP_EPOCH 0"),
    ],
)
def test_what_does_not_go_with_iterations_is_refused(key, value, message, cfg):
    cfg.OPTIM.SCHEDULE_BY = "iteration"
    cfg.OPTIM[key] = value
    with pytest.raises(ValueError, match=message):
        Steps(cfg)


def test_a_trainer_that_gives_no_length_cannot_have_a_schedule_of_iterations(cfg):
    cfg.OPTIM.SCHEDULE_BY = "iteration"
    optim = build_optimizer(nn.Linear(1, 1), cfg.OPTIM)
    with pytest.raises(ValueError, match="calls build_lr_scheduler without phases"):
        build_lr_scheduler(optim, cfg.OPTIM)


@pytest.mark.parametrize("by", ["epoch", "iteration"])
def test_phases_begin_with_an_epoch_and_a_schedule_of_their_own(by, cfg):
    cfg.OPTIM.MAX_ITER, cfg.OPTIM.SCHEDULE_BY, cfg.DATALOADER.TRAIN_X.DROP_LAST = 9, by, False
    trainer = trained(cfg, TwoPhases)
    assert trainer.begun == [(0, 0), (1, 2)]
    assert [epoch for epoch, _, _ in trainer.steps] == [0, 0, 0, 1, 2, 2, 2, 3, 3]
    lengths = {"epoch": ([0, 0, 0, 1], [0, 0, 0, 1, 1], 2, 2), "iteration": (range(4), range(5), 4, 5)}
    first, second, one, two = lengths[by]
    right = [cosine(step, one) for step in first] + [cosine(step, two) for step in second]
    assert [lr for _, _, lr in trainer.steps] == pytest.approx(right)


@pytest.mark.parametrize("stop_at", [(1, 0), (2, 0), (3, 1)])
def test_a_run_that_is_stopped_in_a_phase_goes_on_in_it(stop_at, cfg, monkeypatch):
    cfg.OPTIM.MAX_ITER, cfg.OPTIM.SCHEDULE_BY, cfg.DATALOADER.TRAIN_X.DROP_LAST = 9, "iteration", False
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    whole = trained(cfg, TwoPhases)
    cfg.OUTPUT_DIR += "2"
    monkeypatch.setattr(TwoPhases, "stop_at", stop_at)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, TwoPhases)
    monkeypatch.setattr(TwoPhases, "stop_at", None)
    again = trained(cfg, TwoPhases)
    assert again.begun == ([(1, 2)] if stop_at[0] <= 2 else [])
    assert again.steps == whole.steps[len(whole.steps) - len(again.steps) :]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
