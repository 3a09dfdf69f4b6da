"""Checkpoints whose parts are not what they should be are refused, and nothing is changed."""

from __future__ import annotations

import copy
import errno
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine import TrainerBase
from dassl.engine.checkpoints import remove_all_but_newest
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights, save_checkpoint
from prompted_clip import files
from prompted_clip.errors import NotFiniteError, UserError


class Run(TrainerBase):
    """One linear layer that has made one step, with a schedule and a loss scaler."""

    def __init__(self, folder: Path, optimizer: str = "sgd", **settings: Any) -> None:
        super().__init__()
        self.output_dir, self.max_epoch = str(folder), 5
        cfg = get_cfg_default()
        options = {"NAME": optimizer, "WARMUP_EPOCH": 1, "LR_SCHEDULER": "cosine", "MAX_EPOCH": 5, **settings}
        for key, value in options.items():
            cfg.OPTIM[key] = value
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, build_lr_scheduler(self.optim, cfg.OPTIM))
        self.scaler = torch.amp.GradScaler("cpu")
        self.model(torch.ones(2, 3)).sum().backward()
        self.optim.step()
        self.update_lr()

    def everything(self) -> Any:
        return copy.deepcopy((self.checkpoint_state("model"), self.best_result))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Run(tmp_path).save_model(0, str(tmp_path))
    return tmp_path / "model" / "model.pth.tar-1"


def change(path: Path, keys: str, value: Any) -> None:
    """Puts a value at `a.b.0`; `DELETED` takes it out."""
    checkpoint = load_checkpoint(str(path))
    *above, last = [int(key) if key.isdigit() else key for key in keys.split("/")]
    part: Any = checkpoint
    for key in above:
        if isinstance(part[key], tuple):
            part[key] = list(part[key])
        part = part[key]
    if value is DELETED:
        del part[last]
    else:
        part[last] = value(part[last]) if callable(value) else value
    torch.save(checkpoint, path)


DELETED = object()
WEIGHT = "state_dict/0.weight"
FAULTS: list[tuple[str, Any]] = [
    *[
        (f"{part}", value)
        for part in ("optimizer", "scheduler", "scaler", "rng", "identity")
        for value in ("x", 1, [1], True)
    ],
    *[("rng_of_others", value) for value in (1, "x", {}, [1], [{}])],
    *[("epoch", value) for value in ("x", {}, [1], -5, 1.5, None, True, 10**300, float("nan"))],
    *[("val_result", value) for value in ("x", [1], {}, float("nan"), float("inf"), torch.ones(2))],
    *[("best_result", value) for value in ("x", [1], {}, float("nan"), float("inf"), True)],
    *[("state_dict", value) for value in ([1], "x", None, {1: torch.ones(1)})],
    ("optimizer", {}),
    ("optimizer/param_groups", DELETED),
    ("optimizer/param_groups", [1]),
    ("optimizer/param_groups", "x"),
    ("optimizer/param_groups/0/params", DELETED),
    ("optimizer/param_groups/0/params", ["a", [], 1, 2]),
    ("optimizer/param_groups/0/lr", "x"),
    ("optimizer/param_groups/0/lr", float("nan")),
    ("optimizer/param_groups/0/lr", None),
    ("optimizer/param_groups/0/lr", DELETED),
    ("optimizer/param_groups/0/momentum", [1]),
    ("optimizer/state", DELETED),
    ("optimizer/state", [1]),
    ("optimizer/state/0/momentum_buffer", "x"),
    ("optimizer/state/0/momentum_buffer", 3),
    ("optimizer/state/0/momentum_buffer", False),
    ("optimizer/state", {99: {}}),
    ("optimizer/state/0", 1),
    ("optimizer/state/0/momentum_buffer", torch.ones(5)),
    ("optimizer/state/0/momentum_buffer", lambda tensor: tensor * float("inf")),
    ("optimizer/state/0/momentum_buffer", lambda tensor: tensor.to("meta")),
    ("optimizer/state/0/momentum_buffer", lambda tensor: tensor.to_sparse()),
    ("optimizer/state/0/momentum_buffer", lambda tensor: tensor.int()),
    ("scheduler/last_epoch", DELETED),
    ("scheduler/last_epoch", "x"),
    ("scheduler/last_epoch", -3),
    ("scheduler/last_epoch", float("inf")),
    ("scheduler/_last_lr", []),
    ("scheduler/_last_lr", ["x"]),
    ("scheduler/_last_lr", 5),
    ("scheduler/successor", 1),
    ("scheduler/successor/base_lrs", "x"),
    ("scheduler/successor/last_epoch", [1]),
    ("scheduler/optimizer", "x"),
    ("scheduler/step", 1),
    ("scaler/scale", "x"),
    ("scaler/scale", float("nan")),
    ("scaler/scale", 0.0),
    ("scaler/growth_interval", DELETED),
    ("scaler/_growth_tracker", -1),
    ("rng", {}),
    ("rng/python", 1),
    ("rng/python/1", ("x",) * 625),
    ("rng/python/1", (-1,) * 625),
    ("rng/numpy/1", [1]),
    ("rng/numpy/2", 10**6),
    ("rng/numpy/2", -1),
    ("rng/numpy/0", "PCG64"),
    ("rng/torch", 1),
    ("rng/torch", torch.zeros(3)),
    ("rng/torch", lambda tensor: tensor[:-1]),
    ("rng/torch", lambda tensor: tensor.to("meta")),
    ("rng/cuda", 1),
    (WEIGHT, "x"),
    (WEIGHT, lambda tensor: tensor * float("nan")),
    (WEIGHT, lambda tensor: tensor.to("meta")),
    (WEIGHT, lambda tensor: tensor.to_sparse()),
    (WEIGHT, lambda tensor: tensor.int()),
    (WEIGHT, lambda tensor: tensor > 0),
    (WEIGHT, lambda tensor: tensor.to(torch.complex64)),
    (WEIGHT, lambda tensor: tensor.to(torch.float8_e4m3fn)),
    ("state_dict/1.running_mean", lambda tensor: tensor * float("nan")),
    ("state_dict/1.num_batches_tracked", lambda tensor: tensor.float()),
]


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: f"{number}-{FAULTS[number][0]}")
def test_a_part_of_another_form_is_refused(number: int, saved: Path) -> None:
    keys, value = FAULTS[number]
    change(saved, keys, value)
    run = Run(saved.parents[1])
    before, drawn = run.everything(), (random.getstate(), np.random.get_state()[2], torch.get_rng_state())
    with pytest.raises(UserError, match=r"model\.pth\.tar-1") as caught:
        run.resume_model_if_exist(str(saved.parents[1]))
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)
    assert keys.split("/")[0] in str(caught.value) or keys.startswith("state_dict/")
    assert same(run.everything(), before)
    assert same((random.getstate(), np.random.get_state()[2], torch.get_rng_state()), drawn)


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "adamw", "radam", "rmsprop"])
def test_an_optimizer_s_state_has_all_that_a_step_reads(optimizer: str, tmp_path: Path) -> None:
    run = Run(tmp_path, optimizer)
    run.save_model(0, str(tmp_path))
    assert Run(tmp_path, optimizer).resume_model_if_exist(str(tmp_path)) == 1
    path = tmp_path / "model" / "model.pth.tar-1"
    for name in list(load_checkpoint(str(path))["optimizer"]["state"][0]):
        if name in ("momentum_buffer", "grad_avg", "max_exp_avg_sq"):
            continue
        run.save_model(0, str(tmp_path))
        change(path, f"optimizer/state/0/{name}", DELETED)
        with pytest.raises(UserError, match=rf"optimizer\.state\.0 has no {name}"):
            Run(tmp_path, optimizer).resume_model_if_exist(str(tmp_path))


