"""One training on two processes: the steps, figures and files of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_parallel_job import (
    AUGMENTED,
    CASES,
    REFUSED,
    RESUMED,
    SETTINGS,
    THREE_EPOCHS,
    Foreign,
    OwnStep,
    TwoViews,
    make,
    steps,
)
from helpers import ROOT

from dassl.data.samplers import DistributedBatchSampler
from dassl.engine import TRAINER_REGISTRY, ddp
from train import command_line
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.maple import MaPLe

SAME = 1e-10  # in float64, relative to the largest number of a tensor
NEAR = 1e-4  # in float32, after an epoch


def difference(ours: torch.Tensor, right: torch.Tensor) -> float:
    """The largest, relative to the largest right number."""
    assert ours.dtype == right.dtype
    return float((ours - right).abs().max() / right.abs().max().clamp(min=1e-30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data_parallel")


@pytest.fixture(scope="module")
def processes(folder) -> list[dict[str, Any]]:
    """What each of two processes has seen."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, ROOT / "tests" / "data_parallel_job.py", folder]
    subprocess.run(script, env=environment, check=True, timeout=3600)
    assert json.loads((folder / "codes.json").read_text())["job"] == [0, 0], told(folder, "job")[1]
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(2)]


# --- the steps of a training


@pytest.mark.parametrize("case", CASES)
def test_each_step_is_that_of_one_process_with_the_whole_batch(case, folder, processes, monkeypatch):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "TwoViews", TwoViews)
    alone = steps(folder / "data", folder / "one", *CASES[case])
    first, second = (process["steps"][case] for process in processes)
    assert len(alone["gradients"]) == len(first["gradients"]) == len(second["gradients"]) > 0
    for ours, others, right in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert any(gradient is not None for gradient in right.values())
        for name, gradient in right.items():
            if gradient is None:
                assert ours[name] is None, f"{name} has a gradient, and decays"
                continue
            assert gradient.dtype == torch.float64
            assert torch.equal(ours[name], others[name]), name
            assert difference(ours[name], gradient) < SAME, name
    for logged in (first["logged"], second["logged"]):
        assert logged == pytest.approx(alone["logged"], rel=SAME)


def test_all_begin_with_the_same_tensors_and_go_on_with_random_numbers_of_their_own(processes):
    first, second = (process["beginning"] for process in processes)
    assert first["learned"].keys() == second["learned"].keys() != set()
    for name, tensor in first["learned"].items():
        assert torch.equal(tensor, second["learned"][name]), name
    for ours, others in zip(first["drawn"], second["drawn"], strict=True):
        assert ours != others


@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_goes_on_to_the_same_tensors(case, processes):
    first, second = (process["resumed"][case] for process in processes)
    assert first["start_epoch"] == second["start_epoch"] == 1
    for seen in (first, second):
        for name, tensor in first["whole"].items():
            assert torch.equal(seen["whole"][name], tensor), name
            assert torch.equal(seen["resumed"][name], tensor), name


def test_another_number_of_processes_is_said_where_a_run_goes_on(folder, processes, capsys):
    options = [*AUGMENTED, *THREE_EPOCHS]
    trainer = make(folder / "data", folder / "two/resumed no workers/cut", "MaPLe", options)
    assert trainer.resume_model_if_exist(trainer.output_dir) == 3
    assert (
        "It is of a run on 2 processes, here are 1: the images will be augmented" in capsys.readouterr().out
    )


def test_the_first_process_goes_first_and_figures_are_means(processes):
    assert [process["turn"] for process in processes] == [0, 1]
    assert processes[0]["mean"] == processes[1]["mean"] == {"loss": 0.5, "other": 3.0}


