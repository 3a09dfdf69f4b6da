"""A run that is interrupted and started again ends as if nothing had happened.

As a script, `python test_dassl_resume.py FOLDER`, this file starts the runs of `KILLED`, which are killed.
"""

import copy
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

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
from dassl.utils import load_checkpoint, set_random_seed

# Python 3.12 and later warn where a process with threads forks, which a loader with workers does.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ROOT = Path(__file__).parents[1]
BEST = {"TEST__FINAL_MODEL": "best_val"}

# Name of a run: settings, and where it is killed: (epoch, batch), or (epoch, model) when that is to be saved.
KILLED = {
    "in_epoch": (BEST, {"kill_at": (2, 1)}),
    "in_epoch_workers": ({**BEST, "DATALOADER__NUM_WORKERS": 2}, {"kill_at": (2, 1)}),
    "while_saving": ({}, {"kill_while_saving": (2, "head")}),
}


@DATASET_REGISTRY.register()
class ResumeToy(DatasetBase):
    def __init__(self, cfg):
        folder = Path(cfg.DATASET.ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        items = []
        for index in range(16):
            path = folder / f"{index:02}.png"
            if not path.exists():
                pixels = np.random.RandomState(index).randint(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
            items.append(Datum(str(path), label=index % 3, classname=str(index % 3)))
        super().__init__(train_x=items, val=items[:8], test=items)


class Toy(TrainerX):
    """Two models. Every source of random numbers, and the scaler's state, go into its losses."""

    kill_at = None  # (epoch, batch), counted from 0
    kill_while_saving = None  # (epoch, model)

    def build_model(self):
        self.body = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * 8 * 8, 5))
        self.head = nn.Linear(5, 3)
        for name in ("body", "head"):
            model = getattr(self, name)
            optim = build_optimizer(model, self.cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**5, growth_interval=3)
        self.losses = []

    def model_inference(self, input):
        return self.head(self.body(input))

    def forward_backward(self, batch):
        if (self.epoch, self.batch_idx) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        image, label, _ = self.parse_batch_train(batch)
        noise = np.random.rand() + random.random()
        loss = F.cross_entropy(self.model_inference(image * (1 + 0.1 * noise)), label)
        self.model_zero_grad()
        self.scaler.scale(loss).backward()
        for name in self.get_model_names():
            self.scaler.step(self._optims[name])
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.losses.append(loss.item())
        return {"loss": loss.item()}

    def checkpoint_state(self, name):
        if (self.epoch, name) == self.kill_while_saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().checkpoint_state(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """TensorBoard takes seconds to import; one thread, as in the runs that are killed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_cfg(folder, **changes):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(Path(folder) / "out")
    cfg.DATASET.NAME = "ResumeToy"
    cfg.DATASET.ROOT = str(Path(folder).parent / "toy")
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.02
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.MAX_EPOCH = 4
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    cfg.USE_CUDA = False
    cfg.merge_from_list([part for key, value in changes.items() for part in (key.replace("__", "."), value)])
    return cfg


def build(folder, **changes):
    set_random_seed(1)
    return Toy(make_cfg(folder, **changes))


def weights(folder, file):
    """Of both models: the learned tensors, the optimizers' and what else decides how the run goes on."""
    states = {}
    for name in ("body", "head"):
        checkpoint = load_checkpoint(str(Path(folder) / "out" / name / file))
        states[name] = {key: checkpoint[key] for key in checkpoint if key != "val_result"}
    return states


def assert_same(one, other, where=""):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}/{index}")
    else:
        assert one == other, where


def files(folder, name):
    names = os.listdir(Path(folder) / "out" / name)
    return sorted(name for name in names if not name.startswith("."))


# Killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder in which each run of `KILLED` left what it had saved."""
    folder = tmp_path_factory.mktemp("killed")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Output to a file: workers live on for some seconds after their parent was killed, and would hold a pipe.
    with open(folder / "log.txt", "w") as log:
        subprocess.run([sys.executable, __file__, str(folder)], stdout=log, stderr=log, env=env, check=True)
    assert (folder / "log.txt").read_text().split("\n")[-len(KILLED) - 1 :] == [
        *(f"{name} ended with signal {int(signal.SIGKILL)}" for name in KILLED),
        "",
    ]
    return folder


