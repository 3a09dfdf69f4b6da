"""Trainers: their hooks, what they print, what they save and load."""

import re
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, SimpleNet, SimpleTrainer, TrainerX, TrainerXU, build_trainer
from dassl.engine import trainer as trainer_module
from dassl.modeling import BACKBONE_REGISTRY, Backbone
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, save_checkpoint

GOLDEN_LOG = Path(__file__).parent / "golden" / "logs" / "train_base" / "seed1" / "log.txt"
LEARNER = "MultiModalPromptLearner"  # the model's name in the recorded log


def draw_images(folder, count, classes=4):
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        path = folder / f"{index:03}.png"
        pixels = np.random.RandomState(index).randint(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels[..., 0] = 60 * (index % classes)
        Image.fromarray(pixels).save(path)
        items.append(Datum(str(path), label=index % classes, classname=f"class {index % classes}"))
    return items


@DATASET_REGISTRY.register()
class EngineToy(DatasetBase):
    def __init__(self, cfg):
        items = draw_images(Path(cfg.DATASET.ROOT), 24)
        unlabelled = items[:12] if cfg.DATASET.ALL_AS_UNLABELED else None
        val = None if cfg.DATASET.VAL_PERCENT == 0 else items[16:]
        super().__init__(train_x=items[:16], train_u=unlabelled, val=val, test=items)


class Linear(TrainerX):
    """One linear layer on the pixels; `losses` collects what it trains with."""

    def build_model(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, self.num_classes)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model(LEARNER, self.model, self.optim, self.sched)
        self.losses = []

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.losses.append(loss.item())
        return {"loss": loss.item()}


class TwoModels(Linear):
    def build_model(self):
        super().build_model()
        self.head = nn.Linear(self.num_classes, self.num_classes)
        self.register_model("head", self.head, build_optimizer(self.head, self.cfg.OPTIM))


class FixedScores(TrainerX):
    """Zero-shot: nothing is registered, nothing is learned."""

    def build_model(self):
        self.model = lambda image: torch.arange(4.0).expand(len(image), 4)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.DATASET.NAME = "EngineToy"
    cfg.DATASET.ROOT = str(tmp_path / "toy")
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("normalize",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.DATALOADER.TEST.BATCH_SIZE = 10
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.0035
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.MAX_EPOCH = 5
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.TRAIN.PRINT_FREQ = 20
    cfg.USE_CUDA = False
    return cfg


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    """TensorBoard takes seconds to import; one test asks for it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def saved(cfg, name=LEARNER):
    return sorted(path.name for path in (Path(cfg.OUTPUT_DIR) / name).iterdir())


def out(*parts):
    return str(Path(*map(str, parts)))


# A whole run


class Writer:
    """In TensorBoard's place; collects what is logged."""

    logged: ClassVar[list] = []

    def __init__(self, log_dir):
        self.logged.clear()

    def add_scalar(self, tag, value, step):
        self.logged.append((tag, step))

    def close(self):
        self.logged.append("closed")


def test_run_prints_what_the_recorded_log_has(cfg, capsys, monkeypatch):
    monkeypatch.setattr("dassl.engine.trainer_base.SummaryWriter", Writer)
    Linear(cfg).train()

    def shape(text):  # numbers and folders aside; what the engine does not print is left out
        text = text[text.index("Loading evaluator") :]
        text = re.sub(r"\S*(/tensorboard|/MultiModalPromptLearner)", r"OUT\1", text)
        return re.sub(r"\d+:\d\d:\d\d|\d[\d.]*(e-\d+)?", "#", text).replace("log_dir=OUT", "OUT").strip()

    printed, recorded = shape(capsys.readouterr().out), shape(GOLDEN_LOG.read_text())
    assert printed.splitlines() == recorded.splitlines()


def test_learning_rates_are_the_published_ones_and_the_run_learns(cfg, capsys):
    trainer = Linear(cfg)
    cfg.TRAIN.PRINT_FREQ = 4
    trainer.train()
    rates = re.findall(r"batch \[4/4\].* lr (\S+) ", capsys.readouterr().out)
    assert rates == ["3.5000e-03", "3.1658e-03", "2.2908e-03", "1.2092e-03", "3.3422e-04"]
    assert np.mean(trainer.losses[-4:]) < np.mean(trainer.losses[:4])
    assert saved(cfg) == ["checkpoint", "model.pth.tar-5"]


def test_hooks_are_called_in_order(cfg):
    calls = []

    class Recorder(Linear):
        pass

    def record(name):
        def hook(self, *args, **kwargs):
            if not (name == "forward_backward" and self.batch_idx):
                calls.append(name)
            return getattr(Linear, name)(self, *args, **kwargs)

        return hook

    names = ["before_train", "after_train", "before_epoch", "after_epoch", "run_epoch", "forward_backward"]
    names += ["check_cfg", "build_data_loader", "build_model", "test", "save_model", "resume_model_if_exist"]
    for name in names:
        setattr(Recorder, name, record(name))
    cfg.OPTIM.MAX_EPOCH = 2
    Recorder(cfg).train()
    epoch = ["before_epoch", "run_epoch", "forward_backward", "after_epoch"]
    assert calls == [
        *["check_cfg", "build_data_loader", "build_model", "before_train", "resume_model_if_exist"],
        *epoch,
        *epoch,
        *["save_model", "after_train", "test"],
    ]


def test_attributes_that_trainers_read(cfg):
    trainer = Linear(cfg)
    assert (trainer.start_epoch, trainer.max_epoch, trainer.output_dir) == (0, 5, cfg.OUTPUT_DIR)
    assert trainer.device == torch.device("cpu")
    assert (trainer.num_classes, trainer.lab2cname[2], trainer.dm.dataset.num_classes) == (4, "class 2", 4)
    assert len(trainer.train_loader_x) == 4
    assert len(trainer.val_loader) == 1
    assert len(trainer.test_loader) == 3
    assert trainer.train_loader_u is None
    assert trainer.best_result == float("-inf")
    assert trainer.get_current_lr() == pytest.approx(1e-5)
    trainer.train()
    assert (trainer.epoch, trainer.batch_idx, trainer.num_batches) == (4, 3, 4)
    assert trainer.time_start > 0


def test_test_returns_the_accuracy_and_takes_further_arguments(cfg, capsys):
    trainer = FixedScores(cfg)
    assert trainer.test() == 25.0
    assert trainer.test(split="val", epoch=3) == 25.0
    trainer.val_loader = None
    with pytest.raises(ValueError, match="has no val images"):
        trainer.test("val")
    found = re.findall(r"\*(\w+)\* set\n=> result\n\* total: (\d+)", capsys.readouterr().out)
    assert found == [("test", "24"), ("val", "8")]


def test_inference_may_return_more_than_scores(cfg):
    trainer = FixedScores(cfg)
    trainer.model = lambda image: (F.one_hot(torch.full((len(image),), 1), 4).float(), "features")
    assert trainer.test() == 25.0


def test_trainer_without_a_model_is_tested(cfg, capsys):
    FixedScores(cfg).train()
    printed = capsys.readouterr().out
    assert "FixedScores has nothing to train\nEvaluate on the *test* set\n" in printed
    assert "* accuracy: 25.00%" in printed
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_short_loader_trains(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 100
    trainer = Linear(cfg)
    trainer.train()
    assert len(trainer.losses) == 5


def test_trainer_is_built_by_name_and_a_second_one_too(cfg, capsys):
    TRAINER_REGISTRY.register(Linear, force=True)
    cfg.TRAINER.NAME = "Linear"
    first, second = build_trainer(cfg), build_trainer(cfg)
    assert isinstance(first, Linear)
    assert first.model is not second.model
    assert capsys.readouterr().out.startswith("Loading trainer: Linear\nLoading dataset: EngineToy\n")
    cfg.TRAINER.NAME = "Liner"
    with pytest.raises(ValueError, match="'Liner'; did you mean 'Linear'"):
        build_trainer(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FINAL_MODEL", "best", "TEST.FINAL_MODEL is 'best'; choose from last_step, best_val"),
        ("SPLIT", "train", "TEST.SPLIT is 'train'; choose from val, test"),
    ],
)
def test_wrong_settings_are_refused_before_training(cfg, key, value, message):
    cfg.TEST[key] = value
    trainer = Linear(cfg)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.losses == []
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_wrong_settings_are_refused_where_they_are_used(cfg, capsys):
    cfg.TEST.SPLIT = "train"
    with pytest.raises(ValueError, match=r"TEST.SPLIT is 'train'"):
        FixedScores(cfg).train()
    cfg.TRAIN.PRINT_FREQ = 0
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"TRAIN.PRINT_FREQ is 0; allowed is 1 or more"):
        Linear(cfg)
    assert capsys.readouterr().out == ""


def test_a_trainer_may_know_values_of_its_own(cfg):
    class Own(Linear):
        def after_train(self):
            self.finished = self.cfg.TEST.FINAL_MODEL, self.test()

        def test(self, split=None, **kwargs):
            return super().test({"both": "val"}[split or self.cfg.TEST.SPLIT])

    cfg.OPTIM.MAX_EPOCH = 1
    cfg.TEST.SPLIT, cfg.TEST.FINAL_MODEL, cfg.TRAIN.COUNT_ITER = "both", "average", "larger_one"
    trainer = Own(cfg)
    trainer.train()
    assert trainer.finished[0] == "average"
    assert trainer.finished[1] >= 0


# The best model


class Scripted(Linear):
    """Its accuracy on the validation images is given."""

    accuracies = (10.0, 30.0, 20.0, 30.0, 5.0)

    def test(self, split=None, **kwargs):
        return self.accuracies[self.epoch] if split == "val" else super().test(split)


def test_best_model_on_validation_images_is_kept_and_deployed(cfg, capsys):
    cfg.TEST.FINAL_MODEL = "best_val"
    trainer = Scripted(cfg)
    trainer.train()
    best = load_checkpoint(out(cfg.OUTPUT_DIR, LEARNER, "model-best.pth.tar"))
    last = load_checkpoint(out(cfg.OUTPUT_DIR, LEARNER, "model.pth.tar-5"))
    assert (best["epoch"], best["val_result"], best["best_result"]) == (2, 30.0, 30.0)
    assert (last["epoch"], last["val_result"], last["best_result"]) == (5, None, 30.0)
    assert torch.equal(trainer.model[1].weight, best["state_dict"]["1.weight"])
    assert "Deploy the model with the best val performance\nLoad " in capsys.readouterr().out


def test_best_model_needs_validation_images(cfg):
    cfg.TEST.FINAL_MODEL = "best_val"
    cfg.DATASET.VAL_PERCENT = 0.0
    with pytest.raises(ValueError, match=r"TEST.FINAL_MODEL is best_val, but the dataset has no val images"):
        Linear(cfg).train()
    assert not Path(cfg.OUTPUT_DIR).exists()
    cfg.TEST.NO_TEST = True
    Linear(cfg).train()


def test_checkpoint_frequency_and_no_test(cfg, capsys):
    cfg.TRAIN.CHECKPOINT_FREQ = 2
    cfg.TEST.NO_TEST = True
    Linear(cfg).train()
    assert saved(cfg) == ["checkpoint", "model.pth.tar-2", "model.pth.tar-4", "model.pth.tar-5"]
    assert "Evaluate" not in capsys.readouterr().out


def test_only_the_newest_checkpoints_are_kept(cfg):
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    cfg.TRAIN.CHECKPOINTS_KEPT = 2
    Linear(cfg).train()
    assert saved(cfg) == ["checkpoint", "model.pth.tar-4", "model.pth.tar-5"]


# Models


def test_model_may_be_registered_again(cfg):
    cfg.OPTIM.MAX_EPOCH = 1
    trainer = Linear(cfg)
    first = trainer.model
    trainer.build_model()
    assert trainer.model is not first
    assert list(trainer._models) == list(trainer._optims) == list(trainer._scheds) == [LEARNER]
    trainer.train()
    trainer._models.popitem()
    assert trainer.get_model_names() == []


def test_names_are_checked(cfg):
    trainer = TwoModels(cfg)
    assert trainer.get_model_names("head") == ["head"]
    with pytest.raises(ValueError, match=rf"'haed'; there are {LEARNER}, head"):
        trainer.get_model_names("haed")
    with pytest.raises(AttributeError, match="before super"):
        TrainerX.register_model(object.__new__(TrainerX), "model", nn.Linear(1, 1))


def test_backward_and_mode_of_some_models_only(cfg):
    trainer = TwoModels(cfg)
    head, body = trainer.head.weight.clone(), trainer.model[1].weight.clone()
    scores = trainer.head(trainer.model(torch.randn(2, 3, 8, 8)))
    trainer.model_backward_and_update(scores.sum(), names="head")
    assert not torch.equal(trainer.head.weight, head)
    assert torch.equal(trainer.model[1].weight, body)
    trainer.set_model_mode("eval", ["head"])
    assert trainer.model.training
    assert not trainer.head.training
    with pytest.raises(KeyError, match="choose train, test or eval"):
        trainer.set_model_mode("evaluation")
    # "head" has no scheduler, and a model without an optimizer is none to ask for its learning rate.
    trainer.model_update()
    trainer.update_lr()
    trainer.register_model(LEARNER, trainer.model)
    assert trainer.get_current_lr() == cfg.OPTIM.LR


def test_own_backward(cfg):
    class Doubled(Linear):
        def model_backward_and_update(self, loss, names=None):
            self.model_zero_grad(names)
            (2 * loss).backward()
            self.model_update(names)

    cfg.OPTIM.MAX_EPOCH = 1
    cfg.OPTIM.MOMENTUM, cfg.OPTIM.WEIGHT_DECAY = 0.0, 0.0
    moved = {}
    for trainer_class in (Linear, Doubled):
        trainer = trainer_class(cfg)
        start = trainer.model[1].weight.detach().clone()
        trainer.num_batches = 2
        trainer.forward_backward(next(iter(trainer.test_loader)))
        moved[trainer_class] = trainer.model[1].weight.detach() - start
    torch.testing.assert_close(moved[Doubled], 2 * moved[Linear], rtol=1e-3, atol=1e-8)


def test_loss_that_is_not_finite_stops_the_run_and_says_where(cfg, monkeypatch):
    class Diverging(Linear):
        def forward_backward(self, batch):
            factor = float("nan") if (self.epoch, self.batch_idx) == (1, 2) else 1.0
            loss = self.model(batch["img"]).sum() * factor
            self.model_backward_and_update(loss)
            return {"loss": loss}

    cfg.TRAIN.CHECKPOINT_FREQ = 1
    cfg.TRAIN.PRINT_FREQ = 4
    with pytest.raises(FloatingPointError, match=r"Loss is infinite or NaN! \(epoch 2, batch 3\)"):
        Diverging(cfg).train()
    # On a GPU it goes unseen for some batches, but nothing of it is saved.
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    cfg.OUTPUT_DIR += "_gpu"
    trainer = Diverging(cfg)
    with pytest.raises(FloatingPointError, match=r"Loss is infinite or NaN! \(epoch 2, batch 3\)"):
        trainer.train()
    assert trainer.batch_idx == 3
    assert saved(cfg) == ["checkpoint", "model.pth.tar-1"]
    trainer.detect_anomaly(torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError):
        trainer.save_model(0, cfg.OUTPUT_DIR)


def shown(text):
    """The lines of batches, without their times."""
    lines = [line for line in text.splitlines() if line.startswith("epoch [")]
    return [re.sub(r"time .* \(.*?\) (loss .*) eta .*", r"\1", line) for line in lines]


class Curves(Writer):
    def add_scalar(self, tag, value, step):
        self.logged.append((tag, value, step))


class OnDevice(Linear):
    """Gives tensors, as a step on a GPU does, that the next step overwrites."""

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        self.last = getattr(self, "last", torch.zeros(()))
        self.last.copy_(loss.detach())
        return {"loss": self.last, "twice": 2 * self.last, "number": 1.0}


def recorded(read, trainer, waits):
    def reading(tensor):
        if tensor.dtype != torch.int64:  # a seed
            waits.append(trainer.batch_idx)
        return read(tensor)

    return reading


@pytest.mark.parametrize("frequency", [1, 3, 4])
def test_a_gpu_is_waited_for_when_a_line_is_printed(cfg, capsys, monkeypatch, frequency):
    monkeypatch.setattr("dassl.engine.trainer_base.SummaryWriter", Curves)
    cfg.OPTIM.MAX_EPOCH = 2
    cfg.TRAIN.PRINT_FREQ = frequency
    cfg.TEST.NO_TEST = True
    seen, waits = [], []
    for on_gpu in (False, True):
        cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}_{on_gpu}"
        trainer = OnDevice(cfg)
        if on_gpu:
            monkeypatch.setattr(torch.Tensor, "is_cuda", True)
            for name in ("item", "tolist"):
                monkeypatch.setattr(torch.Tensor, name, recorded(getattr(torch.Tensor, name), trainer, waits))
        trainer.train()
        seen.append((shown(capsys.readouterr().out), list(Curves.logged)))
    assert seen[0] == seen[1]
    assert seen[0][0]
    at_lines_and_ends = {1: {0, 1, 2, 3}, 3: {2, 3}, 4: {3}}
    assert set(waits) == at_lines_and_ends[frequency]


