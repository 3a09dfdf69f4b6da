"""Prompt learners written for Dassl's API, each of a shape that public projects have, run unchanged."""

from __future__ import annotations

import os.path as osp

import pytest
import torch
from foreign.prompts import CustomCLIP, PromptLearner, moved, run_and_read, tensors, without_tensorboard
from foreign.toy import CLASSES, WIDTH, TinyCLIP, toy_cfg
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

assert without_tensorboard  # a fixture for each test here


class CoOpShape(TrainerX):
    """Registers the prompt learner alone, and trains it with or without mixed precision."""

    def check_cfg(self, cfg):
        assert cfg.TRAINER.COOPSHAPE.PREC in ["fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        self.model = CustomCLIP(self.dm.dataset.classnames, TinyCLIP())
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        amp = cfg.TRAINER.COOPSHAPE.PREC == "amp"
        self.scaler = torch.cuda.amp.GradScaler() if amp else None

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.COOPSHAPE.PREC == "amp":
            with torch.cuda.amp.autocast():
                output = self.model(image)
                loss = F.cross_entropy(output, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        model_file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            model_path = osp.join(directory, name, model_file)
            if not osp.exists(model_path):
                raise FileNotFoundError(f'Model not found at "{model_path}"')
            checkpoint = load_checkpoint(model_path)
            state_dict, epoch = checkpoint["state_dict"], checkpoint["epoch"]
            for buffer in ("token_prefix", "token_suffix"):
                state_dict.pop(buffer, None)
            print(f'Loading weights to {name} from "{model_path}" (epoch = {epoch})')
            self._models[name].load_state_dict(state_dict, strict=False)


def coop_cfg(folder, prec="fp32", **changes):
    cfg = toy_cfg(folder, **changes)
    cfg.TRAINER.COOPSHAPE = CN()
    cfg.TRAINER.COOPSHAPE.PREC = prec
    return cfg


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning", "ignore:.*CUDA is not available")
@pytest.mark.parametrize("prec", ["fp32", "amp"])
def test_learner_registered_alone(tmp_path, capsys, prec):
    TRAINER_REGISTRY.register(CoOpShape, force=True)
    cfg = coop_cfg(tmp_path, prec, TRAINER__NAME="CoOpShape", OPTIM__MAX_EPOCH=3)
    cfg.freeze()
    trainer = build_trainer(cfg)
    before = tensors(trainer.model)
    untrained = trainer.test()
    printed = run_and_read(capsys, trainer.train)
    assert len(printed.losses) == 12
    assert sum(printed.losses[-4:]) < sum(printed.losses[:4])
    assert moved(trainer.model, before) == {"prompt_learner.ctx"}
    assert "Deploy the last-epoch model\nEvaluate on the *test* set\n" in printed.text

    saved = load_checkpoint(osp.join(cfg.OUTPUT_DIR, "prompt_learner", "model.pth.tar-3"))
    assert set(saved["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    fresh = build_trainer(cfg)
    assert fresh.test() == pytest.approx(untrained)
    fresh.load_model(cfg.OUTPUT_DIR, epoch=3)
    assert torch.equal(fresh.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)
    assert [round(fresh.test(), 2)] == printed.accuracies
    with pytest.raises(FileNotFoundError, match="Model not found"):
        fresh.load_model(cfg.OUTPUT_DIR)
    fresh.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out


def test_learner_is_tested_on_other_classes(tmp_path):
    """Base to novel: buffers of the words have another shape, and the trainer's load throws them away."""
    trained = CoOpShape(coop_cfg(tmp_path, OPTIM__MAX_EPOCH=1))
    trained.train()

    class OtherClasses(CoOpShape):
        def build_data_loader(self):
            super().build_data_loader()
            self.dm.dataset._classnames = CLASSES[:2]

    other = OtherClasses(coop_cfg(tmp_path))
    other.load_model(trained.output_dir, epoch=1)
    assert torch.equal(other.model.prompt_learner.ctx, trained.model.prompt_learner.ctx)
    assert other.model_inference(torch.rand(3, 3, 8, 8)).shape == (3, 2)


def test_learner_starts_from_the_weights_of_another_run(tmp_path, capsys):
    first = CoOpShape(coop_cfg(tmp_path, OPTIM__MAX_EPOCH=1))
    first.train()
    path = osp.join(first.output_dir, "prompt_learner", "model.pth.tar-1")
    second = CoOpShape(coop_cfg(tmp_path / "second", MODEL__INIT_WEIGHTS=path))
    assert torch.equal(second.model.prompt_learner.ctx, first.model.prompt_learner.ctx)
    assert "Successfully loaded pretrained weights" in capsys.readouterr().out


class ConditionalLearner(PromptLearner):
    """The context is shifted by what a small network makes of each image."""

    def __init__(self, classnames, clip_model):
        super().__init__(classnames, clip_model)
        self.meta_net = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(inplace=True), nn.Linear(4, WIDTH))

    def forward(self, im_features):
        ctx = self.ctx + self.meta_net(im_features)[:, None]
        ctx = ctx[:, None].expand(-1, len(self.token_prefix), -1, -1)
        words = (self.token_prefix, self.token_suffix)
        prefix, suffix = (part.expand(len(ctx), -1, -1, -1) for part in words)
        return torch.cat([prefix, ctx, suffix], dim=2)


class ConditionalCLIP(CustomCLIP):
    """Gives the loss in training and logits in testing."""

    def __init__(self, classnames, clip_model):
        super().__init__(classnames, clip_model)
        self.prompt_learner = ConditionalLearner(classnames, clip_model)

    def forward(self, image, label=None):
        features = self.clip_model.encode_image(image)
        text = self.clip_model.encode_prompts(self.prompt_learner(features))
        logits = self.clip_model.logit_scale.exp() * (features[:, None] * text).sum(-1)
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


class CoCoOpShape(TrainerX):
    """One image a batch; wrapped for several GPUs where there are several, after being registered."""

    def build_model(self):
        self.model = ConditionalCLIP(self.dm.dataset.classnames, TinyCLIP())
        name_to_update = "prompt_learner"
        for name, param in self.model.named_parameters():
            if name_to_update not in name:
                param.requires_grad_(False)
        self.optim = build_optimizer(self.model.prompt_learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = None
        if torch.cuda.device_count() > 1:
            print(f"Multiple GPUs detected (n_gpus={torch.cuda.device_count()}), use all of them!")
            self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = self.model(image, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the second GPU is pretended")
@pytest.mark.parametrize("gpus", [1, 2])
def test_one_image_a_batch_and_several_gpus(tmp_path, capsys, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    cfg = toy_cfg(tmp_path, DATALOADER__TRAIN_X__BATCH_SIZE=1, OPTIM__MAX_EPOCH=1, OPTIM__NAME="adam")
    trainer = CoCoOpShape(cfg)
    wrapped = isinstance(trainer.model, nn.DataParallel)
    assert wrapped == (gpus == 2)
    before = tensors(trainer.model)
    printed = run_and_read(capsys, trainer.train)
    assert len(printed.losses) == 16
    learned = {name.removeprefix("module.") for name in moved(trainer.model, before)}
    parts = ["ctx", "meta_net.0.weight", "meta_net.0.bias", "meta_net.2.weight", "meta_net.2.bias"]
    assert learned == {f"prompt_learner.{part}" for part in parts}
    assert len(printed.accuracies) == 1

    fresh = CoCoOpShape(cfg)
    fresh.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert [round(fresh.test(), 2)] == printed.accuracies


class WholeModelShape(TrainerX):
    """Registers all of the model; what is learned is chosen by parts of names."""

    def build_model(self):
        self.model = CustomCLIP(self.dm.dataset.classnames, TinyCLIP())
        self.model.VPT = nn.Parameter(torch.zeros(WIDTH))
        for name, param in self.model.named_parameters():
            param.requires_grad_("prompt_learner" in name or "VPT" in name)
        enabled = {name for name, param in self.model.named_parameters() if param.requires_grad}
        print(f"Parameters to be updated: {enabled}")
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("MultiModalPromptLearner", self.model, self.optim, self.sched)

    def model_inference(self, input):
        return self.model(input) + (self.model.clip_model.encode_image(input) @ self.model.VPT)[:, None]

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model_inference(image), label) + self.model.VPT.sub(1).square().mean()
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def test_whole_model_with_names_chosen_by_substring(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, TEST__FINAL_MODEL="best_val", OPTIM__NAME="adamw")
    trainer = WholeModelShape(cfg)
    before = tensors(trainer.model)
    printed = run_and_read(capsys, trainer.train)
    assert moved(trainer.model, before) == {"prompt_learner.ctx", "VPT"}
    assert len(printed.accuracies) == 3  # twice on val, once on test
    assert "Deploy the model with the best val performance\nLoad " in printed.text
    best = load_checkpoint(osp.join(cfg.OUTPUT_DIR, "MultiModalPromptLearner", "model-best.pth.tar"))
    assert set(best["state_dict"]) == set(trainer.model.state_dict())
    assert round(best["val_result"], 2) == max(printed.accuracies[:2]) == round(trainer.best_result, 2)

    fresh = WholeModelShape(cfg)
    fresh.load_model(cfg.OUTPUT_DIR)  # the best, as no epoch is named
    assert torch.equal(fresh.model.VPT, best["state_dict"]["VPT"])


class WrappedFirst(WholeModelShape):
    """Wrapped for several GPUs before it is registered."""

    def build_model(self):
        super().build_model()
        self.bare, wrapped = self.model, nn.DataParallel(self.model)
        self.register_model("MultiModalPromptLearner", wrapped, self.optim, self.sched)


def test_one_gpu_reads_what_several_wrote_and_the_reverse(tmp_path):
    cfg = toy_cfg(tmp_path)
    several = WrappedFirst(cfg)
    several.train()
    for fresh in (WholeModelShape(cfg), WrappedFirst(cfg)):
        fresh.load_model(cfg.OUTPUT_DIR, epoch=2)
        assert moved(fresh.model, tensors(several.bare)) == set()
        assert fresh.resume_model_if_exist(cfg.OUTPUT_DIR) == 2


class TwoRates(CoOpShape):
    """One module in two groups with a learning rate each, and what is not in a group is not learned."""

    def build_model(self):
        self.model = ConditionalCLIP(self.dm.dataset.classnames, TinyCLIP())
        learner = self.model.prompt_learner
        groups = [
            {"params": [learner.ctx], "lr": self.cfg.OPTIM.LR * 10},
            {"params": learner.meta_net.parameters()},
        ]
        self.optim = build_optimizer(self.model, self.cfg.OPTIM, param_groups=groups)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = self.model(image, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def test_parameter_groups(tmp_path, capsys):
    trainer = TwoRates(coop_cfg(tmp_path, OPTIM__WARMUP_EPOCH=-1, OPTIM__NAME="adam", OPTIM__EPS=1e-3))
    before = tensors(trainer.model)
    groups = trainer.optim.param_groups
    assert [(group["lr"], group["eps"]) for group in groups] == [(0.5, 1e-3), (0.05, 1e-3)]
    run_and_read(capsys, trainer.train)
    assert all(name.startswith("prompt_learner.") for name in moved(trainer.model, before))
    assert [group["lr"] for group in trainer.optim.param_groups] == pytest.approx([0, 0])
    assert {len(group["params"]) for group in trainer.optim.param_groups} == {1, 4}
