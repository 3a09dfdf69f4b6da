"""Training on fixed views, of which the constant part of the image encoder is computed once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers import relative_error
from test_methods import LEARNING, NAMES, options_of
from test_step_graph import StandIn
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

from dassl.utils.rng import seeded
from prompted_clip.errors import UserError
from prompted_clip.resnet import ModifiedResNet
from trainers import features, step_graph
from trainers.features import FEATURES, PIXELS
from trainers.step_graph import GraphedStep, gradient_step

LAYERS = 4
SHOTS, VIEWS = 2, 3
# Methods with settings of theirs, and what is kept: the states before a block, from 0 on, or the features.
PLACES: list[tuple[str, dict[str, Any], Any]] = [
    ("CoOp", {}, FEATURES),
    ("TCP", {}, FEATURES),
    ("ProGrad", {}, FEATURES),
    ("IVLP", {"N_CTX_VISION": 0, "PROMPT_DEPTH_VISION": 0}, FEATURES),
    ("CLIPLoRA", {"ENCODER": "text"}, FEATURES),
    ("VPT", {}, 0),
    ("MaPLe", {}, 0),
    ("CoPrompt", {}, 0),
    ("PromptSRC", {}, 0),
    ("MMRL", {}, 1),
    ("MMRL", {"REP_LAYERS": (1, 3)}, 0),
    ("MMRL", {"REP_LAYERS": (4,)}, 3),
    ("MMRLpp", {"REP_LAYERS": (3, 4)}, 2),
    ("MMA", {}, 0),
    ("MMA", {"ADAPTER_START": 3}, 2),
    ("CLIPLoRA", {"POSITION": "half-up"}, 2),
    ("CLIPLoRA", {"POSITION": "top3", "ENCODER": "vision"}, 1),
    ("TwoStageFS", {"VISION_START": 3}, 3),
    ("TwoStageFS", {"PEFT": "bitfit", "VISION_START": 2}, 0),  # with the bias of `ln_pre`
    ("TwoStageFS", {"PEFT": "lora", "VISION_START": 2}, 2),
    ("TwoStageFS", {"MODALITY": "text"}, 3),
]
WHOLE = [(name, {}) for name in LEARNING if name != "TipAdapter"]  # which has another use for views
CASES = [*WHOLE, *((name, form) for name, form, _ in PLACES if form)]


class Images(Dataset):
    """Noise, which an augmentation changes by as much, of both generators in use."""

    def __init__(self, several: int) -> None:
        self.several = several
        self.pixels = torch.randn(SHOTS * len(NAMES), 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = [self.pixels[index] + torch.randn(3, 32, 32) for _ in range(self.several)]
        return {"img": drawn if self.several > 1 else drawn[0], "label": index % len(NAMES)}


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str, form: dict[str, Any], *options: Any) -> Any:
        torch.manual_seed(0)
        words = ["INPUT.SIZE", (32, 32), "DATALOADER.VIEWS", VIEWS, "DATALOADER.NUM_WORKERS", 0, "SEED", 1]
        words += ["DATALOADER.K_TRANSFORMS", 2 if name == "CoPrompt" else 1, "OPTIM.LR", 0.01]
        words += [*options_of(name, "fp32", **form), *options]
        run = bare_trainer(name, golden_checkpoint("tiny_public"), NAMES, words, "vit_b16.yaml")
        run.model.double()
        for tensor in run.model.prompt_learner.parameters():
            tensor.data.normal_(std=0.1)
        images = DataLoader(Images(run.cfg.DATALOADER.K_TRANSFORMS), batch_size=4)
        run.dm.train_loader_x = images
        run.train_loader_x = features.ViewLoader(images, run)
        run.epoch, run.num_batches = 0, len(images) + 1
        return run

    return make


def trained(run: Any, epochs: int = 2) -> tuple[list[Any], dict[str, Tensor]]:
    """What the steps' losses were, and what was learned."""
    run.set_model_mode("train")
    losses = []
    with seeded(2):
        for epoch in range(epochs):
            run.epoch, run.batch_idx = epoch, 0
            losses += [run.forward_backward(batch) for batch in run.train_loader_x]
    return losses, {name: each.detach().clone() for name, each in run.model.named_parameters()}


@pytest.mark.parametrize(("name", "form", "place"), PLACES)
def test_the_place_is_where_learning_begins(name, form, place, make_trainer):
    assert features.place_of(make_trainer(name, form).model) == place