# Loading


def test_load_takes_the_best_else_the_newest_or_the_named_epoch(cfg, capsys):
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    cfg.OPTIM.MAX_EPOCH = 3
    trainer = Linear(cfg)
    trainer.train()
    last = trainer.model[1].weight.clone()

    fresh = Linear(cfg)
    fresh.load_model(cfg.OUTPUT_DIR)
    assert torch.equal(fresh.model[1].weight, last)
    fresh.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert not torch.equal(fresh.model[1].weight, last)
    fresh.save_model(0, cfg.OUTPUT_DIR, is_best=True, val_result=np.float64(12.5))
    capsys.readouterr()
    fresh.load_model(cfg.OUTPUT_DIR)
    path = out(cfg.OUTPUT_DIR, LEARNER, "model-best.pth.tar")
    assert capsys.readouterr().out == f"Load {path} to {LEARNER} (epoch=1, val_result=12.50)\n"
    fresh.load_model("")
    assert "skipped" in capsys.readouterr().out


def test_missing_checkpoint_names_the_epochs_there_are(cfg, tmp_path):
    trainer = Linear(cfg)
    for epoch in (0, 9):
        trainer.save_model(epoch, cfg.OUTPUT_DIR)
    path = re.escape(out(cfg.OUTPUT_DIR, LEARNER, "model.pth.tar-7"))
    with pytest.raises(FileNotFoundError, match=rf"No model at {path} \(epochs there: 1, 10\)"):
        trainer.load_model(cfg.OUTPUT_DIR, epoch=7)
    with pytest.raises(FileNotFoundError, match=r"model-best.pth.tar \(no epoch is saved there\)"):
        trainer.load_model(str(tmp_path / "nothing"))
    inner = out(cfg.OUTPUT_DIR, LEARNER)
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{inner} holds a model: give the run's folder above")
    ):
        trainer.load_model(inner)


