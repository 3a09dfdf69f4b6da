"""Checkpoints: written, read back (upstream's too); a resumed run equals an uninterrupted one."""

from __future__ import annotations

import collections
import copy
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler
from dassl.utils import (
    load_checkpoint,
    restore_rng_state,
    resume_from_checkpoint,
    rng_state,
    save_checkpoint,
)
from dassl.utils.safe_load import Placeholder, safe_load


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(np.all(a == b))


# --- writing and reading


def test_what_is_saved_is_loaded_by_torch_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {
        "state_dict": nn.Linear(2, 3).state_dict(),
        "epoch": 5,
        "val_result": np.float64(41.5),
        "sample": {"shots": [np.int64(16), 4]},
        "rng": rng_state(),
    }
    save_checkpoint(state, str(tmp_path / "prompt_learner"))
    path = tmp_path / "prompt_learner" / "model.pth.tar-5"
    plain = torch.load(path, weights_only=True)
    assert plain["val_result"] == 41.5
    assert plain["sample"] == {"shots": [16, 4]}
    assert same(plain["state_dict"], state["state_dict"])
    assert same(load_checkpoint(str(path)), plain)
    assert (tmp_path / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-5\n"
    assert capsys.readouterr().out == f"Checkpoint saved to {path}\n"


def test_the_best_model_is_copied_and_names_can_be_given(tmp_path: Path) -> None:
    state = {"state_dict": {"module.w": torch.ones(2)}, "epoch": 3}
    save_checkpoint(state, str(tmp_path), is_best=True, model_name="mine.pth")
    assert list(state["state_dict"]) == ["module.w"]  # the caller's state stays
    for name in ("mine.pth", "model-best.pth.tar"):
        assert list(load_checkpoint(str(tmp_path / name))["state_dict"]) == ["w"]
    save_checkpoint(state, str(tmp_path), remove_module_from_keys=False)
    assert list(load_checkpoint(str(tmp_path / "model.pth.tar-3"))["state_dict"]) == ["module.w"]


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    save_checkpoint({"state_dict": {"w": torch.zeros(2)}, "epoch": 1}, str(tmp_path))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint({"state_dict": {"w": torch.ones(2)}, "epoch": 1, "bad": lambda: 0}, str(tmp_path))
    assert load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]["w"].tolist() == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.pth.tar-1"]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(str(tmp_path / "nowhere"))
    for nothing in (None, ""):
        with pytest.raises(ValueError, match="no path"):
            load_checkpoint(nothing)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(1, 1))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("other", [None, Placeholder()])  # a file of our own, and a foreign one
def test_damaged_files_are_one_clear_error(tmp_path: Path, zipped: bool, other: Any) -> None:
    path = tmp_path / "model.pth.tar"
    state = {"state_dict": {"w": torch.arange(5000.0)}, "epoch": 1, "other": other if zipped else None}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    load_checkpoint(str(path))
    with zipfile.ZipFile(tmp_path / "script", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/main.py"):
            archive.writestr(f"script/{name}", "")
    broken = [b"", b"\x80", whole[:-1000], whole[:300], b"<html>404</html>", b"PK\x03\x04", b"P 1", bytes(99)]
    if zipped:
        middle = whole.index(np.float32(2500).tobytes())  # only a checksum can tell
        broken.append(whole[:middle] + b"\x00\x00\x00\x01" + whole[middle + 4 :])
    broken += [pickle.dumps({"state_dict": {}}), (tmp_path / "script").read_bytes()]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.pth\.tar is damaged or not a checkpoint") as caught:
            load_checkpoint(str(path))
        assert "\n" not in str(caught.value)
        assert "\033" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), nn.Linear(1, 1)])
def test_files_that_hold_something_else_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "file")
    with pytest.raises(ValueError, match=r"file holds .*not a checkpoint"):
        load_checkpoint(str(tmp_path / "file"))


# --- files that torch's own safe reader does not read


