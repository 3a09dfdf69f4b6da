"""Optimizers and schedules: the recorded learning rates, upstream's arguments, clear errors."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import ConstantWarmupScheduler, LinearWarmupScheduler, build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam

RECORDED = json.loads((Path(__file__).parent / "golden" / "lr_schedules.json").read_text())


def optim_cfg(**options: Any) -> Any:
    cfg = get_cfg_default()
    for key, value in options.items():
        cfg.OPTIM[key] = value
    return cfg.OPTIM


def recorded_cfg(case: dict) -> Any:
    """Recorded with SGD and a cosine schedule, where the case does not say otherwise."""
    options = {key.removeprefix("OPTIM."): value for key, value in case["optim"].items()}
    return optim_cfg(**{"NAME": "sgd", "LR_SCHEDULER": "cosine", **options})


def train(optimizer: torch.optim.Optimizer, scheduler: Any, epochs: int) -> list[float]:
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_learning_rates_are_the_recorded_ones(case: dict) -> None:
    options = recorded_cfg(case)
    optimizer = build_optimizer(nn.Linear(2, 1), options)
    scheduler = build_lr_scheduler(optimizer, options)
    assert train(optimizer, scheduler, options.MAX_EPOCH) == case["lr_used_per_epoch"]
    assert optimizer.param_groups[0]["lr"] == case["lr_after_last"]
    assert scheduler.get_last_lr() == [case["lr_after_last"]]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_a_schedule_can_be_continued_after_any_epoch(case: dict, tmp_path: Path) -> None:
    options = recorded_cfg(case)
    for done in range(min(options.MAX_EPOCH, 6)):
        optimizer = build_optimizer(nn.Linear(2, 1), options)
        scheduler = build_lr_scheduler(optimizer, options)
        train(optimizer, scheduler, done)
        torch.save(scheduler.state_dict(), tmp_path / "schedule")
        resumed = build_optimizer(nn.Linear(2, 1), options)
        resumed.load_state_dict(optimizer.state_dict())
        its_scheduler = build_lr_scheduler(resumed, options)
        its_scheduler.load_state_dict(torch.load(tmp_path / "schedule", weights_only=True))
        if done:  # building a schedule puts the optimizer to the first epoch; loading has to undo that
            resumed.load_state_dict(optimizer.state_dict())
        rates = train(resumed, its_scheduler, options.MAX_EPOCH - done)
        assert rates == case["lr_used_per_epoch"][done:]


@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_a_warm_up_puts_the_optimizer_to_its_rate(warmup: str) -> None:
    """Also where the optimizer's own state is not loaded."""
    options = optim_cfg(LR=0.1, LR_SCHEDULER="cosine", MAX_EPOCH=8, WARMUP_EPOCH=2, WARMUP_TYPE=warmup)
    optimizer = build_optimizer(nn.Linear(2, 1), options)
    scheduler = build_lr_scheduler(optimizer, options)
    train(optimizer, scheduler, 4)
    state = scheduler.state_dict()
    rates = train(optimizer, scheduler, 4)
    fresh = build_optimizer(nn.Linear(2, 1), options)
    its_scheduler = build_lr_scheduler(fresh, options)
    its_scheduler.load_state_dict(state)
    assert train(fresh, its_scheduler, 4) == rates


def test_warm_ups_take_upstreams_arguments() -> None:
    for warmup in (ConstantWarmupScheduler, LinearWarmupScheduler):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        successor = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        warmup(optimizer, successor, 2, 1e-5, -1, False)
        assert optimizer.param_groups[0]["lr"] == 1e-5