def test_checkpoint_without_result_or_epoch_loads(cfg, capsys):
    trainer = Linear(cfg)
    state = {"state_dict": trainer.model.state_dict(), "epoch": 4}
    save_checkpoint(state, out(cfg.OUTPUT_DIR, LEARNER))
    trainer.load_model(cfg.OUTPUT_DIR, epoch=4)
    assert f"to {LEARNER} (epoch=4)\n" in capsys.readouterr().out


def test_checkpoint_that_does_not_fit_lists_what_differs_and_changes_nothing(cfg):
    trainer = TwoModels(cfg)
    trainer.save_model(0, cfg.OUTPUT_DIR)
    state = trainer.head.state_dict()
    wrong = {"weight": torch.zeros(2, 4), **{f"extra.{i}": torch.zeros(1) for i in range(9)}}
    save_checkpoint({"state_dict": wrong, "epoch": 1}, out(cfg.OUTPUT_DIR, "head"))

    fresh = TwoModels(cfg)
    with torch.no_grad():
        fresh.model[1].weight.fill_(7)
    with pytest.raises(ValueError, match=r"does not fit head: missing bias; unexpected extra.0; ") as caught:
        fresh.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert str(caught.value).endswith("; and 3 more.")
    assert "\n" not in str(caught.value)
    assert fresh.model[1].weight.eq(7).all()  # though its own file fits

    state["weight"] = torch.zeros(2, 4)
    save_checkpoint({"state_dict": state, "epoch": 1}, out(cfg.OUTPUT_DIR, "head"))
    with pytest.raises(ValueError, match=r"weight of shape \(2, 4\) instead of \(4, 4\)"):
        fresh.load_model(cfg.OUTPUT_DIR, epoch=1)
    torch.save({"weight": torch.zeros(1)}, out(cfg.OUTPUT_DIR, "head", "model.pth.tar-1"))
    with pytest.raises(ValueError, match="it has no state_dict"):
        fresh.load_model(cfg.OUTPUT_DIR, epoch=1)


