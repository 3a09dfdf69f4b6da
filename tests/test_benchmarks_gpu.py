"""The measurements on a GPU, which has a stand-in here: the CPU, called a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from benchmarks import evaluate, machine, report, step, training, ways
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.step_graph import not_replayed

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def no_real_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_quick_computations_are_repeated_in_a_round(monkeypatch):
    monkeypatch.setattr(ways, "FILLED", {"cpu": 10.0})
    monkeypatch.setattr(ways.time, "perf_counter", iter(range(100)).__next__)  # a second each time
    calls = []
    rounds = ways.Rounds(lambda: calls.append(1))
    ways.by_turns([rounds], 2)
    assert rounds.times == 10
    assert rounds.wall == [1 / 10] * 2
    assert len(calls) == 1 + 1 + 2 * (1 + 10)


def replayed(given_up: bool = False, compared: bool = False) -> SimpleNamespace:
    return SimpleNamespace(replayed_step=SimpleNamespace(given_up=given_up, _compared=compared))


def test_steps_settle_when_they_are_replayed():
    trainer, steps = replayed(), []

    def take() -> None:
        steps.append(1)
        trainer.replayed_step._compared = len(steps) == 25

    rounds = ways.Rounds(take, GPU)
    assert ways.settle(rounds, trainer) == ""
    assert len(steps) == 25
    assert rounds.warm
    assert ways.settle(ways.Rounds(take), trainer) == ""
    assert len(steps) == 26


def test_steps_that_are_not_replayed_say_why(capsys):
    trainer = replayed(given_up=True)
    assert ways.settle(ways.Rounds(lambda: print(not_replayed("it waits")), GPU), trainer) == "it waits"
    assert ways.settle(ways.Rounds(lambda: print("epoch"), GPU), trainer) == ""
    why = ways.settle(ways.Rounds(lambda: None, GPU), replayed())
    assert why == f"its gradients were not finite in {ways.MOST_WARM_UPS} steps"
    assert capsys.readouterr().out == ""


def test_plain_way_is_measured_where_the_gpu_s_memory_holds_it(monkeypatch):
    monkeypatch.setattr(ways, "trainers_device", lambda: GPU)
    monkeypatch.setattr(ways, "free_memory", lambda device: 70 * 2**30)
    assert ways.plain_sizes(1000) == [1000]
    assert ways.plain_sizes(1000, texts=4) == list(ways.SCALED_FROM)
    monkeypatch.setattr(ways, "free_memory", lambda device: 10 * 2**30)
    assert ways.plain_sizes(1000) == list(ways.SCALED_FROM)
    assert ways.plain_sizes(ways.LARGEST_PLAIN) == [ways.LARGEST_PLAIN]


def test_kernels_alone_are_counted():
    kinds = ["kernel", "cuda_runtime", "kernel", "gpu_memcpy", "gpu_user_annotation", None]
    assert step.kernels_in({"traceEvents": [{"cat": kind} if kind else {"ph": "M"} for kind in kinds]}) == 2


def test_kernels_and_the_gpu_are_in_the_table_of_a_gpu(monkeypatch):
    gpu = machine.Machine(matmul=5e13, bandwidth=4e12, dtype="float32", device="cuda")
    way = step.Way("ours", 1000, [1000], 1e12, 3 * 2**30, "not replayed: it waits", [], [0.04], [0.05])
    way.kernels = 2345
    row = dict(zip(step.COLUMNS, way.row(None, gpu, "–"), strict=True))
    assert row["way"] == "ours (not replayed: it waits)"
    assert row["ms a step"] == "40.00 (40.00 to 40.00)"
    assert row["floor, ms; how near"] == "20.0; 50 (50 to 50) %"
    assert (row["GiB more"], row["kernels"]) == ("3.00", "2,345")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    args = evaluate.command_parser().parse_args([])
    assert ways.result_name("step", args, "fp32") == "step_maple_fp32_h100-80gb-hbm3.md"


# --- whole measurements -----------------------------------------------------------------------------------

MODULES = (ways, step, training, evaluate)
COMMON = ["--backbone", "ViT-Shapes/8", "--anyway", "--rounds", "2", "--threads", "1", "--classes"]
CALLS = {  # of torch.cuda
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda device=None: None,
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 2**30,
    "max_memory_reserved": lambda device=None: 3 * 2**30,
    "mem_get_info": lambda device=None: (100 * 2**30, 140 * 2**30),
}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """The folder of reports; trainers say that they are on a GPU, and nothing can be replayed."""
    build, threads = ways.build, torch.get_num_threads()
    device: Any = SimpleNamespace(type="cuda")

    def build_there(*arguments: Any, **options: Any) -> Any:
        trainer = build(*arguments, **options)
        trainer.device = device
        return trainer

    def batch_there(trainer: Any, size: int) -> Any:
        return ways.batch_of_noise(trainer.cfg, size, trainer.num_classes)

    for module in MODULES:
        for name, stand_in in (("build", build_there), ("batch_for", batch_there)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
    for name, call in CALLS.items():
        monkeypatch.setattr(torch.cuda, name, call)
    known = machine.Machine(matmul=5e10, bandwidth=4e12, dtype="float32", device="cuda")
    for module in (step, evaluate):
        monkeypatch.setattr(module, "measure_machine", lambda precision: known)
    monkeypatch.setattr(ways, "trainers_device", lambda: device)
    monkeypatch.setattr(ways, "FILLED", {"cuda": 0.001})
    monkeypatch.setattr(ways, "LARGEST_PLAIN", 1)
    monkeypatch.setattr(step, "kernels_of", lambda take: 1234 if take() else 0)
    monkeypatch.setattr(
        CLIPPromptTrainer, "parse_batch_train", lambda self, batch: (batch["img"], batch["label"])
    )
    monkeypatch.setattr(CLIPPromptTrainer, "why_not_replayed", lambda self: "there is none")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def rows_of(file: Path) -> list[dict[str, str]]:
    lines = [line for line in file.read_text().split("\n\n")[-1].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_step_on_a_gpu(results):
    assert step.main([*COMMON, "3", "--batch-size", "1", "--ways", "ours", "eager", "plain"]) == 0
    ours, eager, plain = rows_of(
        results / "step_maple_vit-shapes-8_batch1_fp32_ours_eager_plain_3_classes.md"
    )
    assert [row["way"] for row in (ours, eager, plain)] == [
        *("ours (not replayed: there is none)", "ours, eager", "plain"),
    ]
    assert all(row["kernels"] == "1,234" and row["GiB more"] == "2.00" for row in (ours, eager, plain))


def test_an_evaluation_on_a_gpu(results):
    assert evaluate.main([*COMMON, "3", "--batch-size", "2", "--images", "4"]) == 0
    (row,) = rows_of(results / "evaluate_maple_vit-shapes-8_4images_fp32_3_classes.md")
    assert float(row["images a second"].split()[0]) > 0


def test_a_training_on_a_gpu(results, monkeypatch):
    monkeypatch.setattr(CLIPPromptTrainer, "init_writer", lambda self, folder: None)
    given = ["--batch-size", "1", "--workers", "0", "--steps", "4", "--plain-steps", "2"]
    assert training.main([*COMMON, "3", *given]) == 0
    ours, plain = rows_of(results / "training_maple_vit-shapes-8_batch1_fp32_3_classes.md")
    assert (ours["way"], plain["way"]) == ("ours (not replayed: there is none)", "plain")
    assert ours["GiB: model + more"].endswith(" + 2.00")


def test_a_trace_without_a_gpu_s_kernels_is_not_taken_for_a_count(monkeypatch):
    monkeypatch.setattr(step, "ProfilerActivity", SimpleNamespace(CUDA=ProfilerActivity.CPU))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert step.kernels_of(lambda: torch.ones(2) + 1) is None