def test_each_group_keeps_its_own_rate() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    options = optim_cfg(LR=0.1, LR_SCHEDULER="cosine", MAX_EPOCH=4, WARMUP_EPOCH=2, WARMUP_TYPE="linear")
    groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[1].parameters()}]
    optimizer = build_optimizer(model, options, param_groups=groups)
    scheduler = build_lr_scheduler(optimizer, options)
    train(optimizer, scheduler, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    train(optimizer, scheduler, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_the_schedules_are_torchs() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for scheduler in (
        ConstantWarmupScheduler(optimizer, successor, 1, 1e-5),
        LinearWarmupScheduler(optimizer, successor, 1, 1e-5),
    ):
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0, "nesterov": False}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "amsgrad": False}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.99}),
        ("radam", RAdam, {"betas": (0.9, 0.999), "decoupled_weight_decay": True}),
    ],
)
def test_optimizers_are_what_the_config_says(name: str, kind: type, expected: dict) -> None:
    optimizer = build_optimizer(nn.Linear(2, 1), optim_cfg(NAME=name, LR=0.01))
    assert type(optimizer) is kind
    settings = {"lr": 0.01, "weight_decay": 5e-4, **expected}
    assert {key: optimizer.defaults[key] for key in settings} == settings


def test_sgd_takes_one_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plain = build_optimizer(models[0], optim_cfg(NAME="sgd", LR=0.1))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        fused = build_optimizer(models[1], optim_cfg(NAME="sgd", LR=0.1))
        sparse = build_optimizer(nn.Embedding(3, 2, sparse=True), optim_cfg(NAME="sgd"))
        damped = build_optimizer(nn.Linear(2, 1), optim_cfg(NAME="sgd", SGD_DAMPNING=0.5))
    optimizers = (plain, fused, sparse, damped)
    assert [each.param_groups[0]["fused"] for each in optimizers] == [None, True, None, None]
    # A loss scaler may skip the first step, in which torch's kernel would set the momentum.
    for tensor in models[1].parameters():
        tensor.grad = torch.full_like(tensor, float("inf"))
    fused.found_inf, fused.grad_scale = torch.ones(()), torch.ones(())
    fused.step()
    del fused.found_inf, fused.grad_scale
    for _ in range(3):
        for model, optimizer in zip(models, (plain, fused), strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    for ours, right in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, right)
    # A state goes from one to the other, and each keeps its own way.
    states = [copy.deepcopy(each.state_dict()) for each in (plain, fused)]
    plain.load_state_dict(states[1])
    fused.load_state_dict(states[0])
    assert [each.param_groups[0]["fused"] for each in (plain, fused)] == [None, True]


def test_eps_is_a_setting_of_the_adam_family() -> None:
    for name in ("adam", "amsgrad", "adamw", "radam"):
        assert build_optimizer(nn.Linear(2, 1), optim_cfg(NAME=name, EPS=1e-3)).defaults["eps"] == 1e-3
    upstream = optim_cfg(NAME="adam")
    del upstream["EPS"]
    assert build_optimizer(nn.Linear(2, 1), upstream).defaults["eps"] == 1e-8


def test_radam_follows_the_paper() -> None:
    """Against the algorithm as printed, with decoupled weight decay."""
    lr, (beta1, beta2), eps, decay = 0.1, (0.9, 0.99), 1e-8, 0.01
    value = torch.tensor([1.0, -2.0], dtype=torch.float64)
    parameter = nn.Parameter(value.clone())
    optimizer = RAdam([parameter], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    first, second = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    longest = 2 / (1 - beta2) - 1
    for step in range(1, 15):
        gradient = value.clone()
        parameter.grad = parameter.detach().clone()
        optimizer.step()
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        length = longest - 2 * step * beta2**step / (1 - beta2**step)
        value = value - lr * decay * value
        update = first / (1 - beta1**step)
        if length >= 5:
            share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            update = update * share**0.5 / (second.sqrt() + eps) * (1 - beta2**step) ** 0.5
        value = value - lr * update
        assert torch.allclose(parameter.detach(), value, rtol=1e-10)
    assert length > 5  # both branches were taken
    with pytest.raises(ValueError, match="degenerated_to_sgd"):
        RAdam([parameter], degenerated_to_sgd=False)


def test_staged_rates_for_new_layers() -> None:
    model = nn.Sequential()
    model.add_module("backbone", nn.Linear(2, 2))
    model.add_module("head", nn.Linear(2, 1))
    options = optim_cfg(NAME="sgd", LR=0.1, STAGED_LR=True, NEW_LAYERS="head", BASE_LR_MULT=0.5)
    optimizer = build_optimizer(model, options)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]
    assert optimizer.param_groups[1]["params"] == list(model.head.parameters())
    with pytest.raises(ValueError, match=r"NEW_LAYERS.*'hed'.*backbone, head"):
        build_optimizer(model, optim_cfg(STAGED_LR=True, NEW_LAYERS=("hed",)))
    with pytest.raises(ValueError, match="STAGED_LR needs a module"):
        build_optimizer(model.parameters(), options)
    with pytest.warns(UserWarning, match="STAGED_LR is ignored"):
        build_optimizer(model, options, param_groups=[{"params": model.head.parameters()}])


