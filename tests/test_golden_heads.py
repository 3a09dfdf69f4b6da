"""Parity of the heads on frozen features with their references' recorded numbers (tests/golden/README.md).

The recorded images stand in for the augmented views: a dataset gives view v of image i when it is asked for
image i the v-th time. All else is the trainer's own: its features, its batches, its `train` and its test.
"""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT, golden_script
from safetensors.torch import load_file
from test_golden import GRADIENTS, LOGITS, TRAJECTORY, difference
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from train import extend_cfg

FOLDER = GOLDEN / "methods"
TESTED = 8  # the first images
PREFIXES = {
    "tiny_clap_": "CLAP",
    "tiny_zslp_": "ZSLinearProbe",
    "tiny_taskres_": "TaskRes",
    "tiny_clipadapter_": "CLIPAdapter",  # of the authors
    "tiny_clipacopy_": "CLIPAdapter",  # of the copy in CLAP
    "tiny_lpp_": "LPPlusPlus",
    "tiny_tip_": "TipAdapter",
}
CASES = {
    path.stem: method
    for prefix, method in PREFIXES.items()
    for path in sorted(FOLDER.glob(f"{prefix}*.json"))
}


class Recorded(Dataset):
    """Image i of a training set as view v, when it is asked for the v-th time; as its first from then on."""

    def __init__(self, views: Tensor, classes: int) -> None:  # (view image 3 height width)
        self.views = views
        self.classes = classes
        self.asked = [0] * views.shape[1]

    def __len__(self) -> int:
        return self.views.shape[1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        view = self.asked[index] if self.asked[index] < len(self.views) else 0
        self.asked[index] += 1
        return {"img": self.views[view, index], "label": index % self.classes}


class Case:
    """A recording, and the trainer that has to repeat it."""

    def __init__(
        self, name: str, golden_checkpoint: Any, monkeypatch: Any, tmp_path: Any, **options: Any
    ) -> None:
        self.case = json.loads((FOLDER / f"{name}.json").read_text())
        self.recorded = load_file(FOLDER / f"{name}.safetensors")
        self.cfg, self.traj = self.case["cfg"], self.case["traj"]
        self.seed = self.case["preset_args"]["seed"]
        self.classes = len(self.case["classnames"])
        self.method = CASES[name]
        self.views = self.cfg.get("views", 1)
        self.images = self.case["shots"] * self.classes
        count = TESTED + self.images * (self.views + 1) + 8
        images = torch.from_numpy(
            golden_script.make_images(self.seed, count, self.case["preset_args"]["res"])
        )
        self.tested = images[:TESTED]
        training = images[TESTED : TESTED + self.views * self.images]
        self.training = Recorded(training.unflatten(0, (self.views, self.images)), self.classes)
        self.after = images[TESTED + self.views * self.images :]
        monkeypatch.setattr("dassl.data.DataManager", self.data_manager)
        self.trainer = self.build(golden_checkpoint(self.case["preset"]), tmp_path, options)
        self.learner = self.trainer.model.prompt_learner
        self.losses: list[dict[str, float]] = []
        self.rates: list[float] = []

    def build(self, checkpoint: Any, tmp_path: Any, options: dict[str, Any]) -> Any:
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.merge_from_file(str(ROOT / "configs/trainers/vit_b16.yaml"))
        trainer_class = TRAINER_REGISTRY.get(self.method)
        own = {f"TRAINER.{self.method.upper()}.{key}": value for key, value in options.items()}
        options = {
            **trainer_class.recipe,
            "TRAINER.NAME": self.method,
            "OUTPUT_DIR": str(tmp_path / "output"),
            "USE_CUDA": False,
            "MODEL.BACKBONE.PATH": str(checkpoint),
            "INPUT.SIZE": (32, 32),
            "DATASET.NAME": self.cfg["dataset"],
            "DATALOADER.NUM_WORKERS": 0,
            "DATALOADER.VIEWS": self.cfg.get("views", 0),
            "DATALOADER.TRAIN_X.BATCH_SIZE": self.batch_size(),
            "TEST.NO_TEST": True,
            "SEED": self.seed,
            f"TRAINER.{self.method.upper()}.PREC": "fp32",
            **self.settings(),
            **own,
        }
        cfg.merge_from_list([each for pair in options.items() for each in pair])
        return trainer_class(cfg)

    def data_manager(self, cfg: Any) -> Any:
        size = self.batch_size()
        loader = DataLoader(self.training, size, drop_last=self.images >= size)  # in the recorded order
        templates = self.cfg.get("templates") or [self.cfg["template"]]
        own = templates[-1] if len(templates) != 7 else "a photo of a {}."  # 7 are without ImageNet's own
        dataset = SimpleNamespace(classnames=self.case["classnames"], template=own, train_x=[], test=[])
        return SimpleNamespace(
            dataset=dataset,
            train_loader_x=loader,
            train_loader_u=None,
            val_loader=None,
            test_loader=None,
            num_classes=self.classes,
            num_source_domains=0,
            lab2cname=dict(enumerate(self.case["classnames"])),
        )

    def batch_size(self) -> int:
        if self.traj.get("batch_slices"):
            start, stop = self.traj["batch_slices"][0]
            return stop - start
        return self.cfg.get("batch_size", self.images)

    def settings(self) -> dict[str, Any]:
        """What the recording's configuration and optimizer are here."""
        own, optimizer = f"TRAINER.{self.method.upper()}", self.case["optimizer"]
        found: dict[str, Any] = {
            "OPTIM.NAME": optimizer["name"].lower(),
            "OPTIM.LR": self.cfg.get("lr", 1.0),
            "OPTIM.WEIGHT_DECAY": optimizer.get("weight_decay", 0.0),
            "OPTIM.MAX_EPOCH": self.traj["steps"] // self.cfg.get("batches_per_epoch", 2),
        }
        if self.method == "LPPlusPlus":
            found["OPTIM.MAX_EPOCH"] = self.cfg["epochs"]
            found["OPTIM.MOMENTUM"] = self.cfg["momentum"]
        for key in ("alpha", "beta", "search_scale", "search_step", "constraint", "ratio", "reduction"):
            if key.upper() in TRAINER_REGISTRY.get(self.method).settings:
                found[f"{own}.{key.upper()}"] = self.cfg[key]
        if self.method == "CLIPAdapter":  # one sentence without underscores is of the authors
            found[f"{own}.IMAGENET_TEMPLATES"] = 8 if "templates" in self.cfg else 1
            found[f"{own}.KEEP_UNDERSCORES"] = "templates" in self.cfg
        return found

    def start_as_recorded(self) -> None:
        """Brings what is learned to the recorded initial values; those that are of CLIP are there already."""
        for entry in self.case["trainable"]:
            ours, recorded = self.tensor(entry["name"]), self.recorded[f"init.{entry['name']}"]
            if "RandomState" in entry["init"]:
                ours.data.copy_(recorded)
            difference(ours, recorded, LOGITS, entry["name"])

    def tensor(self, name: str) -> Tensor:
        return dict(self.learner.named_parameters())[name.replace("mlp.", "fc.")]  # as CLAP's copy says it

    def logits(self, rows: Tensor) -> Tensor:
        return self.trainer.model_inference(rows).detach()

    def train(self, monkeypatch: Any) -> None:
        """The trainer's own training; its steps are noted."""
        trainer, step, before_epoch = self.trainer, self.trainer.forward_backward, self.trainer.before_epoch

        def noted(batch: Any) -> Any:
            self.rates.append(trainer.get_current_lr())
            self.losses.append(step(batch))
            return self.losses[-1]

        def reseeded() -> None:  # as the recorded permutation was drawn
            before_epoch()
            key = f"shuffle:{trainer.epoch}".encode()
            np.random.seed((zlib.crc32(key) + 1000003 * self.seed) % 2**32)

        monkeypatch.setattr(trainer, "forward_backward", noted)
        monkeypatch.setattr(trainer, "before_epoch", reseeded)
        trainer.train()

    def compare_gradients(self) -> None:
        for entry in self.case["trainable"]:
            name = entry["name"]
            difference(self.tensor(name).grad, self.recorded[f"grad.{name}"], GRADIENTS, f"grad.{name}")

    def compare_training(self) -> None:
        if "lr_used" in self.traj:
            assert self.rates == pytest.approx(self.traj["lr_used"], rel=1e-9)
        for term in ("loss", *(["loss_ce", "loss_constraint"] if self.method == "CLAP" else [])):
            ours = torch.tensor([each[term] for each in self.losses])
            difference(ours, self.recorded[f"traj.{term}"], TRAJECTORY, f"traj.{term}")
        for entry in self.case["trainable"]:
            name = entry["name"]
            difference(self.tensor(name), self.recorded[f"final.{name}"], TRAJECTORY, f"final.{name}")
        difference(self.logits(self.tested), self.recorded["final_logits"], TRAJECTORY, "final_logits")


@pytest.fixture
def make_case(golden_checkpoint, monkeypatch, tmp_path):
    return lambda name, **options: Case(name, golden_checkpoint, monkeypatch, tmp_path, **options)


def cases_of(*methods: str) -> list[str]:
    return [name for name, method in CASES.items() if method in methods]


@pytest.mark.parametrize("name", cases_of("CLAP", "ZSLinearProbe", "TaskRes", "CLIPAdapter"))
def test_a_head_repeats_the_reference(name, make_case, monkeypatch):
    case = make_case(name)
    trainer, recorded, learner = case.trainer, case.recorded, case.learner
    tokens = torch.stack([each.tokens for each in learner.ensemble], dim=1).to(torch.int32)
    assert torch.equal(tokens.flatten(), recorded["tokenized_prompts"].flatten())
    zero_shot = case.logits(case.tested)
    case.start_as_recorded()
    # Linear probes are recorded with the test logits of zero-shot CLIP, also where they start from noise.
    is_probe = case.method in ("CLAP", "ZSLinearProbe")
    started = zero_shot if is_probe else case.logits(case.tested)
    difference(started, recorded["logits_all8"], LOGITS, "logits_all8")
    text = recorded["text_features" if "text_features" in recorded else "base_text_features"]
    difference(learner.base_text_features, text, LOGITS, "text")
    rows, labels = trainer.view_features.rows()
    difference(rows, recorded["train.image_features"], LOGITS, "features")
    assert torch.equal(labels, recorded["train.labels"])

    first = recorded["traj.order"][0].long() if "traj.order" in recorded else torch.arange(case.batch_size())
    difference(case.logits(rows[first]), recorded["logits"], LOGITS, "logits")
    if case.method == "CLAP":
        trainer.weights = trainer.class_weights()
        difference(trainer.weights, recorded["alpha_constraint"], LOGITS, "weights")
    terms = trainer.losses(rows[first], labels[first])
    difference(sum(terms.values()), recorded["loss"], LOGITS, "loss")
    sum(terms.values()).backward()
    case.compare_gradients()

    case.train(monkeypatch)
    case.compare_training()


@pytest.mark.parametrize("name", cases_of("LPPlusPlus"))
def test_lp_plus_plus_repeats_the_reference(name, make_case, monkeypatch):
    case = make_case(name)
    trainer, recorded, learner = case.trainer, case.recorded, case.learner
    tokens = torch.stack([each.tokens for each in learner.ensemble], dim=1).to(torch.int32)
    assert torch.equal(tokens, recorded["tokenized_prompts"])
    learner.bias.data.copy_(recorded["init.bias"])
    rates, start = trainer.start()
    assert rates == pytest.approx((float(recorded["lr_w"]), float(recorded["lr_alpha"])), rel=1e-5)
    difference(start["weight"], recorded["init.weight"], LOGITS, "weight")
    difference(start["alpha"].expand(1, case.classes), recorded["init.alpha"], LOGITS, "alpha")
    learner.weight.data.copy_(start["weight"])
    learner.alpha.data.copy_(start["alpha"])
    rows, labels = trainer.view_features.rows()
    difference(torch.nn.functional.normalize(rows, dim=-1), recorded["train.features"], LOGITS, "features")
    difference(trainer.model.encode_text().t(), recorded["clip_weights"], LOGITS, "text")
    difference(case.logits(rows), recorded["logits"], LOGITS, "logits")
    difference(case.logits(case.tested), recorded["logits_all8"], LOGITS, "logits_all8")
    (loss,) = trainer.losses(rows, labels).values()
    difference(loss, recorded["loss"], LOGITS, "loss")
    loss.backward()
    case.compare_gradients()

    alphas, accuracies, step, after_epoch = [], [], trainer.forward_backward, trainer.after_epoch
    val, val_labels = case.after[: case.images], torch.arange(case.images) % case.classes

    def noted(batch):
        alphas.append(learner.alpha[0].detach().clone())
        return step(batch)

    def tested():
        right = (case.logits(val).argmax(dim=-1) == val_labels).float().mean()
        accuracies.append(100 * float(right))
        after_epoch()

    monkeypatch.setattr(trainer, "forward_backward", noted)
    monkeypatch.setattr(trainer, "after_epoch", tested)
    trainer.optim.zero_grad()
    case.train(monkeypatch)
    difference(torch.stack(alphas), recorded["traj.alpha"], TRAJECTORY, "traj.alpha")
    case.compare_training()
    print(accuracies, case.case["val_accuracy_per_epoch"])
    assert accuracies == pytest.approx(case.case["val_accuracy_per_epoch"])


@pytest.mark.parametrize("name", cases_of("TipAdapter"))
def test_tip_adapter_repeats_the_reference(name, make_case, monkeypatch):
    case = make_case(name, FINE_TUNE=False, SEARCH="val")
    trainer, recorded, learner = case.trainer, case.recorded, case.learner
    tokens = torch.stack([each.tokens for each in learner.ensemble], dim=1).to(torch.int32)
    assert torch.equal(tokens, recorded["tokenized_prompts"])
    difference(trainer.model.encode_text().t(), recorded["clip_weights"], LOGITS, "text")
    labels = (2 * torch.arange(8) + 1) % case.classes
    assert torch.equal(labels, recorded["val.labels"])
    trainer.val_loader = [{"img": case.after[:8], "label": labels}]
    trainer.fill_cache()
    difference(learner.weight.t(), recorded["cache_keys"], LOGITS, "keys")
    assert torch.equal(torch.nn.functional.one_hot(learner.labels), recorded["cache_values"].long())
    difference(case.logits(case.tested), recorded["logits_all8"], LOGITS, "logits_all8")
    difference(case.logits(case.after[:8]), recorded["val.logits_tip_init"], LOGITS, "val")
    trainer.train()
    found = [float(learner.beta), float(learner.alpha)]
    assert found == pytest.approx(case.case["searched"]["tip_beta_alpha"])
    difference(case.logits(case.tested), recorded["logits_tip_searched"], LOGITS, "searched")


@pytest.mark.parametrize("name", cases_of("TipAdapter"))
def test_tip_adapter_f_repeats_the_reference(name, make_case, monkeypatch):
    case = make_case(name)
    trainer, recorded, learner = case.trainer, case.recorded, case.learner
    trainer.fill_cache()
    difference(learner.weight, recorded["init.weight"], LOGITS, "keys")
    first = slice(*case.traj["batch_slices"][0])
    images, labels = case.training.views[0, first], recorded["train.labels"][first]
    difference(case.logits(images), recorded["logits"], LOGITS, "logits")
    (loss,) = trainer.losses(images, labels).values()
    difference(loss, recorded["loss"], LOGITS, "loss")
    loss.backward()
    case.compare_gradients()
    trainer.optim.zero_grad()

    tested, after_epoch = [], trainer.after_epoch
    monkeypatch.setattr(
        trainer, "after_epoch", lambda: (tested.append(case.logits(case.tested)), after_epoch())
    )
    case.train(monkeypatch)
    difference(torch.stack(tested), recorded["traj.test_logits"], TRAJECTORY, "traj.test_logits")
    case.compare_training()


def test_all_recordings_are_here():
    assert {method: len(cases_of(method)) for method in sorted(set(CASES.values()))} == {
        "CLAP": 3,
        "CLIPAdapter": 6,
        "LPPlusPlus": 3,
        "TaskRes": 4,
        "TipAdapter": 3,
        "ZSLinearProbe": 3,
    }