def test_a_whole_checkpoint_is_continued(saved: Path) -> None:
    for keys, value in (("val_result", np.float32(3)), ("best_result", 50), ("epoch", np.int64(1))):
        change(saved, keys, value)
    run = Run(saved.parents[1])
    assert run.resume_model_if_exist(str(saved.parents[1])) == 1
    assert run.best_result == 50.0
    run.load_model(str(saved.parents[1]))


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_prefixes_of_wrappers_are_taken_off(wrap: str, saved: Path) -> None:
    checkpoint = load_checkpoint(str(saved))
    checkpoint["state_dict"] = {wrap.format(key): value for key, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, saved)
    run = Run(saved.parents[1])
    run.model[0].weight.data.zero_()
    run.load_model(str(saved.parents[1]))
    assert run.model[0].weight.any()
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    load_pretrained_weights(other, str(saved))
    assert torch.equal(other[0].weight, run.model[0].weight)


def test_a_model_whose_own_keys_begin_with_module_keeps_them(tmp_path: Path) -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    save_checkpoint(
        {"state_dict": model.state_dict(), "epoch": 1}, str(tmp_path), remove_module_from_keys=False
    )
    load_pretrained_weights(model, str(tmp_path / "model.pth.tar-1"))


# --- saving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weight", "momentum"])
def test_what_is_not_finite_is_not_saved(where: str, value: float, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    state = run.optim.state[run.model[0].weight]["momentum_buffer"]
    (run.model[0].weight.data if where == "weight" else state)[0, 0] = value
    with pytest.raises(
        NotFiniteError, match=r"model in epoch 3, which is not saved.*(0\.weight|momentum_buffer)"
    ):
        run.save_model(2, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_mask_of_infinities_is_no_fault(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    run.save_model(0, str(tmp_path))
    run.load_model(str(tmp_path))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*model\.pth\.tar-1"):
        Run(tmp_path).save_model(0, str(tmp_path))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_torch_hides_no_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", lambda path, mode, **words: Full(path, mode), raising=False)
    with pytest.raises(OSError, match=r"No space left on device.*model\.pth\.tar-1") as caught:
        save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}, "epoch": 1}, str(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


# --- after a kill ---------------------------------------------------------------------------------------


def test_a_stale_pointer_is_mended(saved: Path) -> None:
    run, folder = Run(saved.parents[1]), saved.parents[1]
    run.save_model(1, str(folder))
    (saved.parent / "checkpoint").write_text("model.pth.tar-1\n")
    assert run.resume_model_if_exist(str(folder)) == 2
    assert (saved.parent / "checkpoint").read_text() == "model.pth.tar-2\n"


def test_the_pointer_of_another_run_s_folder_stays(saved: Path, tmp_path: Path) -> None:
    (saved.parent / "checkpoint").write_text("stale\n")
    assert Run(tmp_path / "other").resume_model_if_exist(str(saved.parents[1])) == 1
    assert (saved.parent / "checkpoint").read_text() == "stale\n"


def test_surplus_that_only_some_folders_have_is_removed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, epochs in zip(folders, ([1, 2, 3], [2, 3, 4]), strict=True):
        folder.mkdir()
        for epoch in epochs:
            (folder / f"model.pth.tar-{epoch}").touch()
    remove_all_but_newest([str(folder) for folder in folders], 1)
    left = [sorted(path.name[-1] for path in folder.iterdir()) for folder in folders]
    assert left == [["3"], ["3", "4"]]
    remove_all_but_newest([str(tmp_path / "none")], 1)
