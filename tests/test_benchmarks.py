"""The benchmarks: what their reports hold, and that both ways which they compare give the same numbers."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import relative_error
from torch.utils.data import DataLoader

from benchmarks import (
    evaluate,
    harness,
    loader,
    machine,
    predict,
    reference,
    scale,
    step,
    training,
    views,
    ways,
    whole,
)
from datasets import shapes
from experiments.costs.complexity import build_cfg, find_method, known_trainers
from experiments.costs.flops import count_flops
from experiments.costs.synthetic import batch_of_noise, build_synthetic, class_names
from prompted_clip import ops

SHAPES = "ViT-Shapes/8"


@pytest.fixture(autouse=True)
def quick_cpu(monkeypatch):
    """No GPU, small matrices, and above 3 classes the plain way is scaled."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "SIDE", {"cpu": 32})
    monkeypatch.setattr(machine, "COPIED", {"cpu": 4096})
    monkeypatch.setattr(harness, "LARGEST_PLAIN", 3)
    monkeypatch.setattr(harness, "SCALED_FROM", (2, 3))
    yield
    torch.set_num_threads(threads)


def words(out: Path, *more: str) -> list[str]:
    given = ["--backbone", SHAPES, "--rounds", "2", "--seconds", "0", "--threads", "1", "--anyway"]
    return [*given, "--out", str(out), *more]


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The last table of the one report in a folder."""
    (file,) = folder.iterdir()
    lines = [line for line in file.read_text().split("\n\n")[-1].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


# --- the papers' way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", known_trainers())
def test_the_papers_way_gives_the_same_logits_for_more_flops(name: str) -> None:
    cfg = build_cfg(
        find_method(name, SHAPES), class_names(3, SHAPES), SHAPES, 64, options=("USE_CUDA", "False")
    )
    trainer = build_synthetic(cfg)
    model, pixels = trainer.model.double(), batch_of_noise(cfg, 2, 3)["img"].double()
    logits: list[torch.Tensor] = []

    def flops() -> tuple[int, int]:
        """Of the images, and of all else; the logits come along."""
        total = count_flops(lambda: logits.append(model(pixels)))
        images = count_flops(lambda: model.encode_image(pixels))
        return images, total - images

    with torch.no_grad():
        model(pixels)  # what is computed once is not counted
        ours = flops()
        reference.compute_as_reference(model)
        theirs = flops()
    assert relative_error(*logits) < 1e-12
    pairs = list(zip(ours, theirs, strict=True))
    assert all(more >= less for less, more in pairs)  # a head's text features are numbers, and no text
    assert any(more > less for less, more in pairs)


def test_no_step_changes_the_next_one() -> None:
    trainer = harness.build("MaPLe", 2, SHAPES, "")
    learned = [each for each in trainer.model.parameters() if each.requires_grad]
    before = [each.detach().clone() for each in learned]
    trainer.forward_backward(harness.batch_for(trainer, 2))
    assert any(each.grad.abs().max() > 0 for each in learned)
    assert all(map(torch.equal, learned, before))


# --- reports ----------------------------------------------------------------------------------------------


def test_step_reports_ratio_memory_floor_and_exactness(tmp_path: Path) -> None:
    given = ["--classes", "2", "4", "--batch-size", "2", "--check", "3"]
    assert step.main(words(tmp_path, *given)) == 0
    few, plain_few, many, plain_many = rows_of(tmp_path)
    for row, plain, checked in ((few, plain_few, ""), (many, plain_many, " (3)")):
        assert row["way"] == "ours"
        assert row["plain / it, wall"].count("to") == 1
        assert plain["plain / it, wall"] == "1.00 (1.00 to 1.00)"
        assert row["floor, ms; how near"].endswith("%")
        assert row["GiB more"] == "unknown" or float(row["GiB more"]) >= 0
        errors = row["differences: logits, gradients"]
        assert errors.endswith(checked)
        assert all(float(error) <= 1e-12 for error in errors.removesuffix(checked).split(", "))
        assert float(row["GFLOPs"]) <= float(plain["GFLOPs"])
    assert (plain_few["way"], plain_many["way"]) == ("plain", "plain, scaled")
    (file,) = tmp_path.iterdir()
    assert file.name == "step_maple_vit-shapes-8_batch2_fp32_2_4_classes.md"
    for part in ("- Command: `", "- Machine: ", "- Versions: ", "- Load average", "GFLOP/s of matmul"):
        assert part in file.read_text()


def test_steps_of_a_method_that_draws_and_takes_views_are_compared() -> None:
    ours, plain = (harness.build("CoPrompt", 3, SHAPES, "", plain=each) for each in (False, True))
    batch = harness.batch_for(ours, 2)
    assert max(step.differences(ours, plain, batch)) < 1e-12
    assert max(views.differences(ours, batch)) < 1e-12
    with torch.no_grad():
        next(plain.model.prompt_learner.parameters()).add_(0.1)
    assert min(step.differences(ours, plain, batch)) > 1e-6


def test_a_step_takes_the_other_linear_layers_and_no_more() -> None:
    usual, seen = ops._ONEDNN_IS_FASTER, []
    trainer = SimpleNamespace(forward_backward=lambda _: seen.append(ops._ONEDNN_IS_FASTER))
    step.with_other_linear(trainer).forward_backward({})
    assert (seen, ops._ONEDNN_IS_FASTER) == ([not usual], usual)


def test_a_way_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch) -> None:
    def no_compiler(losses, dynamic):
        def fail(*batch):
            raise RuntimeError("no\n compiler")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    given = ["--classes", "2", "--batch-size", "1", "--ways", "compiled", "plain"]
    assert step.main(words(tmp_path, *given)) == 0
    failed, plain = rows_of(tmp_path)
    assert "cannot be compiled: no compiler" in failed["way"]
    assert failed["ms a step"] == failed["plain / it, wall"] == "–"
    assert plain["plain / it, wall"] == "1.00 (1.00 to 1.00)"


def test_steps_on_kept_states_are_beside_those_on_pixels(tmp_path: Path) -> None:
    given = ["--classes", "2", "--batch-size", "2", "--trainers", "MMRL", "TCP", "TipAdapter-F"]
    assert views.main(words(tmp_path, *given, "--first", "0", "3", "--last", "4")) == 0
    own, later, features, images = rows_of(tmp_path)
    assert later["kept"] == "states before block 3"
    assert (features["kept"], images["kept"]) == ("features", "nothing")
    saved = [float(row["the same in GFLOPs: the bound"].split(" =")[0]) for row in (own, later, features)]
    assert 1 < saved[0] < saved[1]
    for row in (own, later, features):
        assert all(float(error) <= 1e-12 for error in row["differences: logits, gradients"].split(", "))
    assert images["pixels / kept, wall"] == "–"
    assert images["plain / kept, wall"].count("to") == 1


def test_whole_trainings_on_new_and_on_fixed_views(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shapes, "IMAGES", {"train": 2, "val": 1, "test": 3})
    given = ["--trainers", "MMA", "--shots", "1", "--views", "1", "--rounds", "1"]
    assert whole.main(words(tmp_path, *given, "--options", "OPTIM.MAX_EPOCH", "1")) == 0
    new, fixed = rows_of(tmp_path)
    assert (new["views of an image"], fixed["views of an image"]) == ("new in each epoch", "1 fixed")
    assert new["new / fixed"] == "–"
    before, after, ratio = (
        float(each.split()[0]) for each in (new["seconds"], fixed["seconds"], fixed["new / fixed"])
    )
    assert ratio == pytest.approx(before / after, rel=0.1)  # of rounded seconds
    for row in (new, fixed):
        assert float(row["processor seconds"].split()[0]) > 0
        assert float(row["peak memory, GiB"]) > 0.1
        assert 0 < float(row["accuracy"]) <= 100


@pytest.mark.parametrize("flag", ["--shots", "--views"])
def test_whole_trainings_take_one_or_more(tmp_path: Path, capsys, flag: str) -> None:
    assert whole.main(words(tmp_path, flag, "0")) == 2
    assert f"{flag} is 0; allowed is 1 or more." in capsys.readouterr().err


def test_a_whole_training_that_ends_with_an_error_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(shapes, "IMAGES", {"train": 1, "val": 1, "test": 1})
    given = ["--trainers", "MMA", "--ways", "new", "--options", "OPTIM.LR", "-1"]
    assert whole.main(words(tmp_path, *given)) == 2
    assert "MMA with DATALOADER.VIEWS 0 ended with 2: " in (error := capsys.readouterr().err)
    assert "OPTIM.LR" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["MaPLe", "CoCoOp", "ZeroshotCLIP"])
def test_evaluation_reports_images_per_second(tmp_path: Path, name: str) -> None:
    given = ["--classes", "2", "4", "--batch-size", "3", "--images", "7", "--check", "2", "--trainers", name]
    assert evaluate.main(words(tmp_path, *given)) == 0
    few, many = rows_of(tmp_path)
    assert not few["the same, plain"].endswith("scaled")
    assert many["the same, plain"].endswith("scaled")
    assert (few["of it text once, s"] == "with each image") == (name == "CoCoOp")
    assert float(few["difference of logits"]) <= 1e-12
    assert many["difference of logits"].endswith(" (2)")


def test_training_is_extrapolated_from_some_steps(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)  # slow to import
    given = ["--workers", "0", "--batch-size", "2", "--steps", "4", "--plain-steps", "2", "--classes", "2"]
    assert training.main(words(tmp_path, *given, "--images", "1000", "--epochs", "3")) == 0
    ours, plain = rows_of(tmp_path)
    assert (ours["way"], plain["way"]) == ("ours", "plain")
    (file,) = tmp_path.iterdir()
    assert "is the bottleneck" in file.read_text()
    assert "for the 500 of each epoch" in file.read_text()


def test_predictions_of_exports_are_beside_the_models(tmp_path: Path) -> None:
    given = ["--classes", "3", "--batch-size", "2", "--images", "2", "--trainers", "ZeroshotCLIP"]
    graph = "ONNX Runtime int8, dynamic"
    assert predict.main(words(tmp_path, *given, "--rounds", "1", "--ways", graph)) == 0
    rows = rows_of(tmp_path)
    assert [row["way"] for row in rows] == ["model fp32", graph]
    assert rows[0]["÷ model fp32"] == "1.00 (1.00 to 1.00)"
    assert rows[0]["file, MB"] == "–"
    assert float(rows[1]["file, MB"]) > 1
    report = next(tmp_path.iterdir()).read_text()
    assert "First prediction on one core: " in report
    assert "Accuracy" not in report


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_theirs_predict_from_photos(tmp_path: Path) -> None:
    loader.draw_photos(tmp_path, 2)
    photos = sorted(map(str, tmp_path.glob("*.jpg")))
    given = SimpleNamespace(photos=photos, classes=3, threads=1, batch=2)
    given.timm, given.open_clip = "test_vit", "ViT-S-32-alt"
    for way, side in (("timm fp32", 160), ("open_clip fp32", 224)):
        classify, pipeline = ways.WAYS[way](given)
        assert classify(np.zeros((1, 3, side, side), np.float32)).shape == (1, 3)
        (found,) = pipeline()
        assert torch.allclose(found.sum(dim=-1), torch.ones(2))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loaders_are_compared_with_and_without_workers(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    loader.draw_photos(tmp_path / "photos", 3)
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
    assert loader.main([*given, "--anyway", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "loader_photos.md").read_text()
    for name in ("reference", "ours", "ours, decoded before", "ours, from the disk"):
        assert f"| {name} " in text
    assert "- test, ours, from the disk, no workers: each image adds" in text


def test_a_loader_with_other_numbers_ends_the_comparison(tmp_path: Path) -> None:
    loader.draw_photos(tmp_path, 1)
    paths = [str(tmp_path / "0000.jpg")]
    right = DataLoader(loader.ReferenceDataset(paths, is_train=False))
    with pytest.raises(AssertionError, match="ours gives other numbers than reference"):
        loader.measure({"reference": right, "ours": [{"img": torch.zeros(1, 3, 224, 224)}]}, rounds=1)


# --- parts ------------------------------------------------------------------------------------------------


def test_numbers_are_medians_and_ranges_of_rounds() -> None:
    assert harness.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert harness.ratios([2.0, 9.0], [1.0, 3.0], 0) == "2 (2 to 3)"
    assert harness.carried_on(1000, [50, 100], [7.0, 12.0]) == pytest.approx(102)


def test_each_round_takes_every_way_in_another_order() -> None:
    taken: list[str] = []
    ways = [harness.Rounds(lambda name=name: taken.append(name)) for name in "ab"]
    harness.interleaved(ways, 2, least=0)
    assert all(len(way.wall) == 2 for way in ways)
    assert "".join(taken).endswith("aabb" + "bbaa")


def test_steps_settle_when_a_cuda_graph_replays_them() -> None:
    trainer = SimpleNamespace(graphed_step=SimpleNamespace(disabled=False, checked=False))
    steps: list[int] = []

    def take() -> None:
        steps.append(1)
        trainer.graphed_step.checked = len(steps) == 25

    rounds = harness.Rounds(take, torch.device("cuda"))
    assert harness.settle(rounds, trainer) == ""
    assert len(steps) == 25
    trainer.graphed_step.disabled = True
    say = "The training step is not replayed as a CUDA graph: it waits"
    assert harness.settle(harness.Rounds(lambda: print(say), rounds.device), trainer) == "it waits"


def test_memory_is_the_peak_of_what_is_computed() -> None:
    def compute() -> None:
        torch.ones(32, 2**20)  # 128 MB in float32, freed at once

    found = [machine.peak_memory(compute, torch.device("cpu")) for _ in range(2)]
    if found[0] is None:
        pytest.skip("this system cannot tell")
    assert all(120 * 2**20 < each < 150 * 2**20 for each in found if each is not None)


def test_shares_of_the_machine_s_rate() -> None:
    rates = machine.measure_rates()
    assert rates.matmul > 0
    assert rates.bandwidth > 0
    known = machine.Rates(matmul=2e9, bandwidth=1e9, dtype="float32")
    assert known.floor(1e9) == 0.5
    assert known.share(1e9, seconds=2) == 25


# --- scale ------------------------------------------------------------------------------------------------


def scaled(out: Path, part: str, *more: str) -> list[dict[str, str]]:
    assert scale.main([part, "--anyway", "--out", str(out), *more]) == 0
    return rows_of(out)


def test_the_queue_of_many_runs_takes_a_share_of_a_core(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("experiments.sweeps.queue.PATIENCE", 0.1)
    waiting, ending = scaled(tmp_path, "queue", "--runs", "40", "--window", "1")
    assert (waiting["runs"], waiting["ended"], ending["runs"]) == ("none ends", "0", "one ends each second")
    assert all(0 < float(row["of a core"].removesuffix(" %")) < 100 for row in (waiting, ending))


def test_a_report_of_many_results_takes_seconds(tmp_path: Path) -> None:
    rows = scaled(tmp_path, "report", "--results", "40")
    assert [row["format"] for row in rows] == ["text", "csv", "html"]
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_own_folders_are_opened_again_by_their_index(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scale.time, "sleep", lambda _: None)
    rows = scaled(tmp_path, "folder", "--photos", "10000", "--folders", "4")
    assert [(row["photos"], row["trained on"]) for row in rows] == [
        *(("a generated index", each) for each in ("64", "64", "5,000")),
        *(("a tree of empty files", each) for each in ("64", "64", "500")),
    ]


def test_what_grows_with_the_classes(tmp_path: Path) -> None:
    rows = scaled(tmp_path, "classes", "--classes", "40")
    assert all({"4 classes", "40 classes", "quotient (10: linear)"} < row.keys() for row in rows)
    assert {"model: text features", "result.json written"} < {row[""] for row in rows}


def test_jobs_that_want_the_same_weights_download_them_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(scale._Weights, "content", bytes(1000))
    (row,) = scaled(tmp_path, "weights", "--jobs", "3")
    assert (row["jobs"], row["have the file"], row["downloads"]) == ("3", "3", "1")


def test_another_user_takes_root(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(scale.os, "geteuid", lambda: 1000)
    assert scale.main(["users", "--anyway", "--out", str(tmp_path)]) == 2
    assert "run it as root" in capsys.readouterr().err


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [step, evaluate, loader, training, predict])
def test_a_busy_machine_is_refused(tmp_path: Path, monkeypatch, capsys, command) -> None:
    monkeypatch.setattr(harness, "load_average", lambda: [3.14])
    assert command.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "The machine is busy: load average 3.14. Wait, or give --anyway.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("step", ["--trainers", "Maple"], "did you mean 'MaPLe'?"),
        ("step", ["--classes", "0"], "--classes is 0; allowed is 1 or more."),
        (
            "predict",
            ["--ways", "model int4", "--backbone", SHAPES],
            "--ways has 'model int4'; allowed are model fp32;",
        ),
        ("scale", ["que"], "que: no such part; there are queue, report, folder, classes, weights, users."),
        ("scale", ["folder", "--photos", "9"], "--photos is 9; allowed is 100,000 or more."),
        ("loader", ["--folder", "nowhere"], "--folder nowhere holds no .jpg; give a folder of JPEGs."),
    ],
)
def test_mistakes_are_one_line(name, given, message, capsys) -> None:
    assert importlib.import_module(f"benchmarks.{name}").main([*given, "--anyway"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("benchmark: ")
    assert message in said[-1]