@pytest.mark.parametrize("name", KILLED)
def test_killed_run_goes_on_to_the_same_tensors(tmp_path, killed, capsys, name):
    changes = KILLED[name][0]
    whole = build(tmp_path / "whole", **changes)
    whole.train()
    assert len(whole.losses) == 16
    result = re.findall(r"\* .*", capsys.readouterr().out)[-5:]

    # The third epoch was not finished, or was saved of one model only.
    last = {"body": 3 if name == "while_saving" else 2, "head": 2}
    for model, epoch in last.items():
        assert files(killed / name, model)[-1] == f"model.pth.tar-{epoch}"

    resumed = build(killed / name, **changes)
    resumed.train()
    assert resumed.losses == whole.losses[8:]
    printed = capsys.readouterr().out
    assert f"Found checkpoint at {killed / name / 'out'} (will resume training)" in printed
    assert re.findall(r"\* .*", printed)[-5:] == result
    for file in files(tmp_path / "whole", "head"):
        if file not in ("checkpoint", "model.pth.tar-1", "model.pth.tar-2"):
            assert_same(weights(tmp_path / "whole", file), weights(killed / name, file), file)


# Stopped by an error


def interrupted(folder, epoch, **changes):
    """A trainer that stops by itself when `epoch` (counted from 0) begins."""

    class Stopped(Toy):
        def before_epoch(self):
            if self.epoch == epoch:
                raise RuntimeError("stopped")

    set_random_seed(1)
    trainer = Stopped(make_cfg(folder, **changes))
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.train()


@pytest.mark.parametrize(
    "changes",
    [
        {"OPTIM__NAME": "adam", "OPTIM__LR_SCHEDULER": "single_step", "OPTIM__STEPSIZE": (3,)},
        {"OPTIM__NAME": "adamw", "OPTIM__LR_SCHEDULER": "multi_step", "OPTIM__STEPSIZE": (1, 2)},
        {"OPTIM__WARMUP_TYPE": "constant", "OPTIM__WARMUP_RECOUNT": False, "OPTIM__WARMUP_EPOCH": 2},
        {"OPTIM__NAME": "radam", "OPTIM__WARMUP_EPOCH": -1},
        {"OPTIM__NAME": "rmsprop", "TRAIN__CHECKPOINT_FREQ": 2},
    ],
)
def test_every_optimizer_and_schedule_goes_on_exactly(tmp_path, changes):
    whole = build(tmp_path / "whole", **changes)
    whole.train()
    interrupted(tmp_path / "cut", 2, **changes)
    resumed = build(tmp_path / "cut", **changes)
    torch.randn(7)  # what is drawn before the first epoch does not matter
    resumed.train()
    assert resumed.start_epoch == 2
    assert resumed.losses == whole.losses[8:]
    assert resumed.get_current_lr() == whole.get_current_lr()
    assert_same(weights(tmp_path / "whole", "model.pth.tar-4"), weights(tmp_path / "cut", "model.pth.tar-4"))


def test_random_state_is_restored_after_before_train(tmp_path):
    whole = build(tmp_path / "whole")
    whole.train()
    interrupted(tmp_path / "cut", 1)

    class Drawing(Toy):
        def before_train(self):
            super().before_train()
            torch.randn(3), random.random(), np.random.rand()

    resumed = Drawing(make_cfg(tmp_path / "cut"))
    resumed.train()
    assert resumed.losses == whole.losses[4:]


def test_best_model_alone_is_gone_on_from(tmp_path):
    changes = {"TRAIN__CHECKPOINT_FREQ": 0, "TEST__FINAL_MODEL": "best_val"}
    interrupted(tmp_path / "cut", 3, **changes)
    assert files(tmp_path / "cut", "head") == ["checkpoint", "model-best.pth.tar"]
    best = weights(tmp_path / "cut", "model-best.pth.tar")["head"]
    resumed = build(tmp_path / "cut", **changes)
    resumed.before_train()
    assert resumed.start_epoch == best["epoch"]
    assert resumed.best_result == best["best_result"] > 0


