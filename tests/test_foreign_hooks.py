"""Trainers written for Dassl's API that override its hooks: caches, tests, epochs, steps of their own."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from foreign.prompts import LearnedContext, moved, run_and_read, tensors, without_tensorboard
from foreign.toy import CLASSES, WIDTH, TinyCLIP, toy_cfg
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from dassl.engine import TrainerX, TrainerXU
from dassl.engine.trainer import AverageMeter, MetricMeter
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

assert without_tensorboard  # a fixture for each test here


# Caches and adapters


class CacheAdapter(TrainerX):
    """Keys from the shots, built before training; an epoch and the choice of the best model of its own."""

    def build_model(self):
        self.clip_model = TinyCLIP().requires_grad_(False)
        self.adapter = nn.Linear(WIDTH, 1, bias=False)  # its weight is replaced by the cache
        self.register_model("adapter", self.adapter)
        self.results = []

    def before_train(self):
        super().before_train()
        keys, values = [], []
        with torch.no_grad():
            for batch in tqdm(self.train_loader_x, disable=True):
                image, label, _ = self.parse_batch_train(batch)
                keys.append(self.clip_model.encode_image(image))
                values.append(F.one_hot(label, self.num_classes).float())
        self.cache_values = torch.cat(values)
        self.adapter.weight = nn.Parameter(torch.cat(keys))
        self.optim = build_optimizer(self.adapter, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("adapter", self.adapter, self.optim, self.sched)

    def model_inference(self, input):
        affinity = self.adapter(self.clip_model.encode_image(input))
        return (5 * (affinity - 1)).exp() @ self.cache_values

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time = MetricMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            image, label, _ = self.parse_batch_train(batch)
            output = self.model_inference(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
            batch_time.update(0.25)
            losses.update({"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()})
        self.update_lr()
        print(f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) {losses} lr {self.get_current_lr():.4e}")

    def after_epoch(self):
        result = self.test(split="val")
        self.results.append(result)
        if result > self.best_result:
            self.best_result = result
            self.save_model(self.epoch, self.output_dir, is_best=True, val_result=result)


def test_cache_built_before_training(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, TEST__FINAL_MODEL="best_val", OPTIM__MAX_EPOCH=3)
    trainer = CacheAdapter(cfg)
    printed = run_and_read(capsys, trainer.train)
    assert printed.text.count("time 0.250 (0.250) loss ") == 3
    assert [round(result, 2) for result in trainer.results] == printed.accuracies[:3]
    assert trainer.best_result == max(trainer.results)
    assert trainer.adapter.weight.shape == (16, WIDTH)
    files = {path.name for path in Path(cfg.OUTPUT_DIR, "adapter").iterdir()}
    assert "model-best.pth.tar" in files
    assert "Deploy the model with the best val performance\nLoad " in printed.text
    assert printed.accuracies[3] == round(trainer.test(), 2)


def test_own_choice_of_the_best_needs_no_val_images(tmp_path, capsys):
    class BestOfTraining(CacheAdapter):
        def after_epoch(self):
            self.save_model(self.epoch, self.output_dir, model_name="model-best.pth.tar")

    class NoVal(BestOfTraining):
        def build_data_loader(self):
            super().build_data_loader()
            self.val_loader = None

    printed = run_and_read(capsys, NoVal(toy_cfg(tmp_path, TEST__FINAL_MODEL="best_val")).train)
    assert len(printed.accuracies) == 1


class TrainingFree(CacheAdapter):
    """The cache alone: no model is registered, and nothing is stepped."""

    def build_model(self):
        self.clip_model = TinyCLIP()
        self.cache_keys = None

    def before_train(self):
        TrainerX.before_train(self)
        keys, labels = [], []
        with torch.no_grad():
            for batch in self.train_loader_x:
                keys.append(self.clip_model.encode_image(batch["img"]))
                labels.append(batch["label"])
        self.cache_keys = torch.cat(keys)
        self.cache_values = F.one_hot(torch.cat(labels), self.num_classes).float()

    def model_inference(self, input):
        affinity = self.clip_model.encode_image(input) @ self.cache_keys.t()
        return (50 * (affinity - 1)).exp() @ self.cache_values

    run_epoch = TrainerX.run_epoch
    after_epoch = TrainerX.after_epoch


def test_training_free_cache_without_a_registered_model(tmp_path, capsys):
    trainer = TrainingFree(toy_cfg(tmp_path))
    printed = run_and_read(capsys, trainer.train)
    assert "TrainingFree has nothing to train\n" in printed.text
    assert printed.accuracies[0] > 100 / len(CLASSES)
    assert trainer.cache_keys.shape == (16, WIDTH)
    assert printed.losses == []


def test_epochs_of_its_own_without_a_registered_model(tmp_path, capsys):
    class Searching(TrainingFree):
        def run_epoch(self):
            self.tried = [*getattr(self, "tried", []), self.epoch]

    trainer = Searching(toy_cfg(tmp_path, OPTIM__MAX_EPOCH=3))
    printed = run_and_read(capsys, trainer.train)
    assert trainer.tried == [0, 1, 2]
    assert printed.text.count("=> result") == 1


def test_a_step_of_its_own_without_a_registered_model(tmp_path, capsys):
    class OwnOptimizer(TrainingFree):
        def before_train(self):
            super().before_train()
            self.optimizer = torch.optim.SGD([self.cache_keys.requires_grad_()], 1e-4)

        def forward_backward(self, batch):
            loss = F.cross_entropy(self.model_inference(batch["img"]), batch["label"])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return {"loss": loss.item()}

    printed = run_and_read(capsys, OwnOptimizer(toy_cfg(tmp_path)).train)
    assert len(printed.losses) == 8
    assert len(printed.accuracies) == 1


# Zero-shot


class ZeroShot(LearnedContext):
    """Below a method that trains, as such trainers often are; nothing is registered."""

    def build_model(self):
        self.clip_model = TinyCLIP()
        words = self.clip_model.token_embedding.weight[:, None]
        self.text_features = self.clip_model.encode_prompts(words)

    def model_inference(self, image):
        return (
            self.clip_model.logit_scale.exp() * self.clip_model.encode_image(image) @ self.text_features.t()
        )


@pytest.mark.parametrize("no_test", [False, True])
def test_zero_shot_without_eval_only(tmp_path, capsys, no_test):
    trainer = ZeroShot(toy_cfg(tmp_path, TEST__NO_TEST=no_test))
    printed = run_and_read(capsys, trainer.train)
    assert "ZeroShot has nothing to train\n" in printed.text
    assert len(printed.accuracies) == (0 if no_test else 1)
    trainer.load_model(str(tmp_path), epoch=5)  # as --eval-only does
    assert trainer.test() >= 0


# Testing


class OwnTest(LearnedContext):
    """A loop of its own, with arguments of its own, and names of splits that the engine does not know."""

    @torch.no_grad()
    def test(self, split=None, prefix="", **kwargs):
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = {"val": self.val_loader, "test": self.test_loader, "train": self.train_loader_x}[split]
        print(f"{prefix}Evaluate on the *{split}* set")
        for _, batch in enumerate(tqdm(loader, disable=True)):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            self.evaluator.process(output, label)
        results = self.evaluator.evaluate()
        for k, v in results.items():
            self.write_scalar(f"{split}/{k}", v, self.epoch)
        return list(results.values())[0]  # noqa: RUF015  (as everyone has it)


def test_own_test_with_own_splits_and_arguments(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, TEST__SPLIT="train", TEST__FINAL_MODEL="best_val", TEST__SAVE_PREDICTIONS=True)
    trainer = OwnTest(cfg)
    printed = run_and_read(capsys, trainer.train)
    assert printed.text.count("Evaluate on the *val* set") == 2
    assert "Evaluate on the *train* set\n=> result\n* total: 16\n" in printed.text
    assert len(printed.accuracies) == 3
    assert trainer.test(split="test", prefix="Again: ", epoch=3) >= 0
    assert "Again: Evaluate on the *test* set" in capsys.readouterr().out
    assert not list(Path(cfg.OUTPUT_DIR).glob("predictions*"))


class MoreThanScores(LearnedContext):
    def model_inference(self, input):
        return self.model(input), self.model.clip_model.encode_image(input), None


def test_inference_that_gives_a_tuple_and_predictions_in_a_file(tmp_path, capsys):
    trainer = MoreThanScores(toy_cfg(tmp_path, TEST__SAVE_PREDICTIONS=True))
    printed = run_and_read(capsys, trainer.train)
    path = Path(trainer.output_dir, "predictions_test.csv")
    assert f"Predictions are saved to {path}\n" in printed.text
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["impath"] for row in rows] == [item.impath for item in trainer.dm.dataset.test]
    assert all(row["classname"] == CLASSES[int(row["label"])] for row in rows)
    assert all(row["predicted_classname"] == CLASSES[int(row["predicted_label"])] for row in rows)
    right = sum(row["label"] == row["predicted_label"] for row in rows)
    assert printed.accuracies == [round(100 * right / len(rows), 2)]

    trainer.test(split="val")
    assert len(Path(trainer.output_dir, "predictions_val.csv").read_text().splitlines()) == 9


def test_own_loop_over_an_inference_that_gives_a_tuple(tmp_path):
    class Both(OwnTest, MoreThanScores):
        pass

    assert Both(toy_cfg(tmp_path)).test() == MoreThanScores(toy_cfg(tmp_path)).test()


# Steps


class OwnBackward(LearnedContext):
    """Two losses; where their gradients disagree, one is projected onto what the other allows."""

    def grad(self, loss):
        self.model_zero_grad("prompt_learner")
        self.detect_anomaly(loss)
        loss.backward(retain_graph=True)
        return [p.grad.clone() for p in self._models["prompt_learner"].parameters() if p.grad is not None]

    def two_backward_and_update(self, main, general, names=None):
        allowed = self.grad(general)
        wanted = self.grad(main)
        for p, g, own in zip(self._models["prompt_learner"].parameters(), allowed, wanted, strict=True):
            against = (own * g).sum().clamp(max=0)
            p.grad = own - against / g.norm().square().clamp(min=1e-12) * g
            assert (p.grad * g).sum() > -1e-6
        self.model_update(names)

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.two_backward_and_update(loss, output.square().mean())
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss, "general": output.square().mean().item()}


def test_own_backward(tmp_path, capsys):
    trainer = OwnBackward(toy_cfg(tmp_path))
    before = tensors(trainer.model)
    printed = run_and_read(capsys, trainer.train)
    assert moved(trainer.model, before) == {"prompt_learner.ctx"}
    assert len(printed.losses) == 8
    assert printed.text.count(" general ") == 8


class WritesScalars(LearnedContext):
    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        self.write_scalar("own/ctx", self.model.prompt_learner.ctx.norm().item(), self.batch_idx)
        return summary

    def after_train(self):
        super().after_train()
        self.write_scalar("own/late", 1.0)  # the log is closed; nothing happens


def test_scalars_with_tensorboard_and_without(tmp_path, capsys, monkeypatch):
    printed = run_and_read(capsys, WritesScalars(toy_cfg(tmp_path)).train)
    assert printed.text.count("TensorBoard is not installed: curves are not logged\n") == 1

    tags = []

    class Writer:
        def __init__(self, log_dir):
            assert log_dir.endswith("tensorboard")

        def add_scalar(self, tag, value, step=None):
            tags.append(tag)

        def close(self):
            tags.append("closed")

    monkeypatch.setattr("dassl.engine.trainer_base.SummaryWriter", Writer)
    WritesScalars(toy_cfg(tmp_path / "second", OPTIM__MAX_EPOCH=1)).train()
    assert tags[:3] == ["own/ctx", "train/loss", "train/lr"]
    assert tags[-2:] == ["test/macro_f1", "closed"]


class PseudoLabels(TrainerXU):
    """Labelled and unlabelled images; guesses on the latter are labels where the model is sure."""

    build_model = LearnedContext.build_model

    def forward_backward(self, batch_x, batch_u):
        input_x, label_x, input_u = self.parse_batch_train(batch_x, batch_u)
        output_u = self.model(input_u)
        sure, guess = output_u.detach().softmax(-1).max(-1)
        unlabelled = (F.cross_entropy(output_u, guess, reduction="none") * (sure > 0.5)).mean()
        loss = F.cross_entropy(self.model(input_x), label_x) + 0.5 * unlabelled
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "loss_u": unlabelled.item()}


def test_unlabelled_images(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, DATASET__ALL_AS_UNLABELED=True, TRAIN__COUNT_ITER="train_u")
    trainer = PseudoLabels(cfg)
    before = tensors(trainer.model)
    printed = run_and_read(capsys, trainer.train)
    assert len(printed.losses) == 2 * 3  # 12 unlabelled images in batches of 4
    assert moved(trainer.model, before) == {"prompt_learner.ctx"}