def test_numbers_and_containers_beside_live_objects(tmp_path: Path) -> None:
    state = {
        "state_dict": nn.BatchNorm1d(3).state_dict(),
        "parameter": nn.Parameter(torch.ones(2)),
        "containers": (collections.Counter("aab"), {1, 2}, None, True, 1 << 70, -1.5, torch.Size([2, 3])),
        "default": collections.defaultdict(list, a=[1]),
        "numpy": [np.float64(2.5), np.int64(-3), np.float32(0.1), np.bool_(True)],
        "live": nn.CrossEntropyLoss(),
    }
    torch.save(state, tmp_path / "file")
    loaded = safe_load(str(tmp_path / "file"))
    assert isinstance(loaded.pop("live"), Placeholder)
    assert loaded.pop("default") == {"a": [1]}
    assert same(loaded, {key: state[key] for key in loaded})
    assert loaded["state_dict"]._metadata == state["state_dict"]._metadata
    assert isinstance(loaded["parameter"], nn.Parameter)


def test_files_from_before_torch_1_6_are_read(tmp_path: Path) -> None:
    state = {"state_dict": nn.Linear(2, 3).state_dict(), "epoch": 5}
    torch.save(state, tmp_path / "file", _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(str(tmp_path / "file")), state)


class UpstreamWarmup(LRScheduler):
    """A warm-up in the manner of Dassl.pytorch: its state holds the live successor with its optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, successor: LRScheduler, warmup_epoch: int) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        self.cons_lr = 1e-5
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return (
            self.successor.get_last_lr()
            if self.last_epoch >= self.warmup_epoch
            else [1e-5 for _ in self.base_lrs]
        )

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)


def training(lr: float = 0.0035) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, epochs: int
) -> list[float]:
    """Trains, and returns the learning rate of each epoch."""
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return rates


SUCCESSORS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 8.0),  # type: ignore[arg-type]
    "single_step": lambda optimizer: StepLR(optimizer, 2),
    "multi_step": lambda optimizer: MultiStepLR(optimizer, [2, 4]),
}


@pytest.mark.parametrize("name", SUCCESSORS)
@pytest.mark.parametrize("done", [1, 2, 5])
def test_an_upstream_checkpoint_is_continued(tmp_path: Path, name: str, done: int) -> None:
    model, optimizer = training()
    scheduler = UpstreamWarmup(optimizer, SUCCESSORS[name](optimizer), 2)
    run(model, optimizer, scheduler, done)
    state = {
        "state_dict": model.state_dict(),
        "epoch": done,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": np.float64(12.5),
    }
    torch.save(state, tmp_path / "model.pth.tar-x")
    (tmp_path / "checkpoint").write_text("model.pth.tar-x\n")
    rates = run(model, optimizer, scheduler, 8 - done)

    checkpoint = load_checkpoint(str(tmp_path / "model.pth.tar-x"))
    successor = checkpoint["scheduler"]["successor"]
    assert isinstance(successor, Placeholder)
    assert successor.class_name == f"torch.optim.lr_scheduler.{type(scheduler.successor).__name__}"
    assert successor["optimizer"].class_name == "torch.optim.sgd.SGD"
    assert same(checkpoint["state_dict"], state["state_dict"]) is (done == 8)  # training went on since
    assert checkpoint["val_result"] == 12.5

    cfg = get_cfg_default()
    options = {"LR_SCHEDULER": name, "STEPSIZE": (2, 4) if name == "multi_step" else (2,), "MAX_EPOCH": 8}
    for key, value in {**options, "WARMUP_EPOCH": 2, "WARMUP_TYPE": "constant"}.items():
        cfg.OPTIM[key] = value
    resumed, its_optimizer = training()
    its_scheduler = build_lr_scheduler(its_optimizer, cfg.OPTIM)
    assert resume_from_checkpoint(str(tmp_path), resumed, its_optimizer, its_scheduler) == done
    assert run(resumed, its_optimizer, its_scheduler, 8 - done) == rates
    assert same(resumed.state_dict(), model.state_dict())


def test_live_objects_of_any_kind_are_inert(tmp_path: Path) -> None:
    _, optimizer = training()
    phases = [StepLR(optimizer, 2), CosineAnnealingLR(optimizer, 5)]
    live = {
        "sequential": SequentialLR(optimizer, phases, [3]),
        "cycle": OneCycleLR(optimizer, 0.1, total_steps=5),
        "loss": nn.CrossEntropyLoss(),
        "function": training,
    }
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 1, **live}, tmp_path / "file")
    checkpoint = load_checkpoint(str(tmp_path / "file"))
    assert checkpoint["state_dict"]["w"].tolist() == [1, 1]
    assert checkpoint["sequential"]["_schedulers"][0]["step_size"] == 2
    assert checkpoint["cycle"]["total_steps"] == 5
    assert all(isinstance(checkpoint[name], Placeholder) for name in live if name != "function")
    assert issubclass(checkpoint["function"], Placeholder)
    assert checkpoint["function"]() == {}


# --- resuming


@pytest.mark.parametrize("warmup", [-1, 2])
@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, done: int, warmup: int) -> None:
    cfg = get_cfg_default()
    cfg.merge_from_list(["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", 6, "OPTIM.WARMUP_EPOCH", warmup])
    model, optimizer = training()
    scheduler = build_lr_scheduler(optimizer, cfg.OPTIM)
    run(model, optimizer, scheduler, done)
    state = {"state_dict": model.state_dict(), "epoch": done}
    save_checkpoint(
        {**state, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, str(tmp_path)
    )
    torch.load(tmp_path / f"model.pth.tar-{done}", weights_only=True)  # no live objects in it
    rates = run(model, optimizer, scheduler, 6 - done)

    resumed, its_optimizer = training()
    its_scheduler = build_lr_scheduler(its_optimizer, cfg.OPTIM)
    assert resume_from_checkpoint(str(tmp_path), resumed, its_optimizer, its_scheduler) == done
    assert run(resumed, its_optimizer, its_scheduler, 6 - done) == rates
    assert same(resumed.state_dict(), model.state_dict())


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    cfg = get_cfg_default()
    cfg.OPTIM.WARMUP_EPOCH = 1
    model, optimizer = training()
    scheduler = build_lr_scheduler(optimizer, cfg.OPTIM)
    run(model, optimizer, scheduler, 2)
    good = {
        "state_dict": model.state_dict(),
        "epoch": 2,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    faults = [
        {"state_dict": {"weight": torch.ones(2, 4), "bias": torch.ones(3)}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"scheduler": StepLR(optimizer, 1).state_dict()},
        {"epoch": None},
    ]
    resumed, its_optimizer = training()
    its_scheduler = build_lr_scheduler(its_optimizer, cfg.OPTIM)
    parts = (resumed, its_optimizer, its_scheduler)
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    for fault in faults:
        save_checkpoint({**good, **fault}, str(tmp_path), model_name="file")
        with pytest.raises(ValueError, match=r"file (does not fit: |cannot be continued)") as caught:
            resume_from_checkpoint(str(tmp_path / "file"), *parts)
        assert "\n" not in str(caught.value)
        assert all(same(part.state_dict(), state) for part, state in zip(parts, before, strict=True))
    save_checkpoint(good, str(tmp_path), model_name="file")
    with pytest.raises(ValueError, match="warm-up"):
        resume_from_checkpoint(str(tmp_path), resumed, its_optimizer, StepLR(its_optimizer, 1))
    cfg.OPTIM.LR = 0.1
    other = build_lr_scheduler(training(lr=0.1)[1], cfg.OPTIM)
    with pytest.raises(ValueError, match=r"file cannot be continued by the run: base_lrs was \[0.0035\]"):
        resume_from_checkpoint(str(tmp_path), resumed, its_optimizer, other)
    with pytest.raises(ValueError, match=r"its optimizer has dampening, .*OPTIM.NAME"):
        resume_from_checkpoint(str(tmp_path), resumed, torch.optim.Adam(resumed.parameters()))
    assert same(resumed.state_dict(), before[0])
    assert resume_from_checkpoint(str(tmp_path / "file"), *parts) == 2


def test_random_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.randn(),
            float(torch.rand(1)),
            np.random.randint(99),
        )

    draw()
    torch.save(rng_state(), tmp_path / "file")
    expected = draw(), draw()
    restore_rng_state(torch.load(tmp_path / "file", weights_only=True))
    assert (draw(), draw()) == expected


def test_saving_does_not_start_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("the GPU was started"))
    assert rng_state()["cuda"] == []


def test_random_states_go_to_the_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    set_states = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: set_states.update({device: state.item()})
    )
    restore_rng_state({**rng_state(), "cuda": [torch.tensor(seed) for seed in (5, 6, 7)]})
    assert set_states == {0: 5, 1: 6}
