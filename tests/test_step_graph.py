"""The training step as a CUDA graph: when it is replayed, and that its steps are the eager ones.

Without a GPU, a stand-in takes the place of the capture; tests/test_on_a_gpu.py has the real one.
"""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from prompted_clip.prompted_clip import PromptedCLIP
from trainers import step_graph
from trainers.coop import CoOp
from trainers.step_graph import (
    NOTICE,
    WARM_UPS,
    GraphedStep,
    StepOutput,
    cuda_graph_safe,
    difference,
    gradient_step,
)

CPU = torch.device("cpu")
NAMES = ["abyssinian", "bengal", "german shorthaired", "siamese"]
METHODS = ["CoOp", "CoCoOp", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MaPLeSRC"]


class StandIn:
    """A capture whose graph computes again, into the captured tensors; they hold nothing of use before."""

    def __init__(self) -> None:
        self.capturing = False
        self.replays = 0

    def __call__(self, compute: Any, stream: None) -> Any:
        self.capturing = True
        try:
            result = compute()
        finally:
            self.capturing = False
        for tensor in tensors_of(result):
            tensor.fill_(float("nan"))

        def launch() -> None:
            self.replays += 1
            for old, new in zip(tensors_of(result), tensors_of(compute()), strict=True):
                old.copy_(new)

        return launch, result


def tensors_of(result: Any) -> list[Tensor]:
    metrics, _, gradients = result
    return [metrics, *(each for each in gradients if each is not None)]


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(step_graph, "capture", stand_in)
    return stand_in


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str, *options: Any) -> Any:
        torch.manual_seed(0)
        words = ["INPUT.SIZE", (32, 32), f"TRAINER.{name.upper()}.PREC", "fp32", "OPTIM.LR", 0.01, *options]
        run = bare_trainer(
            name, golden_checkpoint("tiny_public"), NAMES, words, "vit_b16.yaml", template="a {}."
        )
        run.num_batches = 4
        return run

    return make


def train(run: Any, epochs: int = 2) -> list[dict[str, float]]:
    """What each step logged; the batches have two images, but for the last but two."""
    torch.manual_seed(1)
    logged = []
    for epoch in range(epochs):
        run.epoch = epoch
        run.before_epoch()
        for index in range(4):
            run.batch_idx = index
            size = 1 if (epoch, index) == (1, 1) else 2
            batch = {"img": torch.randn(size, 3, 32, 32), "label": torch.randint(4, (size,))}
            logged.append(run.forward_backward(batch))
    return logged


@pytest.mark.parametrize(("name", "scaled"), [(name, False) for name in METHODS] + [("MaPLe", True)])
def test_replayed_steps_are_the_eager_ones(name, scaled, make_trainer, gpu, capsys):
    eager, graphed = runs = [make_trainer(name) for _ in range(2)]
    for run in runs:
        run.scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
    graphed.graphed_step = GraphedStep(partial(gradient_step, graphed), 1e-3, CPU)
    logged = [train(run) for run in runs]
    assert gpu.replays == 8 - WARM_UPS - 1, "of complete batches, after those that warm up"
    assert NOTICE not in capsys.readouterr().out
    for right, ours in zip(*logged, strict=True):
        assert ours == pytest.approx(right, rel=1e-5)
    right, ours = (dict(run.model.prompt_learner.named_parameters()) for run in runs)
    for key, tensor in right.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-7)
        assert (ours[key].grad is None) == (tensor.grad is None), key
        assert ours[key].grad is None or ours[key].grad.stride() == tensor.grad.stride(), key
    assert graphed.optim.state_dict()["param_groups"] == eager.optim.state_dict()["param_groups"]