def test_parameters_may_come_in_any_form() -> None:
    model = nn.Linear(2, 1)
    parameters = list(model.parameters())
    forms = [
        model,
        model.parameters(),
        parameters,
        [{"params": model.parameters()}],
        [{"params": parameters[0]}],
    ]
    for form in forms:
        held = build_optimizer(form, optim_cfg()).param_groups[0]["params"]
        assert held[0] is parameters[0]


def test_frozen_parameters_stay_in_the_list() -> None:
    """As upstream: the optimizer's state numbers all parameters of the module."""
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    assert len(build_optimizer(model, optim_cfg()).param_groups[0]["params"]) == 2


def test_nothing_to_learn_is_told() -> None:
    later = nn.Linear(2, 1).requires_grad_(False)
    with pytest.warns(UserWarning, match="all 2 parameters are frozen") as caught:
        optimizer = build_optimizer(later, optim_cfg(NAME="sgd"))
    assert caught[0].filename == __file__
    before = later.weight.clone()
    later.requires_grad_(True)(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(later.weight, before)
    for empty in (nn.ReLU(), [], [{"params": []}]):
        with pytest.raises(ValueError, match="no parameters"):
            build_optimizer(empty, optim_cfg())


def test_unknown_names_are_errors_with_a_suggestion() -> None:
    optimizer = build_optimizer(nn.Linear(1, 1), optim_cfg())
    with pytest.raises(ValueError, match=r"OPTIM.NAME is .*did you mean 'adam'"):
        build_optimizer(nn.Linear(1, 1), optim_cfg(NAME="adan"))
    with pytest.raises(ValueError, match=r"OPTIM.LR_SCHEDULER is .*did you mean 'cosine'"):
        build_lr_scheduler(optimizer, optim_cfg(LR_SCHEDULER="cosin"))
    with pytest.raises(ValueError, match=r"OPTIM.WARMUP_TYPE is .*did you mean 'linear'"):
        build_lr_scheduler(optimizer, optim_cfg(WARMUP_EPOCH=1, WARMUP_TYPE="linar"))
    with pytest.raises(ValueError, match="STEPSIZE is empty"):
        build_lr_scheduler(optimizer, optim_cfg(STEPSIZE=()))


@pytest.mark.parametrize(("stepsize", "epochs"), [((-1,), 5), (3, 3), ((1, 4), 4)])
def test_a_single_step_is_the_last_given_or_the_whole_run(stepsize: object, epochs: int) -> None:
    options = optim_cfg(STEPSIZE=stepsize, MAX_EPOCH=5)
    scheduler = build_lr_scheduler(build_optimizer(nn.Linear(1, 1), options), options)
    assert scheduler.step_size == epochs


def test_staged_learning_rates_of_a_wrapped_model() -> None:
    net = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    staged = optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",), LR=0.1)
    groups = build_optimizer(nn.DataParallel(net), staged).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.1])
    assert groups[1]["params"][0] is net.head.weight
