"""Parity with the authors' CLIP-LoRA and 2SFS: recorded logits, gradients, and ten steps of AdamW."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from safetensors.torch import load_file
from test_golden import GRADIENTS, LOGITS, TRAJECTORY, difference
from torch import Tensor, nn

from trainers.cliplora import LowRank

CASES = sorted(path.stem for path in (GOLDEN / "methods").glob("*.json"))
LORA = [name for name in CASES if "_cliplora_" in name]
TWO_STAGES = [name for name in CASES if "_2sfs_" in name]


class Case:
    """A recording, and trainers that have to repeat it."""

    def __init__(self, name: str, bare_trainer: Any, golden_checkpoint: Any) -> None:
        self.name = name
        self.case = json.loads((GOLDEN / "methods" / f"{name}.json").read_text())
        self.recorded = load_file(GOLDEN / "methods" / f"{name}.safetensors")
        self.cfg, self.preset = self.case["cfg"], self.case["preset"]
        self.seed = self.case["preset_args"]["seed"]
        self.images = load_file(GOLDEN / f"inputs_{self.preset}.safetensors")["images"]
        self.labels = torch.tensor(self.case["labels"])
        self.bare_trainer, self.golden_checkpoint = bare_trainer, golden_checkpoint

    def trainer(self, method: str, own: dict[str, Any], classnames: list[str] | None = None) -> Any:
        options: list[Any] = ["INPUT.SIZE", (self.images.shape[-1],) * 2]
        options += ["OPTIM.LR", self.cfg["lr"], "OPTIM.ITER_PER_SHOT", 0, "OPTIM.MAX_ITER", 10]
        for key, value in {"PREC": "fp32", "TEMPLATE": self.case["template"], **own}.items():
            options += [f"TRAINER.{method.upper()}.{key}", value]
        checkpoint = self.golden_checkpoint(self.preset)
        names = classnames or self.case["classnames"]
        return self.bare_trainer(method, checkpoint, names, options, f"{method}/vit_b16.yaml")

    def compare(self, key: str, ours: Tensor, tolerance: float, floor: float = 0.0) -> None:
        """As `difference`; of tensors that are all but 0, relative to `floor`."""
        recorded = self.recorded[key]
        if float(recorded.abs().max()) < floor:
            assert float((ours.detach() - recorded).abs().max()) <= tolerance * floor, key
        else:
            difference(ours, recorded, tolerance, key)

    def compare_gradients(self, named: dict[str, Tensor], prefix: str = "grad.") -> None:
        recorded = [key for key in self.recorded if key.startswith(prefix)]
        assert sorted(key.removeprefix(prefix) for key in recorded) == sorted(named)
        floor = 1e-3 * max(float(self.recorded[key].abs().max()) for key in recorded)
        for key, tensor in named.items():
            assert tensor.grad is not None, key
            self.compare(f"{prefix}{key}", tensor.grad, GRADIENTS, floor)

    def batch(self, step: int) -> dict[str, Tensor]:
        start, stop = self.case["traj"]["batch_slices"][step % 2]
        return {"img": self.images[start:stop], "label": self.labels[start:stop]}

    def steps(self, trainer: Any, first: int, count: int) -> None:
        """Training steps, with the recorded losses and learning rates."""
        trainer.num_batches = count
        trainer.set_model_mode("train")
        for step in range(count):
            trainer.batch_idx = step
            assert trainer.get_current_lr() == pytest.approx(self.case["traj"]["lr_used"][first + step])
            loss = trainer.forward_backward(self.batch(step))["loss"]
            assert loss == pytest.approx(float(self.recorded["traj.loss"][first + step]), rel=TRAJECTORY)


@pytest.fixture
def make_case(bare_trainer, golden_checkpoint):
    return lambda name: Case(name, bare_trainer, golden_checkpoint)


class RecordedMask(nn.Module):
    """Dropout with the masks of the recording, in place of random ones."""

    def __init__(self, module: str, p: float, seed: int, length: int, order: Tensor) -> None:
        super().__init__()
        self.module, self.p, self.seed, self.length, self.order = module, p, seed, length, order
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:  # (batch length width); the last block may want CLS alone
        if not self.training or not self.p:
            return x
        key = f"mask:{self.module}:{self.step}"
        state = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * self.seed) % 2**32)
        kept = torch.from_numpy(state.random_sample((self.length, *x.shape[::2])) >= self.p).transpose(0, 1)
        kept = kept[self.order[: len(x)]]
        self.step += 1
        return x * kept[:, : x.shape[1]] / (1 - self.p)


@pytest.mark.parametrize("name", LORA)
def test_clip_lora_repeats_the_authors(name, make_case):
    case = make_case(name)
    cfg = case.cfg
    own = {"R": cfg["r"], "ALPHA": float(cfg["alpha"]), "DROPOUT": cfg["dropout"], "ENCODER": cfg["encoder"]}
    own |= {"PARAMS": "".join(cfg["params"]), "POSITION": cfg["position"], "DETACHED": "codezero" in name}
    trainer = case.trainer("CLIPLoRA", own)
    model, learner = trainer.model, trainer.model.prompt_learner
    adapted = {
        encoder: [k for k, each in enumerate(blocks) if each] for encoder, blocks in learner.blocks.items()
    }
    assert adapted == cfg["blocks"]
    learned = dict(learner.named_parameters())
    assert sum(tensor.numel() for tensor in learned.values()) == case.case["trainable_count"]
    assert all(not each.w_lora_B.any() for each in learner.modules() if isinstance(each, LowRank))
    for entry in case.case["trainable"]:
        key = entry["name"]
        state = np.random.RandomState((zlib.crc32(f"init:{key}".encode()) + 1000003 * case.seed) % 2**32)
        bound = entry["shape"][1] ** -0.5
        start = (
            state.uniform(-bound, bound, entry["shape"])
            if key.endswith("A")
            else state.standard_normal(entry["shape"]) * cfg["B_init_std"]
        )
        learned[key].data.copy_(torch.from_numpy(start.astype(np.float32)))
        assert torch.equal(learned[key].data, case.recorded[f"init.{key}"])
    order = {"text": learner.sentences.order, "image": torch.arange(8)}  # of sentences, the longest first
    lengths = {"text": 77, "image": len(model.clip_model.visual.positional_embedding)}
    for key, module in learner.named_modules():
        if isinstance(module, LowRank):
            tower = "image" if key.startswith("visual.") else "text"
            module.dropout = RecordedMask(key, cfg["dropout"], case.seed, lengths[tower], order[tower])

    first = case.batch(0)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        difference(model.encode_text(), F.normalize(case.recorded["text_features"], dim=-1), LOGITS, "text")
        difference(trainer.model_inference(case.images), case.recorded["logits_all8"], LOGITS, "logits_all8")
    trainer.set_model_mode("train")
    logits = model(first["img"])
    difference(logits, case.recorded["logits"], LOGITS, "logits")
    loss = F.cross_entropy(logits, first["label"])
    difference(loss, case.recorded["loss"], LOGITS, "loss")
    loss.backward()
    case.compare_gradients(learned)

    for module in learner.modules():
        if isinstance(module, RecordedMask):
            module.step = 0
    case.steps(trainer, 0, 10)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        difference(trainer.model_inference(case.images), case.recorded["final_logits"], TRAJECTORY, "final")


@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages_repeat_the_authors(name, make_case):
    case = make_case(name)
    cfg, every = case.cfg, case.case["classnames"]
    base = case.case["base_classnames"] if cfg["setting"] == "base2new" else every
    own = {"PEFT": cfg["peft"], "MODALITY": cfg["modality"], "FRACTION": cfg["frac"]}
    own |= {"TEXT_START": cfg["text_start"], "VISION_START": cfg["vision_start"]}
    trainer = case.trainer("TwoStageFS", own, base)
    model, learner = trainer.model, trainer.model.prompt_learner
    tuned = {key: each for key, each in learner.named_parameters() if key != "classifier"}
    assert sorted(tuned) == sorted(
        each["name"] for each in case.case["trainable"] if each["name"] != "classifier"
    )
    assert sum(tensor.numel() for tensor in tuned.values()) == case.case["trainable_count_stage1"]
    assert learner.classifier.numel() == case.case["trainable_count_stage2"]
    first_steps, second_steps = case.case["iterations_stage1"], case.case["iterations_stage2"]
    assert trainer.phase_steps() == [first_steps, second_steps]

    def logits(names: list[str] | None = None) -> Tensor:
        other = model if names is None else model.with_classnames(names)
        with torch.no_grad():
            return other.eval()(case.images)

    first = case.batch(0)
    difference(logits(), case.recorded["logits_all8"], LOGITS, "logits_all8")
    trainer.set_model_mode("train")
    difference(model(first["img"]), case.recorded["logits"], LOGITS, "logits")
    loss = sum(trainer.losses(first["img"], first["label"]).values())
    difference(loss, case.recorded["loss"], LOGITS, "loss")
    loss.backward()
    case.compare_gradients(tuned)

    trainer.begin_phase(0)
    case.steps(trainer, 0, first_steps)
    for key, tensor in tuned.items():
        case.compare(f"stage1.{key}", tensor, TRAJECTORY)
    trainer.begin_phase(1)
    case.compare("stage2.init.classifier", learner.classifier, TRAJECTORY)
    trainer.set_model_mode("train")
    difference(model(first["img"]), case.recorded["stage2.logits"], TRAJECTORY, "stage2.logits")
    trainer.model_zero_grad()
    loss = sum(trainer.losses(first["img"], first["label"]).values())
    difference(loss, case.recorded["stage2.loss"], TRAJECTORY, "stage2.loss")
    loss.backward()
    assert all(tensor.grad is None for tensor in tuned.values())
    case.compare("stage2.grad.classifier", learner.classifier.grad, TRAJECTORY)
    before = {key: tensor.detach().clone() for key, tensor in tuned.items()}
    case.steps(trainer, first_steps, second_steps)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tuned.items())
    case.compare("final.classifier", learner.classifier, TRAJECTORY)

    difference(logits(), case.recorded["final_logits"], TRAJECTORY, "final_logits")
    if cfg["setting"] == "base2new":
        new = case.case["new_classnames"]
        difference(logits(new), case.recorded["final_logits_new"], TRAJECTORY, "final_logits_new")
        difference(logits(every), case.recorded["final_logits_joint"], TRAJECTORY, "final_logits_joint")
        # The same from a checkpoint, as a test of other classes loads it.
        tested = case.trainer("TwoStageFS", own, every)
        tested._models["prompt_learner"].load_state_dict(
            tested.fitting_state("prompt_learner", {"state_dict": learner.state_dict()}, "here"), strict=False
        )
        tested.set_model_mode("eval")
        with torch.no_grad():
            joint = tested.model_inference(case.images)
        difference(joint, case.recorded["final_logits_joint"], TRAJECTORY, "joint")


def test_all_recordings_are_here():
    assert (len(LORA), len(TWO_STAGES)) == (8, 6)