def test_best_files_of_different_epochs_are_not_mixed(cfg):
    trainer = TwoModels(cfg)
    trainer.save_model(0, cfg.OUTPUT_DIR, model_name="model-best.pth.tar")
    save_checkpoint(
        {"state_dict": trainer.head.state_dict(), "epoch": 2},
        out(cfg.OUTPUT_DIR, "head"),
        model_name="model-best.pth.tar",
    )
    with pytest.raises(ValueError, match=r"not of one epoch for all models: .*'head': 2"):
        trainer.load_model(cfg.OUTPUT_DIR)


def test_trainer_may_save_a_part_of_its_model(cfg):
    class Part(Linear):
        def model_state(self, name):
            return {key: value for key, value in super().model_state(name).items() if key == "1.bias"}

        def checkpoint_state(self, name):
            return {**super().checkpoint_state(name), "backbone": "tiny"}

    trainer = Part(cfg)
    trainer.model[1].bias.data.fill_(3)
    trainer.save_model(0, cfg.OUTPUT_DIR)
    checkpoint = load_checkpoint(out(cfg.OUTPUT_DIR, LEARNER, "model.pth.tar-1"))
    assert list(checkpoint["state_dict"]) == ["1.bias"]
    assert checkpoint["backbone"] == "tiny"
    fresh = Part(cfg)
    fresh.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert fresh.model[1].bias.eq(3).all()
    with pytest.raises(ValueError, match=r"missing 1.weight"):
        Linear(cfg).load_model(cfg.OUTPUT_DIR, epoch=1)


