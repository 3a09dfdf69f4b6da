"""Parity of methods of 2023 to 2025 with their authors' code, as tests/golden/README.md says.

Logits, gradients, and ten steps, through each trainer's own step and its own test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GOLDEN, golden_script
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from dassl.data.datasets import DATASET_REGISTRY

LOGITS, GRADIENTS, TRAJECTORY = 1e-5, 1e-4, 1e-3
NEAR_ZERO = 1e-3  # of the largest gradient: smaller ones are held against this
FOLDER = GOLDEN / "methods"
METHODS = ("ProGrad", "TCP", "MMA", "MMRL", "MMRLpp", "CoPrompt")
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
NAMES = {"MultiModalAdapter": "MMA"}  # of the authors' trainers, where ours has another
METHOD_OF = {name: NAMES.get(case.get("trainer"), case.get("trainer")) for name, case in RECORDED.items()}
CASES = [name for name, method in METHOD_OF.items() if method in METHODS]
# The settings of a method under their names here, where those of the authors differ.
RENAMED = {
    "ProGrad": {"LOSS.LAMBDA": "LAMBDA", "LOSS.T": "T"},
    "TCP": {"insert_before_block_counted_from_0": "BLOCK"},
}
UNUSED = {
    "ProGrad": {"LOSS.NAME"},
    # Always 4 tokens, for all classes; and a weight that is overwritten by 1.
    "TCP": {"TRAINER.COOP.N_CTX", "TRAINER.COOP.CSC", "TRAINER.COOP.W"},
}
VALUES: dict[str, dict[Any, Any]] = {
    "ProGrad.CTX_INIT": {True: "template", False: ""},
    "TCP.CTX_INIT": {True: "a photo of a", False: ""},
}
# The authors' own optimizers, where the trajectory of all cases has another.
ADAMW = {"OPTIM.NAME": "adamw", "OPTIM.WEIGHT_DECAY": 5e-4}
OWN_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "TCP": {"OPTIM.NAME": "adam", "OPTIM.EPS": 1e-3, "OPTIM.WEIGHT_DECAY": 5e-4},
    "MMA": {"OPTIM.WARMUP_EPOCH": 0},
    "MMRL": ADAMW,
    "MMRLpp": ADAMW,
}


class Case:
    """A recording, and the trainer that has to repeat it."""

    def __init__(self, name: str, build: Callable[..., Any], folder: Path, **options: Any) -> None:
        self.case = RECORDED[name]
        self.recorded = load_file(FOLDER / f"{name}.safetensors")
        self.method = METHOD_OF[name]
        preset, self.labels = self.case["preset_args"], torch.tensor(self.case["labels"])
        self.images = torch.from_numpy(golden_script.make_images(preset["seed"], 8, preset["res"]))
        options = self.settings() | options
        if "class_sentences" in self.case:
            file = folder / f"{name}.json"
            file.write_text(json.dumps(self.case["class_sentences"]))
            options["TRAINER.COPROMPT.DESCRIPTIONS"] = str(file)
        dataset = DATASET_REGISTRY.get(self.case["cfg"]["DATASET.NAME"])
        self.trainer = build(
            self.method,
            preset,
            self.case["classnames"],
            [each for pair in options.items() for each in pair],
            template=dataset.template,
        )
        self.learned = dict(self.trainer.model.named_parameters())
        for entry in self.case["trainable"]:
            key, tensor = entry["name"], self.learned[self.our_name(entry["name"])]
            if entry["init"] == "token_embedding":  # the trainer finds it by itself
                self.compare(f"init.{key}", tensor, 0)
                continue
            initial = golden_script.prompt_init(key, preset["seed"], tuple(entry["shape"]))
            tensor.data.copy_(torch.from_numpy(initial))

    def settings(self) -> dict[str, Any]:
        """The case's configuration, by this project's keys."""
        found: dict[str, Any] = {}
        for key, value in self.case["cfg"].items():
            if key.startswith(("INPUT.", "OPTIM.", "DATASET.")):
                found[key] = tuple(value) if isinstance(value, list) else value
            elif key not in UNUSED.get(self.method, ()):
                name = RENAMED.get(self.method, {}).get(key, key.rpartition(".")[2])
                value = tuple(value) if isinstance(value, list) else value
                value = VALUES.get(f"{self.method}.{name}", {}).get(value, value)
                found[f"TRAINER.{self.method.upper()}.{name}"] = value
        return found

    def our_name(self, name: str) -> str:
        """The learner's own names are those of the published checkpoint."""
        return f"prompt_learner.{name.removeprefix(self.case['registered_model'] + '.')}"

    def recorded_names(self) -> dict[str, Tensor]:
        """What is learned, under the authors' names."""
        return {entry["name"]: self.learned[self.our_name(entry["name"])] for entry in self.case["trainable"]}

    def compare(self, key: str, ours: Tensor, tolerance: float, scale: float = 0.0) -> None:
        """Holds a tensor against the recorded one, of which there may be samples only.

        Args:
            scale: the least that differences are held against.
        """
        ours, recorded = ours.detach(), self.recorded[key]
        sampled = self.case["sampled"].get(key)
        if sampled is not None:
            norm = float(ours.double().norm())
            assert norm == pytest.approx(sampled["norm"], rel=max(tolerance, 1e-5), abs=tolerance * scale)
            ours = ours.flatten()[:: sampled["stride"]]
        scale = max(scale, float(recorded.abs().max()))
        error = (
            float((ours - recorded).abs().max()) / scale if scale else float((ours - recorded).abs().max())
        )
        assert error <= tolerance, f"{key}: {error:.2e} > {tolerance:.0e}"

    def batch(self, step: int) -> dict[str, Any]:
        start, stop = self.case["traj"]["traj"]["batch_slices"][step % 2]
        images: Any = self.images[start:stop]
        if "images2" in self.case:
            preset = self.case["preset_args"]
            second = golden_script.make_images(preset["seed"] + 1, 8, preset["res"])
            images = [images, torch.from_numpy(second)[start:stop]]
        return {"img": images, "label": self.labels[start:stop]}

    def step(self, step: int) -> dict[str, Any]:
        self.trainer.num_batches = 2
        self.trainer.batch_idx = step % 2
        with pytest.MonkeyPatch.context() as patch:
            if "sentence_index_of_step" in self.case:  # CoPrompt draws one of each class's
                patch.setattr("random.randint", lambda *_: self.case["sentence_index_of_step"][step])
            return self.trainer.forward_backward(self.batch(step))

    def test(self, images: Tensor) -> Tensor:
        """Logits of the trainer's own test."""
        self.trainer.set_model_mode("eval")
        with torch.no_grad():
            logits = self.trainer.model_inference(images)
        self.trainer.set_model_mode("train")
        return logits

    def train(self, name: str) -> None:
        """Ten steps, and what came of them, against a recorded trajectory."""
        recorded = self.case["traj"][name]
        final = name.replace("traj", "final")
        losses, rates = [], []
        for step in range(10):
            rates.append(self.trainer.get_current_lr())
            losses.append(self.step(step)[self.loss_key()])
        assert rates == recorded["lr_used"]
        self.compare(f"{name}.loss", torch.tensor(losses), TRAJECTORY)
        if (
            recorded["optimizer"] == "sgd"
        ):  # of Adam, an entry without a gradient moves by the rate either way
            for key, tensor in self.recorded_names().items():
                self.compare(f"{final}.{key}", tensor, TRAJECTORY)
        self.compare_test(final + "_", TRAJECTORY)

    def loss_key(self) -> str:
        return "loss"

    def compare_test(self, prefix: str, tolerance: float) -> None:
        """The trainer's own test, against what was recorded; MMRL's, for each of its rules."""
        first = len(self.batch(0)["label"])
        if f"{prefix}logits_all8.fs" in self.recorded:
            learner = self.trainer.model.prompt_learner
            here = learner.identity
            trained = {
                "b2n_base": here,
                "b2n_new": here | {"classnames": ["one of the others"]},
                "fs": {},  # tested in the run that has trained it
                "cd": here | {"data": {"DATASET.NAME": "ImageNet"}},
            }
            for rule, identity in trained.items():
                learner.loaded_identity = identity
                logits = self.test(self.images)
                self.compare(f"{prefix}logits_all8.{rule}", logits, tolerance)
                if rule == "b2n_new":
                    self.compare(f"{prefix}logits", logits[:first], tolerance)
            learner.loaded_identity = {}
            return
        logits = self.test(self.images)
        self.compare(f"{prefix}logits", logits[:first], tolerance)
        self.compare(f"{prefix}logits_all8", logits, tolerance)


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def make_case(bare_trainer: Any, weights_folder: Path) -> Callable[..., Case]:
    def build(method: str, preset: dict[str, Any], *args: Any, **options: Any) -> Any:
        file = weights_folder / f"{preset['seed']}.safetensors"
        if not file.exists():
            weights = golden_script.make_state_dict(**preset)
            save_file(weights | {"logit_scale": weights["logit_scale"].reshape(())}, file)
        return bare_trainer(method, file, *args, "vit_b16.yaml", **options)

    return lambda name, **options: Case(name, build, weights_folder, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_method_repeats_its_authors_code(name: str, make_case: Any) -> None:
    case = make_case(name)
    assert (
        sum(each.numel() for each in case.trainer.model.prompt_learner.parameters())
        == case.case["n_trainable"]
    )
    case.compare_test("", LOGITS)
    summary = case.step(0)
    case.compare("loss", torch.tensor(summary[case.loss_key()]), LOGITS)
    gradients = {key: tensor.grad for key, tensor in case.recorded_names().items()}
    assert all(gradient is not None for gradient in gradients.values())
    scale = NEAR_ZERO * max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        case.compare(f"grad.{key}", gradient, GRADIENTS, scale)


@pytest.mark.parametrize(
    ("name", "trajectory"),
    [
        (name, trajectory)
        for name in CASES
        for trajectory in ("traj", "traj_own")
        if trajectory in RECORDED[name]["traj"]
    ],
)
def test_ten_steps_repeat_the_authors(name: str, trajectory: str, make_case: Any) -> None:
    options = OWN_OPTIMIZERS[METHOD_OF[name]] if trajectory == "traj_own" else {}
    make_case(name, **options).train(trajectory)


def test_all_recordings_are_here() -> None:
    counts = {method: [METHOD_OF[name] for name in CASES].count(method) for method in METHODS}
    assert counts == {"ProGrad": 7, "TCP": 5, "MMA": 4, "MMRL": 5, "MMRLpp": 3, "CoPrompt": 4}