def test_finished_run_only_tests(tmp_path, capsys):
    build(tmp_path / "run").train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("model*")}
    capsys.readouterr()
    again = build(tmp_path / "run")
    again.train()
    printed = capsys.readouterr().out
    assert again.losses == []
    assert again.epoch == 3
    assert "Previous epoch: 4\n" in printed
    assert "Finish training\nDeploy the last-epoch model\nEvaluate on the *test* set\n" in printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("model*")} == before


def test_empty_folders_start_anew(tmp_path, capsys):
    for name in ("body", "head"):
        (tmp_path / "run" / "out" / name).mkdir(parents=True)
    build(tmp_path / "run", OPTIM__MAX_EPOCH=1).train()
    assert "No checkpoint found, train from scratch\n" in capsys.readouterr().out


def test_resume_takes_another_folder(tmp_path):
    whole = build(tmp_path / "whole")
    whole.train()
    interrupted(tmp_path / "first", 2)
    second = build(tmp_path / "second", RESUME=str(tmp_path / "first" / "out"))
    second.train()
    assert second.losses == whole.losses[8:]
    with pytest.raises(FileNotFoundError, match="RESUME is /nowhere, but there is no checkpoint"):
        build(tmp_path / "third", RESUME="/nowhere").train()


def test_checkpoint_of_upstream_is_gone_on_from(tmp_path, capsys):
    """It has weights, optimizer and scheduler, and no random state."""
    interrupted(tmp_path / "cut", 2)
    for path in (tmp_path / "cut").rglob("model.pth.tar-*"):
        checkpoint = load_checkpoint(str(path))
        torch.save({key: checkpoint[key] for key in ("state_dict", "epoch", "optimizer", "scheduler")}, path)
    resumed = build(tmp_path / "cut")
    resumed.train()
    assert len(resumed.losses) == 8
    assert "It has no random state" in capsys.readouterr().out


def test_checkpoint_that_does_not_fit_is_refused_and_kept(tmp_path):
    interrupted(tmp_path / "cut", 2)
    path = tmp_path / "cut" / "out" / "head" / "model.pth.tar-2"
    good = path.read_bytes()

    class Wider(Toy):
        def build_model(self):
            super().build_model()
            self._models["head"] = nn.Linear(5, 4)

    class OneGroup(Toy):
        def build_model(self):
            super().build_model()
            self._optims["head"] = torch.optim.SGD([self.head.weight], lr=0.1)

    wrong_shape = r"does not fit head: weight of shape \(3, 5\)"
    wrong_groups = r"groups of \[2\] tensors, head's of \[1\]"
    for trainer_class, message in ((Wider, wrong_shape), (OneGroup, wrong_groups)):
        trainer = trainer_class(make_cfg(tmp_path / "cut"))
        body = trainer.body[2].weight.clone()
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert torch.equal(trainer.body[2].weight, body)
    assert path.read_bytes() == good

    path.write_bytes(good[:500])
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        build(tmp_path / "cut").train()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == good[:500]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OPTIM__WARMUP_EPOCH": 0}, r"its schedule has a warm-up, unlike body's \(OPTIM.WARMUP_EPOCH\)"),
        ({"OPTIM__WARMUP_EPOCH": 2}, "warmup_epoch was 1, is 2"),
        ({"OPTIM__WARMUP_TYPE": "constant"}, "cons_lr was not set, is 1e-05"),
        ({"OPTIM__MAX_EPOCH": 6}, "successor.T_max was 4.0, is 6.0"),
        ({"OPTIM__LR": 0.1}, r"base_lrs was \[0.02\], is \[0.1\]"),
        ({"OPTIM__LR_SCHEDULER": "multi_step"}, "successor.gamma was not set, is 0.1"),
        ({"OPTIM__NAME": "adam"}, r"its optimizer has dampening, .*OPTIM.NAME"),
        ({"OPTIM__MAX_EPOCH": 1}, r"OPTIM.MAX_EPOCH is 1, but .*model.pth.tar-2 is of epoch 2"),
    ],
)
def test_other_settings_are_refused_before_anything_changes(tmp_path, changes, message):
    interrupted(tmp_path / "cut", 2)
    trainer = build(tmp_path / "cut", **changes)
    parts = [*trainer._models.values(), *trainer._optims.values(), *trainer._scheds.values()]
    before = copy.deepcopy([part.state_dict() for part in parts])
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train()
    assert str(caught.value).endswith("Use the settings it was trained with, or another OUTPUT_DIR.")
    assert "\n" not in str(caught.value)
    assert_same([part.state_dict() for part in parts], before)


