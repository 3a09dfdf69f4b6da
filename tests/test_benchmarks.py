"""The measurements measure what they say: the ways that they compare give the same."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tiny_clip
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from benchmarks import (
    decoding,
    evaluate,
    loader,
    machine,
    memory,
    report,
    startup,
    step,
    training,
    ways,
)
from dassl.data import data_manager
from dassl.utils import read_image
from datasets import index
from trainers.clip_trainer import CLIPPromptTrainer

TWO_ROUNDS = ["--rounds", "2", "--anyway"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """For processes of their own, too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def results(tmp_path, monkeypatch, threads):
    """A folder for the reports. CLIP and the machine's matrices are tiny; above 3 classes is scaled."""

    monkeypatch.setattr(ways, "FILLED", {"cpu": 0.0, "cuda": 0.0})

    @contextlib.contextmanager
    def tiny_weights(backbone):
        file = tmp_path / "tiny.safetensors"
        save_file({key: value.half() for key, value in tiny_clip(2, 2).state_dict().items()}, file)
        yield file

    monkeypatch.setattr(ways, "random_weights", tiny_weights)
    monkeypatch.setattr(ways, "image_size", lambda backbone: 32)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    for key, value in {"SIDE": {"cpu": 32}, "COPIED": {"cpu": 4096}, "REPETITIONS": 1}.items():
        monkeypatch.setattr(machine, key, value)
    monkeypatch.setattr(ways, "LARGEST_PLAIN", 3)
    monkeypatch.setattr(ways, "SCALED_FROM", (2, 3))
    return tmp_path / "results"


