"""The training step as a CUDA graph: when it is replayed, and that it takes the same steps.

There need be no GPU: a stand-in takes the place of what records and replays.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stand_in_gpu import StandIn
from torch import Tensor

from dassl.utils import set_random_seed
from trainers import step_graph
from trainers.step_graph import (
    WARM_UPS,
    Outcome,
    ReplayedStep,
    difference,
)

NAMES = ["abyssinian", "bengal", "german shorthaired", "siamese"]
METHODS = ["CoOp", "CoCoOp", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MaPLeSRC"]
NOTICE = "The training step is not replayed as a CUDA graph: "


def batches(count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Of two images; the last but two is not complete."""
    torch.manual_seed(1)
    sizes = [1 if index == count - 3 else 2 for index in range(count)]
    return [(torch.randn(size, 3, 32, 32), torch.randint(4, (size,))) for size in sizes]


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str) -> Any:
        torch.manual_seed(0)
        words = ["INPUT.SIZE", (32, 32), f"TRAINER.{name.upper()}.PREC", "fp32", "OPTIM.LR", 0.01]
        run = bare_trainer(
            name, golden_checkpoint("tiny_public"), NAMES, words, "vit_b16.yaml", template="a {}."
        )
        run.num_batches = 4
        return run

    return make


def train(run: Any, epochs: int = 2) -> list[dict[str, float]]:
    """What each batch logged."""
    logged = []
    for epoch in range(epochs):
        run.epoch = epoch
        run.before_epoch()
        for index, (images, labels) in enumerate(batches()[4 * epoch :][:4]):
            run.batch_idx = index
            logged.append(run.forward_backward({"img": images, "label": labels}))
    return logged


@pytest.mark.parametrize(("name", "scaled"), [(name, False) for name in METHODS] + [("MaPLe", True)])
def test_replayed_steps_are_the_steps_computed_anew(name, scaled, make_trainer, capsys):
    runs = [make_trainer(name) for _ in range(2)]
    for run in runs:
        run.scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
    gpu = StandIn()
    runs[1].replayed_step = ReplayedStep(runs[1].gradient_step, 1e-3, gpu)
    plain, replayed = (train(run) for run in runs)
    assert gpu.replays == 8 - WARM_UPS - 1, "of complete batches, behind those that warm up"
    assert NOTICE not in capsys.readouterr().out
    for ours, right in zip(replayed, plain, strict=True):
        assert ours == pytest.approx(right, rel=1e-5)
    ours, right = (dict(run.model.prompt_learner.named_parameters()) for run in reversed(runs))
    for key, tensor in right.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-7)
        assert (ours[key].grad is None) == (tensor.grad is None), key
        assert ours[key].grad is None or ours[key].grad.stride() == tensor.grad.stride(), key
    assert runs[1].optim.state_dict()["param_groups"] == runs[0].optim.state_dict()["param_groups"]


class Line:
    """A step of a model with one learned tensor; `inside` runs within each step."""

    def __init__(self, gpu: StandIn, inside: Any = lambda gpu: 0.0) -> None:
        self.weight = torch.ones(3, requires_grad=True)
        self.gpu, self.inside = gpu, inside
        self.computed = 0

    def __call__(self, images: Tensor, labels: Tensor) -> Outcome:
        self.computed += 1
        loss = F.mse_loss(images @ self.weight, labels) + self.inside(self.gpu) * self.weight.sum()
        return Outcome(loss.detach(), {}, list(torch.autograd.grad(loss, [self.weight])))


def wait(gpu: StandIn) -> float:
    if gpu.forbids_waiting:
        raise RuntimeError("called a synchronizing CUDA operation\nand a trace")
    return 0.5


def break_recording(gpu: StandIn) -> float:
    if gpu.records:
        raise RuntimeError("operation not permitted when stream is capturing")
    return 0.5


def draw(gpu: StandIn) -> float:
    return random.random() + float(torch.rand(())) + float(np.random.rand())


def draw_on_the_device(gpu: StandIn) -> Tensor:
    return torch.rand((), generator=gpu.generator)