def test_kinds_of_adam_are_told_apart(tmp_path):
    interrupted(tmp_path / "cut", 2, OPTIM__NAME="adam")
    for name, flag in (("amsgrad", "amsgrad False"), ("adamw", "decoupled_weight_decay False")):
        trainer = build(tmp_path / "cut", OPTIM__NAME=name)
        if flag.split()[0] in trainer._optims["body"].param_groups[0]:  # older torch has no second flag
            with pytest.raises(ValueError, match=f"its optimizer has {flag}, body's True"):
                trainer.train()


def test_no_warm_up_is_not_continued_with_one(tmp_path):
    interrupted(tmp_path / "cut", 2, OPTIM__WARMUP_EPOCH=-1)
    with pytest.raises(ValueError, match="its schedule has no warm-up, unlike body's"):
        build(tmp_path / "cut").train()


@pytest.mark.parametrize("better_since", [False, True])
def test_best_of_the_run_that_is_continued_is_deployed(tmp_path, better_since):
    class Scripted(Toy):
        accuracies = (1.0, 3.0, 2.0, 4.0 if better_since else 2.0)

        def test(self, split=None, **kwargs):
            return self.accuracies[self.epoch] if split == "val" else super().test(split)

        def before_epoch(self):
            if self.epoch == 2 and not self.cfg.RESUME:
                raise RuntimeError("stopped")

    set_random_seed(1)
    with pytest.raises(RuntimeError, match="stopped"):
        Scripted(make_cfg(tmp_path / "first", **BEST)).train()
    resume = str(tmp_path / "first" / "out")
    second = Scripted(make_cfg(tmp_path / "second", **BEST, RESUME=resume))
    second.train()
    best = weights(tmp_path / ("second" if better_since else "first"), "model-best.pth.tar")["head"]
    assert best["epoch"] == (4 if better_since else 2)
    assert torch.equal(second.head.weight, best["state_dict"]["weight"])
    last = weights(tmp_path / "second", "model.pth.tar-4")["head"]
    assert torch.equal(second.head.weight, last["state_dict"]["weight"]) is better_since


def test_random_state_is_restored_where_a_trainer_has_its_own_train(tmp_path):
    whole = build(tmp_path / "whole")
    whole.train()
    interrupted(tmp_path / "cut", 2)

    class Own(Toy):
        def train(self):
            self.before_train()
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.before_epoch()
                self.run_epoch()
                self.after_epoch()
            self.after_train()

    resumed = Own(make_cfg(tmp_path / "cut"))
    resumed.train()
    assert resumed.losses == whole.losses[8:]


if __name__ == "__main__":
    sys.modules["torch.utils.tensorboard"] = None
    ended = []
    for run, (run_changes, where) in KILLED.items():
        child = os.fork()
        if not child:
            for attribute, value in where.items():
                setattr(Toy, attribute, value)
            build(Path(sys.argv[1]) / run, **run_changes).train()
            os._exit(0)
        ended.append(f"{run} ended with signal {os.waitpid(child, 0)[1]}")
    print("\n".join(ended))


def test_a_kill_right_after_the_last_checkpoint_leaves_nothing_behind(tmp_path):
    kept = {"TRAIN__CHECKPOINTS_KEPT": 1}
    build(tmp_path, **kept).train()
    folders = [tmp_path / "out" / name for name in ("body", "head")]
    for folder in folders:  # the pointer and the surplus are of the epoch before
        (folder / "model.pth.tar-3").write_bytes((folder / "model.pth.tar-4").read_bytes())
        (folder / "checkpoint").write_text("model.pth.tar-3\n")
    build(tmp_path, **kept).train()
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-4"]
        assert (folder / "checkpoint").read_text() == "model.pth.tar-4\n"