class ViewConsistency(CoOp):
    """Losses of two views of each image, and of its number; the model is the method's own."""

    settings = CoOp.settings
    takes_views = True

    class model_class(PromptedCLIP):
        def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
            return 2 * super().logits(image_features, text_features)

    def parse_batch_train(self, batch: Any) -> Any:
        return *super().parse_batch_train(batch), batch["index"].to(self.device)

    @cuda_graph_safe
    def losses(self, views: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        first, second = (self.model(images).softmax(dim=1) for images in views)
        moved = (index * (first - second).square().sum(dim=1)).mean()
        return {"loss_ce": F.nll_loss(first.log(), labels), "loss_views": moved}


def test_all_that_a_method_takes_of_a_batch_reaches_its_losses(make_trainer, monkeypatch, gpu):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "ViewConsistency", ViewConsistency)
    eager, graphed = (make_trainer("ViewConsistency", "DATALOADER.K_TRANSFORMS", 2) for _ in range(2))
    graphed.graphed_step = GraphedStep(partial(gradient_step, graphed), 1e-3, CPU)
    torch.manual_seed(1)
    for index in range(WARM_UPS + 4):
        views, labels, numbers = torch.randn(2, 2, 3, 32, 32), torch.randint(4, (2,)), torch.randint(9, (2,))
        run_one = {"img": list(views), "label": labels, "index": numbers}
        for run in (eager, graphed):
            run.batch_idx, run.num_batches = index, WARM_UPS + 4
        with torch.no_grad():
            first, second = (eager.model(images).softmax(dim=1) for images in views)
            plain = PromptedCLIP.logits(
                eager.model, eager.model.encode_image(views[0]), eager.model.encode_text()
            )
            assert torch.equal(first, (2 * plain).softmax(dim=1))
            expected = (numbers * (first - second).square().sum(dim=1)).mean()
        logged = [run.forward_backward(run_one) for run in (eager, graphed)]
        assert logged[0]["loss_views"] == pytest.approx(float(expected), rel=1e-5)
        assert logged[1] == pytest.approx(logged[0], rel=1e-5)
    assert gpu.replays == 4


def test_views_that_a_method_does_not_take_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"^DATALOADER.K_TRANSFORMS is 2; allowed is 1: CoOp takes one view"):
        make_trainer("CoOp", "DATALOADER.K_TRANSFORMS", 2)


def test_inputs_that_are_no_tensors_stay_eager(capsys):
    step = GraphedStep(lambda image, words: StepOutput(image, {"said": words}, []), 1e-3, CPU)
    for _ in range(WARM_UPS + 3):
        assert step(torch.ones(()), "a word").terms == {"said": "a word"}
    assert capsys.readouterr().out == f"{NOTICE}parse_batch_train does not give tensors alone\n"


class Line:
    """A step of a model with one learned tensor; `shift` runs in each step and moves the gradient."""

    def __init__(self, shift: Any = lambda: 0.0) -> None:
        self.weight = torch.ones(3, requires_grad=True)
        self.shift = shift

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        loss = F.mse_loss(images @ self.weight, labels) + self.shift() * self.weight.sum()
        return StepOutput(loss.detach(), {}, list(torch.autograd.grad(loss, [self.weight])))


def inputs_of(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)) for _ in range(steps)
    ]


def draw() -> float:
    return random.random() + float(torch.rand(())) + float(np.random.rand())