# --- what each process loads


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_is_dealt_out_in_equal_shares(count, monkeypatch):
    order = [5, 2, 0, 4, 1, 3, 6]
    sent = [order]
    monkeypatch.setattr("dassl.data.samplers.broadcast", lambda own: own or sent[0])
    shares = []
    for process in range(count):
        monkeypatch.setattr("dassl.data.samplers.get_rank", lambda process=process: process)
        monkeypatch.setattr("dassl.data.samplers.get_world_size", lambda: count)
        batches = DistributedBatchSampler(order if process == 0 else [9] * 7, batch_size=6, drop_last=True)
        assert len(batches) == 1
        shares += list(batches)
    assert sorted(chain(*shares)) == sorted(order[:6])
    assert {len(share) for share in shares} == {6 // count}


@pytest.mark.parametrize(
    ("images", "drop_last", "smallest"), [(7, True, 4), (7, False, 3), (8, False, 4), (2, False, 2)]
)
def test_the_smallest_batch(images, drop_last, smallest):
    assert DistributedBatchSampler(range(images), 4, drop_last).smallest == smallest


# --- what is refused


def test_trainings_that_cannot_be_shared_are_refused_in_one_line(folder, processes):
    messages = processes[0]["refused"]
    assert messages == processes[1]["refused"]
    assert all(message and "\n" not in message for message in messages.values())
    assert "DATALOADER.TRAIN_X.BATCH_SIZE is 3" in messages["odd batch"]
    assert "multiples of 2" in messages["odd batch"]
    for case, name in (("own step", "OwnStep"), ("foreign", "Foreign")):
        assert f"TRAINER.NAME is {name}" in messages[case]
        assert "without torchrun" in messages[case]
    for case in REFUSED:
        assert not (folder / "two" / f"refused {case}").exists()


def test_fewer_images_than_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(ddp, "get_world_size", lambda: 2)
    trainer = MaPLe.__new__(MaPLe)
    trainer._models = {"model": torch.nn.Linear(1, 1)}
    trainer.cfg = SimpleNamespace(TRAINER=SimpleNamespace(NAME="MaPLe"))
    trainer.train_loader_x = SimpleNamespace(
        batch_sampler=DistributedBatchSampler(range(5), 8, drop_last=False)
    )
    with pytest.raises(ValueError, match="BATCH_SIZE is 8, but there are 5 images to train on, which 2 proc"):
        ddp.check_ddp(trainer)
    trainer.train_loader_x.batch_sampler = DistributedBatchSampler(range(6), 8, drop_last=False)
    ddp.check_ddp(trainer)
    trainer.train_loader_x.batch_sampler = object()  # of a loader from elsewhere
    trainer.cfg.DATALOADER = SimpleNamespace(TRAIN_X=SimpleNamespace(LOADER="own"))
    with pytest.raises(ValueError, match="LOADER is own, whose batches 2 processes cannot share"):
        ddp.check_ddp(trainer)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr("dassl.utils.torchrun.get_world_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="--nproc-per-node is 4, but there are 2 GPUs"):
        ddp.select_device(SimpleNamespace(USE_CUDA=True))
    assert ddp.select_device(SimpleNamespace(USE_CUDA=False)).type == "cpu"


def test_whose_batches_and_tests_are_shared(monkeypatch):
    assert CLIPPromptTrainer.can_share_batches()
    assert MaPLe.can_share_batches()
    assert not OwnStep.can_share_batches()
    assert not Foreign.can_share_batches()


# --- train.py, as a user runs it


def told(folder: Path, name: str) -> tuple[str, str]:
    """What both processes printed, and what they told of errors."""
    out, err = (
        "".join((folder / name / f"{kind}{rank}").read_text() for rank in range(2)) for kind in ("out", "err")
    )
    return out, err


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("failing", "train.py: Loss is infinite or NaN! (epoch 1, batch 1)", 2),
        ("stopped", "train.py: Interrupted in epoch 2 of 2. Epoch 1 is saved in ", 130),
        ("refused", "train.py: TRAINER.NAME is OwnStep", 2),
        ("no key", "train.py: unknown config key NO.SUCH", 2),
    ],
)
def test_an_error_is_told_once_and_ends_all(name, message, code, folder, processes):
    codes = json.loads((folder / "codes.json").read_text())[name]
    assert code in codes
    assert 0 not in codes
    err = told(folder, name)[1]
    assert err.startswith(message)
    assert err.count("\n") == 1
    started = name in ("failing", "stopped")
    assert (folder / name / "run").exists() == started


def test_a_wrong_flag_is_told_once(folder, processes):
    assert told(folder, "no flag")[1].count("unrecognized arguments") == 1


@pytest.mark.parametrize("name", ["zero-shot", "amp", "bf16"])
def test_what_only_tests_and_other_precisions_run_too(name, folder, processes):
    assert json.loads((folder / "codes.json").read_text())[name] == [0, 0]
    out, err = told(folder, name)
    assert (out.count("* total: 144"), err) == (1, "")


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "train.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def learned(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_torchrun_trains_and_tests_as_one_process_does(folder, processes, tmp_path):
    def flags(output: str, *more: object) -> list[str]:
        words = [
            "--root",
            folder / "data",
            "--seed",
            1,
            "--trainer",
            "MaPLe",
            "--output-dir",
            tmp_path / output,
        ]
        return [str(word) for word in [*words, *more, *SETTINGS, "OPTIM.MAX_EPOCH", 1]]

    run = torchrun(*flags("two"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith((tmp_path / "two/log.txt").read_text())
    assert run.stdout.count("=> result") == 1
    assert command_line(flags("one")) == 0
    names = [{path.name for path in (tmp_path / output).iterdir()} for output in ("one", "two")]
    assert names[0] == names[1]
    assert len(list((tmp_path / "two").glob("tensorboard/*"))) == 1
    one, two = learned(tmp_path / "one"), learned(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(difference(two[name], one[name]) for name in one) < NEAR

    assert command_line(flags("tested", "--eval-only", "--model-dir", tmp_path / "two")) == 0
    ours, right = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "tested"))
    assert (ours["processes"], right["processes"], right["total"]) == (2, 1, 144)
    assert ours["per_class"] == right["per_class"]
    assert ours["results"] == right["results"]
