"""Several models, optimizers and schedules in a trainer written for Dassl's API."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign.prompts import CustomCLIP, LearnedContext, moved, run_and_read, tensors, without_tensorboard
from foreign.toy import CLASSES, TinyCLIP, toy_cfg
from torch import nn
from torch.nn import functional as F

from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer

assert without_tensorboard  # a fixture for each test here


class Staged(LearnedContext):
    """What learns in the second epoch is still frozen where its optimizer is built."""

    def build_model(self):
        super().build_model()
        self.shift = nn.Linear(1, len(CLASSES), bias=False).requires_grad_(False)
        self.register_model("shift", self.shift, build_optimizer(self.shift, self.cfg.OPTIM))
        self.learned = []

    def before_epoch(self):
        self.shift.requires_grad_(self.epoch == 1)
        self.model.prompt_learner.requires_grad_(self.epoch == 0)
        self.parts = nn.ModuleList([self.model, self.shift])
        self.before = tensors(self.parts)

    def after_epoch(self):
        super().after_epoch()
        self.learned.append(moved(self.parts, self.before))

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image) + self.shift.weight.t(), label)
        self.model_backward_and_update(loss, ["prompt_learner", "shift"][self.epoch])
        return {"loss": loss.item()}


def test_frozen_where_the_optimizer_is_built_and_learned_later(tmp_path, capsys):
    with pytest.warns(UserWarning, match="an optimizer has nothing to learn: all 1 parameters are frozen"):
        trainer = Staged(toy_cfg(tmp_path))
    run_and_read(capsys, trainer.train)
    assert trainer.learned == [{"0.prompt_learner.ctx"}, {"1.weight"}]


def test_a_loss_that_depends_on_nothing_learned_is_one_line(tmp_path):
    trainer = LearnedContext(toy_cfg(tmp_path))
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="The loss depends on nothing that is learned") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


class PromptAndAdapter(TrainerX):
    """Two models with an optimizer and a schedule each, whose learning rates are stepped by name."""

    def build_model(self):
        cfg = self.cfg
        self.model = CustomCLIP(self.dm.dataset.classnames, TinyCLIP()).requires_grad_(False)
        self.model.prompt_learner.ctx.requires_grad_(True)
        self.adapter = nn.Linear(len(CLASSES), len(CLASSES))
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.optim2 = build_optimizer(self.adapter, cfg.OPTIM_ADAPTER)
        self.sched2 = build_lr_scheduler(self.optim2, cfg.OPTIM_ADAPTER)
        self.register_model("adapter", self.adapter, self.optim2, self.sched2)
        self.rates = []

    def model_inference(self, input):
        return self.adapter(self.model(input))

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        name = ("prompt_learner", "adapter")[self.batch_idx % 2]
        loss = F.cross_entropy(self.model_inference(image), label)
        self.model_backward_and_update(loss, name)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr("adapter")
            self.rates.append([self.get_current_lr(part) for part in ("prompt_learner", "adapter")])
        return {"loss": loss.item()}


def test_two_models_with_two_optimizers(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, OPTIM__WARMUP_EPOCH=0)
    cfg.OPTIM_ADAPTER = cfg.OPTIM.clone()
    cfg.OPTIM_ADAPTER.NAME, cfg.OPTIM_ADAPTER.LR = "adam", 0.01
    cfg.OPTIM_ADAPTER.LR_SCHEDULER, cfg.OPTIM_ADAPTER.STEPSIZE = "multi_step", (1,)
    trainer = PromptAndAdapter(cfg)
    adapter = tensors(trainer.adapter)
    printed = run_and_read(capsys, trainer.train)
    assert len(printed.losses) == 8
    assert moved(trainer.adapter, adapter) == {"weight", "bias"}
    assert trainer.rates == [[0.05, pytest.approx(0.001)]] * 2
    assert {path.parent.name for path in Path(cfg.OUTPUT_DIR).rglob("model.pth.tar-2")} == {
        "prompt_learner",
        "adapter",
    }
    fresh = PromptAndAdapter(cfg)
    fresh.load_model(cfg.OUTPUT_DIR, epoch=2)
    assert moved(fresh.adapter, tensors(trainer.adapter)) == set()
    assert [round(fresh.test(), 2)] == printed.accuracies