def table_of(file) -> list[dict[str, str]]:
    """The rows of the last table in a report."""
    lines = [line for line in file.read_text().split("\n\n")[-1].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_startup_draws_the_same_images_in_each_way(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "LEAST", 1)
    assert startup.make_tree(str(tmp_path), 60, 3) == 60
    place = index.places(str(tmp_path / "imagenet"))[0]
    drawn = startup.open_plainly(str(tmp_path))
    assert len(drawn) == 3 * startup.SHOTS
    assert not os.path.exists(place)
    assert startup.open_dataset(str(tmp_path)) == drawn
    assert os.path.exists(place)
    startup.forget(str(tmp_path), also_index=False)
    assert os.path.exists(place)
    assert startup.open_dataset(str(tmp_path)) == drawn
    startup.forget(str(tmp_path), also_index=True)
    assert not os.path.exists(place)
    assert sorted(os.listdir(tmp_path / "imagenet")) == [".folder_index", "classnames.txt", "images"]


def test_startup_stops_where_other_images_are_drawn(monkeypatch):
    drawn = iter(range(3))
    monkeypatch.setattr(startup, "forget", lambda root, also_index: None)
    monkeypatch.setattr(
        startup, "in_own_process", lambda way, root: {"seconds": 1, "memory": 1, "drawn": next(drawn)}
    )
    with pytest.raises(AssertionError, match="have not drawn the same images"):
        startup.compare("", 1)


def test_decoding_reports_what_differs(tmp_path, threads):
    decoding.draw_photos(tmp_path, 2)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    lines = decoding.report(paths, "pictures", rounds=1)
    assert lines[0] == "# From 2 pictures to a model's input of 224 × 224"
    table = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert {"written out", "ours", "ours, decoded before", "torchvision decodes and resizes"} <= set(table)
    assert "| 2 of 2 |" in table["torchvision decodes and resizes"], "which is why it is not taken"


def test_decoding_stops_at_another_number(tmp_path):
    decoding.draw_photos(tmp_path, 1)
    paths = [str(tmp_path / "0000.jpg")]
    right = decoding.plain(is_train=True)
    with pytest.raises(AssertionError, match="ours gives other numbers than plain"):
        decoding.measure({"plain": right, "ours": lambda path: right(path) + 1e-6}, paths, rounds=1)


def test_figures_are_medians_and_ranges_of_rounds(tmp_path, monkeypatch, capsys):
    assert report.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert report.ratios([2.0, 9.0], [1.0, 3.0], 0) == "2 (2 to 3)"
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    report.save("x.md", ["one", "two"])
    assert (tmp_path / "results" / "x.md").read_text() == "one\ntwo\n"
    assert capsys.readouterr().out == "one\ntwo\n\n"
    shutil.rmtree(tmp_path / "results")
    assert any(
        "Load average before each round: 0.5 to 1.5" in line for line in report.conditions([], [0.5, 1.5])
    )
    assert np.isfinite(report.load_average()).all()


# --- beside the plain way ---------------------------------------------------------------------------------


def test_step_reports_ratios_floor_memory_and_exactness(results):
    assert step.main([*TWO_ROUNDS, "--classes", "2", "4", "--batch-size", "2", "--check", "3"]) == 0
    file = results / "step_maple_batch2_fp32_2_4_classes.md"
    few, plain_few, many, plain_many = table_of(file)
    assert [row["classes"] for row in table_of(file)] == ["2", "2", "4", "4"]
    for row, beside, checked in ((few, plain_few, ""), (many, plain_many, " (3)")):
        assert row["way"] == "ours"
        assert row["plain / it, wall"].count("to") == 1
        assert beside["plain / it, wall"] == "1.00 (1.00 to 1.00)"
        assert row["floor, ms; how near"].endswith("%")
        errors = row["differences: logits, gradients"]
        assert errors.endswith(checked)
        assert all(float(error) <= 1e-12 for error in errors.removesuffix(checked).split(", "))
        assert float(row["GFLOPs"]) <= float(beside["GFLOPs"])
        assert "kernels" not in row
    assert (plain_few["way"], plain_many["way"]) == ("plain", "plain, scaled")
    text = file.read_text()
    assert "above 3 classes the plain way's text was measured on 2 and 3" in text
    assert "GFLOP/s of matrices (32 × 32, float32)" in text
    # As few classes as the plain way is measured with, where ours has more.
    assert step.main([*TWO_ROUNDS, "--classes", "4", "--batch-size", "2", "--check", "2"]) == 0
    file = results / "step_maple_batch2_fp32_4_classes.md"
    assert table_of(file)[0]["differences: logits, gradients"].endswith(" (2)")


def test_step_can_be_taken_in_other_ways(results, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda losses, dynamic: compiled.append(losses) or losses)
    given = ["--classes", "2", "--batch-size", "1", "--ways", "ours", "eager", "compiled", "--check", "2"]
    assert step.main([*TWO_ROUNDS, *given]) == 0
    rows = table_of(results / "step_maple_batch1_fp32_ours_eager_compiled_2_classes.md")
    assert [row["way"] for row in rows] == ["ours", "ours, eager", "ours, compiled (in 0 s)"]
    assert len(compiled) == 1
    assert all("to" in row["ms a step"] and row["plain / it, wall"] == "–" for row in rows)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("no\n compiler"), "cannot be compiled: no compiler"),
        (torch.OutOfMemoryError(), "memory"),
    ],
)
def test_a_way_that_cannot_be_gone_does_not_end_the_others(results, monkeypatch, error, says):
    def no_compiler(losses, dynamic):
        def fail(*batch):
            raise error

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    given = ["--classes", "2", "--batch-size", "1", "--ways", "compiled", "plain"]
    assert step.main([*TWO_ROUNDS, *given]) == 0
    failed, plain = table_of(results / "step_maple_batch1_fp32_compiled_plain_2_classes.md")
    assert says in failed["way"]
    assert failed["ms a step"] == failed["plain / it, wall"] == "–"
    assert plain["plain / it, wall"] == "1.00 (1.00 to 1.00)"


def test_plain_way_may_compute_in_another_precision(results):
    given = ["--classes", "2", "--batch-size", "1", "--plain-prec", "bf16"]
    assert step.main([*TWO_ROUNDS, *given]) == 0
    file = results / "step_maple_batch1_fp32_plain-bf16_2_classes.md"
    assert "the plain way's seconds in bf16 over those of the way" in file.read_text()
    errors = table_of(file)[0]["differences: logits, gradients"].split(", ")
    assert all(float(error) <= 1e-12 for error in errors), "both are compared in float64"