class Counter:
    """A number of the host that is another in each step."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, gpu: StandIn) -> float:
        self.count += 1
        return float(self.count)


@pytest.mark.parametrize(
    ("make_inside", "room", "why"),
    [
        (
            lambda: wait,
            True,
            "cannot run without waiting for the GPU (called a synchronizing CUDA operation)",
        ),
        (
            lambda: break_recording,
            True,
            "cannot be recorded (operation not permitted when stream is capturing)",
        ),
        (lambda: draw, True, "draws random numbers on the host"),
        (lambda: draw_on_the_device, True, "its gradients differ by"),
        (lambda: lambda gpu: 0.5, False, "its tensors would fill more than a half of the GPU's free memory"),
    ],
)
def test_what_cannot_be_replayed_goes_on_with_the_same_numbers(make_inside, room, why, capsys):
    inputs = [(torch.randn(4, 3), torch.randn(4)) for _ in range(8)]
    seen = []
    for gpu in (None, StandIn(room)):
        set_random_seed(0)
        line = Line(gpu or StandIn(), make_inside())
        step = line if gpu is None else ReplayedStep(line, 1e-3, gpu)  # type: ignore[arg-type]
        seen.append([step(*each).gradients[0] for each in inputs])
        seen[-1] += [torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
    assert all(torch.equal(ours, right) for ours, right in zip(*seen, strict=True))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(NOTICE)
    assert why in line


def test_a_replay_with_other_gradients_is_not_used(capsys):
    gpu = StandIn()
    step = ReplayedStep(Line(gpu, Counter()), 1e-3, gpu)  # type: ignore[arg-type]
    plain = Line(StandIn(), Counter())
    images, labels = torch.randn(4, 3), torch.randn(4)
    for _ in range(WARM_UPS):
        assert torch.equal(step(images, labels).gradients[0], plain(images, labels).gradients[0])
    plain(images, labels)  # the recording ran it once
    assert torch.equal(step(images, labels).gradients[0], plain(images, labels).gradients[0])
    assert step.recording is None
    assert "its gradients differ by" in capsys.readouterr().out


def test_each_epoch_is_compared_anew(capsys):
    gpu = StandIn()
    line = Line(gpu)
    step = ReplayedStep(line, 1e-3, gpu)  # type: ignore[arg-type]
    images, labels = torch.randn(4, 3), torch.randn(4)
    for _ in range(WARM_UPS + 2):
        step(images, labels)
    kept = step.recording
    assert kept is not None
    kept._launch = lambda: None  # its memory is another's now
    kept._gradients = [torch.zeros(3)]
    step.begin_epoch()
    right = line(images, labels).gradients[0]
    assert torch.equal(step(images, labels).gradients[0], right)
    assert step.recording is None
    assert capsys.readouterr().out.count(NOTICE) == 1


def test_gradients_that_are_not_finite_say_nothing_of_a_replay():
    gpu = StandIn()
    shift = {"now": float("inf")}
    step = ReplayedStep(Line(gpu, lambda gpu: shift["now"]), 1e-3, gpu)  # type: ignore[arg-type]
    images, labels = torch.randn(4, 3), torch.randn(4)
    for _ in range(WARM_UPS + 2):
        step(images, labels)
    assert gpu.replays == 0
    shift["now"] = 0.0
    for _ in range(2):
        step(images, labels)
    assert gpu.replays == 2


def test_figures_outlast_the_next_replay():
    gpu = StandIn()
    step = ReplayedStep(Line(gpu), 1e-3, gpu)  # type: ignore[arg-type]
    inputs = [(torch.randn(4, 3), torch.randn(4)) for _ in range(WARM_UPS + 4)]
    losses = [step(*each).loss for each in inputs]
    assert torch.equal(torch.stack(losses), torch.stack([Line(gpu)(*each).loss for each in inputs]))


def test_gradients_are_as_backward_leaves_them():
    first, second, third = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    loss = (first + second).square().sum() + third.sum() + (torch.randn(4, 3) @ third.t()).sum()
    tensors = [first, second, third]
    gradients = step_graph.as_backward_leaves_them(
        torch.autograd.grad(loss, tensors, retain_graph=True), tensors
    )
    loss.backward()
    assert all(torch.equal(ours, each.grad) for ours, each in zip(gradients, tensors, strict=True))
    assert [each.stride() for each in gradients] == [(3, 1)] * 3
    assert len({each.data_ptr() for each in gradients}) == 3


def test_how_gradients_differ():
    large, small = torch.tensor([1.0, -100.0]), torch.tensor([1e-9])
    assert difference([large, None], [large, None]) == 0
    assert difference([large + 1], [large]) == pytest.approx(0.01)
    assert difference([large, small], [large, -small]) < 1e-6, "noise beside the largest"
    for wrong in ([None], [large, large], [torch.tensor([float("nan"), 0.0])], [torch.zeros(3)]):
        assert difference(wrong, [large]) == float("inf")


class TestWhatIsReplayed:
    """Told before the first step, on a machine that seems to have a GPU."""

    @pytest.fixture(autouse=True)
    def with_gpu(self, monkeypatch):
        monkeypatch.setattr("trainers.clip_trainer.Gpu", lambda device: StandIn())

    def replayed(self, run: Any) -> Any:
        run.device = SimpleNamespace(type="cuda")
        return run.replayed_step

    @pytest.mark.parametrize("name", METHODS)
    def test_all_methods(self, name, make_trainer, capsys):
        assert isinstance(self.replayed(make_trainer(name)), ReplayedStep)
        assert NOTICE not in capsys.readouterr().out

    def test_not_on_a_cpu_nor_where_it_is_off(self, make_trainer, capsys):
        run = make_trainer("MaPLe")
        assert run.replayed_step is None
        run = make_trainer("MaPLe")
        run.cfg.defrost()
        run.cfg.TRAIN.CUDA_GRAPHS = "off"
        assert self.replayed(run) is None
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
            ({"losses": lambda self, images, labels: {}}, "MaPLe.losses is not marked as replayable"),
            (
                {"model_backward_and_update": lambda self, loss, names=None: None},
                "a model_backward_and_update",
            ),
            ({"model_zero_grad": lambda self, names=None: None}, "MaPLe has a model_zero_grad of its own"),
        ],
    )
    def test_trainers_with_steps_of_their_own(self, own, why, make_trainer, capsys):
        run = make_trainer("MaPLe")
        run.__class__ = type("MaPLe", (type(run),), own)
        assert self.replayed(run) is None
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(NOTICE)]
        assert why in line

    def test_several_processes_and_hooks(self, make_trainer, capsys, monkeypatch):
        run = make_trainer("MaPLe")
        run.model.prompt_learner.ctx.register_hook(lambda gradient: 2 * gradient)
        assert self.replayed(run) is None
        monkeypatch.setattr("trainers.clip_trainer.processes", lambda: 2)
        assert self.replayed(make_trainer("MaPLe")) is None
        printed = capsys.readouterr().out
        assert f"{NOTICE}there are hooks on gradients\n" in printed
        assert f"{NOTICE}several processes share a batch\n" in printed


def test_what_overrides_marked_losses_is_not_marked():
    class Method:
        @step_graph.replayable
        def losses(self) -> dict[str, Tensor]:
            return {}

    class Other(Method):
        def losses(self) -> dict[str, Tensor]:
            return {}

    assert Method.losses.replayable  # type: ignore[attr-defined]
    assert not hasattr(Other.losses, "replayable")