def test_a_scaler_may_be_anything(cfg):
    class Scaled(Linear):
        scaler = 128.0

    cfg.TRAIN.CHECKPOINT_FREQ = 1
    Scaled(cfg).train()
    path = out(cfg.OUTPUT_DIR, LEARNER, "model.pth.tar-5")
    assert load_checkpoint(path)["scaler"] is None
    torch.save({**load_checkpoint(path), "scaler": {"scale": 2.0}}, path)
    assert Scaled(cfg).resume_model_if_exist(cfg.OUTPUT_DIR) == 5


# TensorBoard, Ctrl-C, unlabelled images, SimpleNet


def test_missing_tensorboard_is_one_notice(cfg, capsys):
    cfg.OPTIM.MAX_EPOCH = 1
    Linear(cfg).train()
    assert capsys.readouterr().out.count("TensorBoard is not installed: curves are not logged\n") == 1
    assert not Path(cfg.OUTPUT_DIR, "tensorboard").exists()


def test_a_log_that_cannot_be_opened_is_one_notice(cfg, capsys, monkeypatch):
    def broken(log_dir):
        raise PermissionError(13, "Permission\ndenied")

    monkeypatch.setattr("dassl.engine.trainer_base.SummaryWriter", broken)
    cfg.OPTIM.MAX_EPOCH = 1
    Linear(cfg).train()
    printed = capsys.readouterr().out
    assert "TensorBoard cannot be used: curves are not logged ([Errno 13] Permission denied)\n" in printed
    assert "Finish training" in printed


