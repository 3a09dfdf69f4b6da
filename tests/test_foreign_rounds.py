"""Runs in pieces: trainers within trainers, models rebuilt between rounds, going on from upstream's files."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from foreign.prompts import CustomCLIP, LearnedContext, moved, run_and_read, tensors, without_tensorboard
from foreign.toy import TinyCLIP, toy_cfg
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint

assert without_tensorboard  # a fixture for each test here


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))


class Client(LearnedContext):
    """Trains on the images of one client, from the state that the server gives."""

    def train_round(self, state, epochs):
        self._models.popitem()
        self._optims.popitem(last=True)
        self._scheds.popitem()
        self.build_model()
        self.model.prompt_learner.load_state_dict(state)
        for self.epoch in range(epochs):
            self.before_epoch()
            self.run_epoch()
        return copy.deepcopy(self._models["prompt_learner"].state_dict())


class Server(LearnedContext):
    """Builds its clients by name, and averages what they learn, round by round."""

    def before_train(self):
        super().before_train()
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TRAINER.NAME = cfg.TRAINER.SERVER.CLIENT
        self.clients = []
        for index in range(2):
            cfg.DATASET.ROOT = str(Path(self.cfg.DATASET.ROOT).parent / f"client{index}")
            cfg.OUTPUT_DIR = str(Path(self.output_dir) / f"client{index}")
            self.clients.append(build_trainer(cfg.clone()))

    def run_epoch(self):
        state = self.model.prompt_learner.state_dict()
        learned = [client.train_round(state, epochs=1) for client in self.clients]
        mean = OrderedDict((key, torch.stack([s[key] for s in learned]).mean(0)) for key in state)
        name, _ = self._models.popitem()
        self.build_model()
        self._models[name].load_state_dict(mean)


def test_trainers_within_a_trainer_and_models_registered_again(tmp_path, capsys):
    TRAINER_REGISTRY.register(Client)
    TRAINER_REGISTRY.register(Server)
    cfg = toy_cfg(tmp_path, TRAINER__NAME="Server", OPTIM__MAX_EPOCH=3, OPTIM__WARMUP_EPOCH=-1)
    cfg.TRAINER.SERVER = CN({"CLIENT": "Client"})
    cfg.freeze()
    server = build_trainer(cfg)
    first = server.model
    before = tensors(first)
    printed = run_and_read(capsys, server.train)
    assert printed.text.count("Loading trainer: Client\n") == 2
    assert len(printed.losses) == 3 * 2 * 4
    assert sum(printed.losses[-8:]) < sum(printed.losses[:8])
    assert server.model is not first
    assert moved(server.model, before) == {"prompt_learner.ctx"}
    contexts = [client.model.prompt_learner.ctx for client in server.clients]
    torch.testing.assert_close(server.model.prompt_learner.ctx, sum(contexts) / 2)
    assert list(server._models) == list(server._optims) == list(server._scheds) == ["prompt_learner"]
    saved = load_checkpoint(str(tmp_path / "out" / "prompt_learner" / "model.pth.tar-3"))
    assert torch.equal(saved["state_dict"]["ctx"], server.model.prompt_learner.ctx)
    assert len(printed.accuracies) == 1


def test_the_tables_of_models_are_ordered_dictionaries(tmp_path):
    trainer = LearnedContext(toy_cfg(tmp_path))
    trainer.register_model("second", torch.nn.Linear(1, 1))
    for table in (trainer._models, trainer._optims, trainer._scheds):
        assert isinstance(table, OrderedDict)
        assert table.popitem(last=False)[0] == "prompt_learner"
    assert trainer.get_model_names() == ["second"]


def test_train_is_called_again_with_more_epochs(tmp_path, capsys):
    trainer = LearnedContext(toy_cfg(tmp_path))
    run_and_read(capsys, trainer.train)
    trainer.max_epoch = 4
    printed = run_and_read(capsys, trainer.train)
    assert "epoch [3/4] batch [1/4]" in printed.text
    assert "epoch [2/" not in printed.text


def test_a_name_that_is_taken(tmp_path):
    @TRAINER_REGISTRY.register()
    class Taken(TrainerX):
        build_model = LearnedContext.build_model

    with pytest.raises(ValueError, match=r"TRAINER already has a 'Taken'; register\(force=True\)"):
        TRAINER_REGISTRY.register(Taken)

    @TRAINER_REGISTRY.register(force=True)
    class Taken(LearnedContext):
        pass

    trainer = build_trainer(toy_cfg(tmp_path, TRAINER__NAME="Taken"))
    assert type(trainer) is Taken
    assert isinstance(trainer, LearnedContext)


# Going on from a file of upstream


class SteadyOrder(LearnedContext):
    """Nothing random is drawn, as upstream's files do not keep the state of the random numbers."""

    def build_model(self):
        super().build_model()
        self.losses = []

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        self.losses.append(summary["loss"])
        return summary