@pytest.mark.usefixtures("results")
def test_no_step_changes_the_next_one():
    with ways.weights_of("") as weights:
        trainer = ways.build("MaPLe", 2, "ViT-B/16", weights)
    learned = [each for each in trainer.model.parameters() if each.requires_grad]
    before = [each.detach().clone() for each in learned]
    trainer.forward_backward(ways.batch_for(trainer, 2))
    assert any(each.grad.abs().max() > 0 for each in learned)
    assert all(map(torch.equal, learned, before))


# --- a whole training -------------------------------------------------------------------------------------


@pytest.fixture
def no_tensorboard(monkeypatch):
    """It takes seconds to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


TRAINING = ["--workers", "0", "--batch-size", "2", "--steps", "4", "--plain-steps", "2"]


@pytest.mark.usefixtures("no_tensorboard")
def test_training_is_carried_on_from_some_steps(results):
    given = [*TRAINING, "--classes", "2", "4", "--images", "1000", "--epochs", "3"]
    assert training.main([*TWO_ROUNDS, *given]) == 0
    file = results / "training_maple_1000images_3epochs_batch2_fp32_2_4_classes.md"
    rows = table_of(file)
    assert [(row["classes"], row["way"]) for row in rows] == [
        *(("2", "ours"), ("2", "plain")),
        *(("4", "ours"), ("4", "plain, scaled")),
    ]
    for row in rows:
        images = float(row["images a second"].split()[0])
        quickest, slowest = map(float, re.findall(r"[\d.]+", row["ms a step"])[1:])
        assert 0.99 * 2000 / slowest <= images <= 1.01 * 2000 / quickest
    text = file.read_text()
    assert "4 steps of an epoch were run, 2 of the plain way" in text
    assert "for the 500 of each epoch" in text
    assert text.count("is the bottleneck") == 2
    assert text.count("the plain way takes") == 2


def test_minutes_are_those_of_all_epochs_and_of_decoding():
    each = training.Run([0.5, 1.0], 6.0, [0.25], 2**30, None, "it waits")
    way = training.Way("ours", 10, [10], [each])
    args = argparse.Namespace(images=100, batch_size=10, epochs=3, workers=8)
    assert way.minutes(args, decoding=0.3) == [(30 + 3 * (6 + 5)) / 60, (30 + 3 * (6 + 10)) / 60]
    row = dict(zip(training.COLUMNS, way.row(args, 0.3), strict=True))
    assert row["way"] == "ours (not replayed: it waits)"
    assert row["GiB: model + more"] == "1.00 + unknown"
    slow, quick = (
        training.Measured(way, None, 0.3, [images]).lines("MaPLe", args) for images in (39.0, 41.0)
    )
    assert "our model takes 40: the loader is the bottleneck" in slow[0]
    assert "our model takes 40: the model is the bottleneck" in quick[0]
    assert "6.00 s of each epoch are for its first batch, and 30.0 s before" in slow[1]


@pytest.mark.usefixtures("no_tensorboard")
def test_training_reads_each_photo_once_and_runs_the_engine_s_epoch(results, monkeypatch):
    read, taken = [], []
    monkeypatch.setattr(data_manager, "read_image", lambda path: read.append(path) or read_image(path))
    run_epoch = CLIPPromptTrainer.run_epoch

    def run(self):
        run_epoch(self)
        taken.append((self.num_batches, self.batch_idx + 1))

    monkeypatch.setattr(CLIPPromptTrainer, "run_epoch", run)
    assert training.main([*TWO_ROUNDS, *TRAINING, "--classes", "3"]) == 0
    steps = training.WARM_UPS + 4
    assert len(read) == len(set(read)) == 2 * steps
    assert taken == [(steps, steps), (training.WARM_UPS + 2, training.WARM_UPS + 2)]


@pytest.mark.usefixtures("no_tensorboard")
def test_training_may_leave_the_plain_way_out(results):
    given = [*TRAINING, "--plain-steps", "0", "--classes", "2", "--rounds", "9", "--anyway"]
    assert training.main(given) == 0
    (row,) = table_of(results / "training_maple_batch2_fp32_2_classes.md")
    assert row["way"] == "ours"
    assert "the plain way takes" not in (results / "training_maple_batch2_fp32_2_classes.md").read_text()


def test_photos_are_as_many_files_as_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PHOTOS", 2)
    training.make_photos(tmp_path, 5)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert len({file.read_bytes() for file in files}) == 2


# --- an evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MaPLe", "CoCoOp", "ZeroshotCLIP"])
def test_evaluation_is_put_together_from_its_parts(results, name):
    given = ["--classes", "2", "4", "--batch-size", "3", "--images", "7", "--check", "2"]
    assert evaluate.main([*TWO_ROUNDS, *given, "--trainers", name]) == 0
    file = results / f"evaluate_{name.lower()}_7images_fp32_2_4_classes.md"
    few, many = table_of(file)
    assert not few["the same, plain"].endswith("scaled")
    assert many["the same, plain"].endswith("scaled")
    assert (few["of it text once, s"] == "with each image") == (name == "CoCoOp")
    assert float(few["difference of logits"]) <= 1e-12
    assert many["difference of logits"].endswith(" (2)")
    text = file.read_text()
    assert text.startswith("# Evaluation of 7 images in batches of 3, fp32")
    assert "Put together from measured parts" in text


def test_evaluation_counts_text_once_and_the_plain_way_each_batch(results, monkeypatch):
    monkeypatch.setattr(ways.time, "perf_counter", iter(range(10_000)).__next__)  # each part takes a second
    args = evaluate.command_parser().parse_args(
        [*TWO_ROUNDS, "--classes", "2", "--batch-size", "2", "--images", "6"]
    )
    with ways.weights_of(args.backbone) as weights:
        (found,), _ = evaluate.measure("MaPLe", args, weights)
    assert found.wall == [3 + 1] * 2
    assert found.plain_wall == [3 + 3] * 2
    row = dict(zip(evaluate.COLUMNS, found.row(machine.Machine(1e9, 1e9, "float32")), strict=True))
    assert row["images a second"] == "1.5 (1.5 to 1.5)"
    assert row["the same, plain"] == "1.0 (1.0 to 1.0)"
    assert row["of it text once, s"] == "1.000 (1.000 to 1.000)"


def test_evaluation_in_half_precision_is_measured_too(results):
    given = ["--classes", "2", "--images", "3", "--prec", "bf16", "--plain-prec", "bf16"]
    assert evaluate.main([*TWO_ROUNDS, *given]) == 0
    text = (results / "evaluate_maple_3images_bf16_plain-bf16_2_classes.md").read_text()
    assert "the plain way's seconds in bf16 over ours" in text


def test_nothing_is_said_of_scaling_where_there_is_none(results):
    assert evaluate.main([*TWO_ROUNDS, "--classes", "2", "--images", "3", "--trainers", "CoOp"]) == 0
    assert "caled" not in (results / "evaluate_coop_3images_fp32_2_classes.md").read_text()


def test_carrying_on_is_even():
    assert ways.carried_on(1000, [50, 100], [7.0, 12.0]) == pytest.approx(102)
    assert ways.carried_on(100, [100], [12.0]) == 12
    assert ways.plain_sizes(100) == [100]
    assert ways.plain_sizes(101) == [50, 100]


def test_memory_tells_growth_and_seconds_of_each_way(results, monkeypatch):
    monkeypatch.setattr(memory, "in_own_process", memory.measure)
    given = ["--classes", "2", "4", "--batch-size", "1", "--options", "TRAINER.MAPLE.N_CTX", "3"]
    assert memory.main([*TWO_ROUNDS, *given]) == 0
    rows = table_of(results / "memory_maple_batch1_fp32_2_4_classes.md")
    own = "ours, TRAINER.MAPLE.N_CTX 3"
    assert [(row["classes"], row["way"]) for row in rows] == [
        *(("2", "ours"), ("2", own), ("2", "plain")),
        *(("4", "ours"), ("4", own)),
    ]
    assert all("to" in row["ms a step"] for row in rows)


def test_memory_of_a_case_is_measured_in_a_process_of_its_own(threads):
    args = memory.command_parser().parse_args(["--backbone", "ViT-Shapes/8", *TWO_ROUNDS])
    found = memory.in_own_process(memory.cases_of("MaPLe", 2, args, "")["ours"])
    assert len(found["wall"]) == len(found["bytes"]) == 2


@pytest.mark.parametrize("module", [step, evaluate, memory, loader, training])
def test_busy_machine_is_refused(results, monkeypatch, capsys, module):
    monkeypatch.setattr(ways, "load_average", lambda: [3.14])
    assert module.main([]) == 1
    assert capsys.readouterr().err == ("The machine is busy: load average 3.14. Wait, or give --anyway.\n")
    assert not results.exists()


def test_quiet_machine_is_not_refused(monkeypatch, threads, capsys):
    args = memory.command_parser().parse_args([])
    for loads in ([], [0.4]):
        monkeypatch.setattr(ways, "load_average", lambda loads=loads: loads)
        assert not ways.is_refused(args)
    assert capsys.readouterr().err == ""


def test_machine_s_rates_are_rates(results):
    found = machine.measure_machine()
    assert found.matmul > 0
    assert found.bandwidth > 0
    known = machine.Machine(matmul=2e9, bandwidth=1e9, dtype="float32")
    assert known.floor(1e9) == 0.5
    assert known.share(1e9, seconds=2) == 25
    gpu = machine.Machine(matmul=5e13, bandwidth=4e12, dtype="float32", device="cuda")
    assert gpu.numbers() == "float32, TF32 off"


def test_conditions_name_the_gpu_and_what_stands_below_torch(tmp_path, monkeypatch):
    assert not any("GPU" in line for line in report.conditions([], []))
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build\n")
    monkeypatch.setattr(report, "DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=140 * 2**30)
    )
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    lines = report.conditions(["torch"], [])
    assert "- GPU: NVIDIA H200, 140 GiB of memory, driver 560.35.03, CUDA 12.8" in lines


# --- loaders ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loaders_are_compared_with_and_without_workers(results, tmp_path):
    (tmp_path / "photos").mkdir()
    decoding.draw_photos(tmp_path / "photos", 3)
    given = [
        "--folder",
        str(tmp_path / "photos"),
        "--batch-size",
        "2",
        "--rounds",
        "1",
        "--workers",
        "0",
        "1",
    ]
    assert loader.main([*given, "--anyway"]) == 0
    text = (results / "loader_photos.md").read_text()
    assert text.startswith("# The loaders: 3 photos to inputs of 224 × 224")
    for name in ("written out", "ours", "ours, decoded before", "ours, from the disk"):
        assert f"| {name} " in text
    assert "- test, ours, from the disk, no workers: each image adds" in text
    assert "- test, ours, from the disk, 1 workers: where the model takes more than" in text


def test_loader_that_gives_another_number_stops_the_comparison(tmp_path):
    decoding.draw_photos(tmp_path, 1)
    paths = [str(tmp_path / "0000.jpg")]
    other = [{"img": torch.zeros(1, 3, 224, 224)}]
    right = DataLoader(loader.WrittenOut(paths, is_train=False))
    with pytest.raises(AssertionError, match="ours gives other numbers than written out"):
        loader.measure({"written out": right, "ours": other}, rounds=1)


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("step", ["--trainers", "Maple"], "did you mean 'MaPLe'?"),
        ("step", ["--classes", "0"], "--classes is 0; allowed is 1 or more."),
        ("memory", ["--trainers", "Maple"], "did you mean 'MaPLe'?"),
        ("loader", ["--folder", "nowhere"], "--folder nowhere holds no .jpg; give a folder of JPEGs."),
    ],
)
@pytest.mark.usefixtures("threads")
def test_mistakes_are_one_line(name, words, says, capsys):
    command = importlib.import_module(f"benchmarks.{name}")
    assert command.main([*words, "--anyway"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("benchmark: ")
    assert says in said[-1]