@pytest.mark.parametrize("case", ["draws random numbers", "syncs"])
def test_an_unsafe_step_stays_eager_with_the_same_numbers(case, gpu, capsys):
    def sync() -> float:
        if gpu.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nand a trace")
        return draw()

    seen = []
    for graphed in (False, True):
        set_random_seed(0)
        line = Line(sync if case == "syncs" else draw)
        step = GraphedStep(line, 1e-3, CPU) if graphed else line
        seen.append([step(*each).gradients[0] for each in inputs_of(WARM_UPS + 3)])
        seen[-1] += [torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
    assert all(torch.equal(ours, right) for right, ours in zip(*seen, strict=True))
    why = {"draws random numbers": "its gradients differ by", "syncs": "it cannot be captured (operation not"}
    (notice,) = capsys.readouterr().out.splitlines()
    assert notice.startswith(NOTICE + why[case])


def test_each_epoch_is_compared_again(capsys):
    line = Line()
    step = GraphedStep(line, 1e-3, CPU)
    for each in inputs_of(WARM_UPS + 2):
        step(*each)
    assert step.graph is not None
    line.shift = lambda: 1.0  # such as a loss that depends on the epoch
    step.graph._launch = lambda: None
    step.begin_epoch()
    (inputs,) = inputs_of(1)
    assert torch.equal(step(*inputs).gradients[0], line(*inputs).gradients[0])
    assert step.disabled
    assert capsys.readouterr().out.count(NOTICE) == 1


def test_infinite_gradients_are_not_compared(gpu):
    shift = {"now": float("inf")}
    step = GraphedStep(Line(lambda: shift["now"]), 1e-3, CPU)
    for each in inputs_of(WARM_UPS + 2):
        step(*each)
    assert gpu.replays == 0
    shift["now"] = 0.0
    for each in inputs_of(2):
        step(*each)
    assert gpu.replays == 2
    assert not step.disabled


def test_a_graph_that_leaves_too_little_memory_is_dropped(capsys):
    line = Line()
    step = GraphedStep(line, 1e-3, CPU)
    for each in inputs_of(WARM_UPS + 1):
        step(*each)

    def fill(only_beside_a_graph: bool) -> float:
        if step.graph is not None or not only_beside_a_graph:
            raise torch.OutOfMemoryError
        return 0.0

    line.shift = lambda: fill(only_beside_a_graph=True)
    step.begin_epoch()
    (inputs,) = inputs_of(1)
    assert torch.equal(step(*inputs).gradients[0], line(*inputs).gradients[0])
    assert "it leaves too little memory for eager steps" in capsys.readouterr().out
    line.shift = lambda: fill(only_beside_a_graph=False)
    with pytest.raises(torch.OutOfMemoryError):
        step(*inputs)


def test_losses_outlast_the_next_replay():
    step, inputs = GraphedStep(Line(), 1e-3, CPU), inputs_of(WARM_UPS + 4)
    losses = [step(*each).loss for each in inputs]
    assert torch.equal(torch.stack(losses), torch.stack([Line()(*each).loss for each in inputs]))


def test_gradients_are_as_backward_leaves_them():
    first, second, third = tensors = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    loss = (first + second).square().sum() + third.sum() + (torch.randn(4, 3) @ third.t()).sum()
    gradients = step_graph.own_grads(torch.autograd.grad(loss, tensors, retain_graph=True), tensors)
    loss.backward()
    assert all(torch.equal(ours, each.grad) for ours, each in zip(gradients, tensors, strict=True))
    assert [each.stride() for each in gradients] == [(3, 1)] * 3
    assert len({each.data_ptr() for each in gradients}) == 3


def test_how_gradients_differ():
    large, small = torch.tensor([1.0, -100.0]), torch.tensor([1e-9])
    assert difference([None], [None]) == difference([large, None], [large, None]) == 0
    assert difference([large + 1], [large]) == pytest.approx(0.01)
    assert difference([large, small], [large, -small]) < 1e-6, "noise beside the largest"
    assert difference([None], [large]) == float("inf")
    assert not difference([torch.tensor([float("nan"), 0.0])], [large]) < float("inf")


class TestWhatIsReplayed:
    """Known before the first step, on a machine that seems to have a GPU."""

    def graphed(self, run: Any) -> Any:
        run.device = SimpleNamespace(type="cuda")
        return run.graphed_step

    @pytest.mark.parametrize("name", METHODS)
    def test_all_methods(self, name, make_trainer, capsys):
        assert isinstance(self.graphed(make_trainer(name)), GraphedStep)
        assert NOTICE not in capsys.readouterr().out

    def test_not_on_a_cpu_nor_where_it_is_off(self, make_trainer, capsys):
        assert make_trainer("MaPLe").graphed_step is None
        run = make_trainer("MaPLe")
        run.cfg.defrost()
        run.cfg.TRAIN.CUDA_GRAPHS = "off"
        assert self.graphed(run) is None
        assert NOTICE not in capsys.readouterr().out

    def test_a_wrong_setting(self, make_trainer):
        run = make_trainer("MaPLe")
        run.cfg.defrost()
        run.cfg.TRAIN.CUDA_GRAPHS = "on"
        with pytest.raises(ValueError, match=r"^TRAIN.CUDA_GRAPHS is 'on'; allowed are auto and off\.$"):
            run.check_cfg(run.cfg)

    @pytest.mark.parametrize(
        ("own", "why"),
        [
            ({"losses": lambda self, images, labels: {}}, "MaPLe.losses is not marked as cuda_graph_safe"),
            ({"model_backward_and_update": lambda self, loss, names=None: None}, "MaPLe has a model_backw"),
            ({"model_zero_grad": lambda self, names=None: None}, "MaPLe has a model_zero_grad of its own"),
        ],
    )
    def test_trainers_with_steps_of_their_own(self, own, why, make_trainer, capsys):
        run = make_trainer("MaPLe")
        run.__class__ = type("MaPLe", (type(run),), own)
        assert self.graphed(run) is None
        assert NOTICE + why in capsys.readouterr().out

    def test_losses_marked_by_the_earlier_name(self, make_trainer):
        run = make_trainer("MaPLe")
        own = {"losses": step_graph.replayable(lambda self, images, labels: {})}
        run.__class__ = type("MaPLe", (type(run),), own)
        assert self.graphed(run) is not None

    def test_several_processes_and_hooks(self, make_trainer, capsys, monkeypatch):
        run = make_trainer("MaPLe")
        run.model.prompt_learner.ctx.register_hook(lambda gradient: 2 * gradient)
        assert self.graphed(run) is None
        monkeypatch.setattr(step_graph, "get_world_size", lambda: 2)
        assert self.graphed(make_trainer("MaPLe")) is None
        printed = capsys.readouterr().out
        assert f"{NOTICE}there are hooks on gradients\n" in printed
        assert f"{NOTICE}several processes share a batch\n" in printed