def steady_cfg(folder, **changes):
    steady = {
        "DATALOADER__TRAIN_X__SAMPLER": "SequentialSampler",
        "INPUT__TRANSFORMS": ("normalize",),
        "OPTIM__MAX_EPOCH": 5,
        "TRAIN__CHECKPOINT_FREQ": 1,
    }
    return toy_cfg(folder, **steady, **changes)


def as_upstream_saves(trainer, epoch):
    """A live schedule in the checkpoint, the optimizer behind it with it; and no result on val images."""
    name = "prompt_learner"
    schedule = {key: value for key, value in trainer._scheds[name].__dict__.items() if key != "optimizer"}
    assert isinstance(schedule["successor"], torch.optim.lr_scheduler.LRScheduler)
    return {
        "state_dict": trainer._models[name].state_dict(),
        "epoch": epoch,
        "optimizer": trainer._optims[name].state_dict(),
        "scheduler": schedule,
    }


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_of_upstream_goes_on_as_if_undisturbed(tmp_path, capsys, epoch):
    whole = SteadyOrder(steady_cfg(tmp_path / "whole"))
    whole.train()

    class Cut(SteadyOrder):
        def after_epoch(self):
            if self.epoch + 1 == epoch:
                folder = Path(self.output_dir, "prompt_learner")
                folder.mkdir(parents=True)
                torch.save(as_upstream_saves(self, epoch), folder / f"model.pth.tar-{epoch}")
                (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cut(steady_cfg(tmp_path / "cut")).train()
    resumed = SteadyOrder(steady_cfg(tmp_path / "cut"))
    printed = run_and_read(capsys, resumed.train)
    assert "(will resume training)" in printed.text
    assert f"Previous epoch: {epoch}\n" in printed.text
    assert resumed.losses == whole.losses[4 * epoch :]
    assert torch.equal(resumed.model.prompt_learner.ctx, whole.model.prompt_learner.ctx)
    # The learning rate is not that of the pickled schedule's own optimizer, which would stay as it was.
    rates = [line.split(" lr ")[1].split()[0] for line in printed.text.splitlines() if "batch [4/4]" in line]
    assert len(set(rates)) == len(rates) == 5 - epoch

    loaded = SteadyOrder(steady_cfg(tmp_path / "other"))
    loaded.load_model(str(tmp_path / "cut" / "out"), epoch=epoch)  # has no val_result
    assert f"(epoch={epoch})\n" in capsys.readouterr().out


# Teachers


class Distilled(TrainerX):
    """A teacher, built by name and loaded from its own run, teaches a model that starts anew."""

    def build_model(self):
        cfg = self.cfg.clone()
        cfg.TRAINER.NAME = "LearnedContext"
        self.teacher = build_trainer(cfg)
        self.teacher.load_model(self.cfg.TRAINER.DISTILLED.TEACHER_DIR, epoch=2)
        self.teacher.set_model_mode("eval")
        self.model = CustomCLIP(self.dm.dataset.classnames, TinyCLIP())
        self.model.clip_model.requires_grad_(False)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("student", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, _, _ = self.parse_batch_train(batch)
        with torch.no_grad():
            wanted = self.teacher.model_inference(image).softmax(-1)
        loss = F.cross_entropy(self.model(image), wanted)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


def test_teacher_built_by_name(tmp_path, capsys):
    TRAINER_REGISTRY.register(LearnedContext, force=True)
    LearnedContext(toy_cfg(tmp_path / "teacher")).train()
    cfg = toy_cfg(tmp_path)
    cfg.TRAINER.DISTILLED = CN({"TEACHER_DIR": str(tmp_path / "teacher" / "out")})
    trainer = Distilled(cfg)
    teacher, student = tensors(trainer.teacher.model), tensors(trainer.model)
    printed = run_and_read(capsys, trainer.train)
    assert moved(trainer.teacher.model, teacher) == set()
    assert moved(trainer.model, student) == {"prompt_learner.ctx"}
    assert len(printed.accuracies) == 1