@pytest.mark.parametrize(("name", "form"), CASES)
def test_training_is_that_on_the_pixels_of_the_same_views(name, form, make_trainer, monkeypatch):
    run = make_trainer(name, form)
    start = {key: each.detach().clone() for key, each in run.model.named_parameters()}
    losses, ours = trained(run)
    assert run.place != PIXELS
    monkeypatch.setattr(features, "place_of", lambda model: PIXELS)
    right_losses, right = trained(make_trainer(name, form))
    assert losses == [pytest.approx(each, rel=1e-12) for each in right_losses]
    assert ours.keys() == right.keys()
    moved = [key for key in right if not torch.equal(right[key], start[key])]
    assert moved
    assert all(relative_error(ours[key], right[key]) <= 1e-12 for key in right if right[key].any())


def test_a_graph_replays_steps_on_kept_states(make_trainer, monkeypatch):
    """Each batch has images of its own: the captured step reads the rows that it is told."""
    monkeypatch.setattr(step_graph, "capture", StandIn())
    run, eager = make_trainer("MMRL", {}), make_trainer("MMRL", {})
    run.graphed_step = GraphedStep(partial(gradient_step, run), 1e-9, torch.device("cpu"))
    (ours_losses, ours), (right_losses, right) = trained(run, 4), trained(eager, 4)
    assert run.graphed_step.graph is not None
    assert ours_losses == [pytest.approx(each, rel=1e-12) for each in right_losses]
    assert all(relative_error(ours[key], right[key]) <= 1e-12 for key in right)


# --- where learning begins, found from the model ------------------------------------------------------------


def learn(block: nn.Module) -> None:
    block.ln_2.bias.requires_grad_()


def hook(block: nn.Module) -> None:
    block.mlp.register_forward_hook(lambda module, args, out: 2 * out)


def drop(block: nn.Module) -> None:
    block.mlp.c_proj = nn.Sequential(block.mlp.c_proj, nn.Dropout(0.5))


def parametrize_weight(block: nn.Module) -> None:
    added = nn.Linear(1, 1)
    added.forward = lambda weight: weight + added.bias  # type: ignore[method-assign]
    parametrize.register_parametrization(block.attn, "in_proj_weight", added)


@pytest.mark.parametrize("change", [learn, hook, drop, parametrize_weight])
def test_a_block_that_was_changed_from_outside_is_not_kept(change, make_trainer):
    model = make_trainer("CoOp", {}).model
    change(model.clip_model.visual.transformer.resblocks[2])
    assert features.place_of(model) == 2


@pytest.mark.parametrize("name", ["conv1.weight", "positional_embedding", "class_embedding"])
def test_pixels_are_kept_where_the_embeddings_learn(name, make_trainer):
    model = make_trainer("MaPLe", {}).model
    model.clip_model.visual.get_parameter(name).requires_grad_()
    assert features.place_of(model) == PIXELS


def test_a_learner_with_image_features_of_its_own_gets_states(make_trainer):
    run = make_trainer("CoOp", {})

    class Patches(type(run.model.prompt_learner)):
        def image_features(self, clip_model: Any, image: Any) -> Tensor:
            visual = clip_model.vision_transformer()
            return visual.project(visual.hidden_states(image)).mean(dim=1)

    run.model.prompt_learner.__class__ = Patches
    assert features.place_of(run.model) == LAYERS - 1
    batch = next(iter(run.train_loader_x))
    pixels = features.views_of(run, PIXELS).rows()[0][batch["img"].numbers]
    assert relative_error(run.model(batch["img"]), run.model(pixels)) <= 1e-12


def test_a_resnet_that_does_not_learn_gives_features(make_trainer):
    model = make_trainer("CoOp", {}).model
    model.clip_model.visual = ModifiedResNet((1, 1, 1, 1), 8, 2, 32, 8).requires_grad_(False)
    assert features.place_of(model) == FEATURES
    model.clip_model.visual.conv1.weight.requires_grad_()
    assert features.place_of(model) == PIXELS


def test_states_are_refused_where_something_learns_before_them_by_now(make_trainer):
    run = make_trainer("MMRL", {"REP_LAYERS": (3, 4)})
    batch = next(iter(run.train_loader_x))
    learn(run.model.clip_model.visual.transformer.resblocks[1])
    with pytest.raises(UserError, match="Images were kept as they enter block 2 of the image encoder"):
        run.model(batch["img"])