def test_scalars_are_logged(cfg, monkeypatch):
    monkeypatch.setattr("dassl.engine.trainer_base.SummaryWriter", Writer)
    cfg.OPTIM.MAX_EPOCH = 1
    Linear(cfg).train()
    logged = Writer.logged
    assert logged[:4] == [("train/loss", 0), ("train/lr", 0), ("train/loss", 1), ("train/lr", 1)]
    assert logged[-4:] == [("test/accuracy", 0), ("test/error_rate", 0), ("test/macro_f1", 0), "closed"]


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard_writes_where_it_is_installed(cfg, monkeypatch):
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    cfg.OPTIM.MAX_EPOCH = 1
    Linear(cfg).train()
    assert any(Path(cfg.OUTPUT_DIR, "tensorboard").iterdir())


def test_names_that_foreign_trainers_import():
    for name in ("AverageMeter", "MetricMeter", "SummaryWriter", "TrainerX", "TrainerBase", "SimpleTrainer"):
        assert callable(getattr(trainer_module, name))


@pytest.mark.parametrize("frequency", [0, 1])
def test_ctrl_c_says_what_is_saved_and_how_to_go_on(cfg, frequency):
    class Interrupted(Linear):
        def before_epoch(self):
            if self.epoch == 2:
                raise KeyboardInterrupt

    cfg.TRAIN.CHECKPOINT_FREQ = frequency
    with pytest.raises(KeyboardInterrupt) as caught:
        Interrupted(cfg).train()
    if frequency:
        how = f"Epoch 2 is saved in {cfg.OUTPUT_DIR}; the same command goes on from there."
    else:
        how = "Nothing is saved yet (TRAIN.CHECKPOINT_FREQ is 0)."
    assert str(caught.value) == f"Interrupted in epoch 3 of 5. {how}"


@pytest.mark.parametrize(("count", "batches"), [("train_x", 4), ("train_u", 6), ("smaller_one", 4)])
def test_unlabelled_batches_go_along(cfg, count, batches):
    seen = []

    class Both(TrainerXU):
        build_model = Linear.build_model

        def forward_backward(self, batch_x, batch_u):
            image_x, label_x, image_u = self.parse_batch_train(batch_x, batch_u)
            seen.append((len(image_x), len(label_x), len(image_u)))
            self.model_backward_and_update(self.model(image_x).sum() + self.model(image_u).sum())

    with pytest.raises(ValueError, match="Both needs train_u images; EngineToy has none"):
        Both(cfg).train()
    cfg.DATASET.ALL_AS_UNLABELED = True
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 2
    cfg.OPTIM.MAX_EPOCH = 1
    cfg.TRAIN.COUNT_ITER = "both"
    with pytest.raises(
        ValueError, match=r"TRAIN.COUNT_ITER is 'both'; choose from train_x, train_u, smaller_one"
    ):
        Both(cfg).train()
    cfg.TRAIN.COUNT_ITER = count
    Both(cfg).train()
    assert seen == [(4, 4, 2)] * batches


def test_simple_net_and_the_default_model(cfg, capsys):
    @BACKBONE_REGISTRY.register(force=True)
    class tiny_pixels(Backbone):
        def __init__(self, pretrained, **kwargs):
            super().__init__()
            self._out_features = 3

        def forward(self, x):
            return x.mean((2, 3))

    class Plain(SimpleTrainer):
        pass

    cfg.MODEL.BACKBONE.NAME = "tiny_pixels"
    trainer = Plain(cfg)
    assert "Building model\nBackbone: tiny_pixels\n# params: 16\n" in capsys.readouterr().out
    scores, features = trainer.model(torch.ones(2, 3, 8, 8), return_feature=True)
    assert (scores.shape, features.shape, trainer.model.fdim) == ((2, 4), (2, 3), 3)
    assert trainer.test() >= 0

    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS = "mlp", (5,)
    net = SimpleNet(cfg, cfg.MODEL, 0)
    assert net(torch.ones(2, 3, 8, 8)).shape == (2, 5)
