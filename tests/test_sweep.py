"""`python -m scripts.sweep`: which runs a protocol asks for, and what is refused before any starts."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from rich.console import Console

import train
from dassl.engine import TRAINER_REGISTRY
from experiments.methods import read_methods
from experiments.protocols import protocol_names, read_protocol
from experiments.run_folder import state
from experiments.sweeps.job import Job
from experiments.sweeps.queue import Status
from experiments.sweeps.units import Selection, units
from experiments.sweeps.view import View, name_of, progress_of
from experiments.sweeps.wanted import Wanted
from prompted_clip.errors import UserError
from scripts.sweep import main
from trainers import MaPLe


def jobs(protocol: str, **selection) -> list[Job]:
    return [job for unit in units(read_protocol(protocol), Selection(**selection)) for job in unit]


def places(found: list[Job]) -> list[tuple]:
    return [(job.planned.role, job.planned.dataset, job.planned.classes, job.planned.trains) for job in found]


# --- what a protocol asks for


def test_base_to_novel_trains_on_base_and_tests_on_both_halves_apart_and_together():
    found = jobs("base2new", methods=["MaPLe"], datasets=["dtd"], seeds=[2])
    tests = [("new", "dtd", "new", False), ("joint", "dtd", "all", False)]
    assert places(found) == [("base", "dtd", "base", True), *tests]
    config = "shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx/seed2"
    assert [job.folder for job in found] == [
        f"base2new/train_base/dtd/{config}",
        f"base2new/test_new/dtd/{config}",
        f"base2new/test_all/dtd/{config}",
    ]
    assert {job.weights for job in found[1:]} == {job.needs for job in found[1:]} == {found[0].folder}


def test_what_belongs_to_its_classes_is_tested_on_no_others(tmp_path, monkeypatch):
    entry = "{trainer: CoOp, class_specific: true, configs: [{config: vit_b16_ctxv1}]}"
    (tmp_path / "methods.yaml").write_text(f"CoOp: {entry}")
    monkeypatch.setattr("experiments.methods.METHODS_FILE", tmp_path / "methods.yaml")
    assert places(jobs("base2new", methods=["CoOp"], datasets=["dtd"], seeds=[1])) == [
        ("base", "dtd", "base", True)
    ]
    assert places(jobs("few_shot", methods=["CoOp"], datasets=["dtd"], seeds=[1], shots=[1])) == [
        ("all", "dtd", "all", True)
    ]
    (tmp_path / "methods.yaml").write_text(f"CoOp: {entry.replace('true', 'maybe')}")
    with pytest.raises(ValueError, match=r"CoOp.class_specific is 'maybe'; allowed are true and false"):
        jobs("base2new", methods=["CoOp"])


def test_the_table_of_the_paper_has_eleven_datasets_and_three_seeds():
    found = jobs("base2new", methods=["MaPLe"])
    assert Counter(job.planned.role for job in found) == {"base": 33, "new": 33, "joint": 33}
    assert len({job.folder for job in found}) == 99


def test_zero_shot_is_tested_once_since_no_seed_matters():
    found = jobs("base2new", methods=["ZeroshotCLIP"], datasets=["dtd"])
    tests = [("base", "dtd", "base", False), ("new", "dtd", "new", False), ("joint", "dtd", "all", False)]
    assert places(found) == tests
    assert {job.weights for job in found} == {""}


def test_ten_seeds_are_for_the_datasets_that_ask_for_them():
    found = jobs(
        "base2new", methods=["MaPLe", "ZeroshotCLIP"], datasets=["dtd", "eurosat"], ten_seeds=["eurosat"]
    )
    counts = Counter((job.planned.method, job.planned.dataset) for job in found)
    assert counts == {
        ("MaPLe", "dtd"): 9,
        ("MaPLe", "eurosat"): 30,
        ("ZeroshotCLIP", "dtd"): 3,
        ("ZeroshotCLIP", "eurosat"): 3,
    }


def test_cross_dataset_trains_on_imagenet_with_the_settings_for_it():
    found = jobs("cross_dataset", methods=["MaPLe"], seeds=[1])
    assert places(found)[0] == ("source", "imagenet", "all", True)
    assert {place[0] for place in places(found)[1:]} == {"target"}
    assert len(found) == 11
    assert {job.planned.config for job in found} == {"vit_b16_c2_ep5_batch4_2ctx_cross_datasets"}
    assert {job.weights for job in found[1:]} == {found[0].folder}


def test_domain_generalisation_takes_the_training_of_cross_dataset():
    shifted = jobs("domain_generalisation", methods=["MaPLe"], seeds=[1])
    assert shifted[0].folder == jobs("cross_dataset", methods=["MaPLe"], seeds=[1])[0].folder
    variants = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert [job.planned.dataset for job in shifted[1:]] == variants


def test_few_shot_takes_coops_epochs_for_each_number_of_shots():
    configs = [job.planned.config for job in jobs("few_shot", methods=["CoOp"], datasets=["dtd"], seeds=[1])]
    assert configs == ["vit_b16_ep50", "vit_b16_ep100", "vit_b16_ep100", "vit_b16", "vit_b16"]
    of_imagenet = jobs("few_shot", methods=["CoOp"], datasets=["imagenet"], seeds=[1])
    assert {job.planned.config for job in of_imagenet} == {"vit_b16_ep50"}


def test_depth_varies_both_branches_and_each_alone():
    found = [job for job in jobs("depth", datasets=["shapes"], seeds=[1]) if job.planned.trains]
    curves = ["both branches", "text branch", "image branch", "deep language prompting"]
    assert list(dict.fromkeys(job.planned.curve for job in found)) == curves
    assert [job.planned.value for job in found[:5]] == [1, 2, 3, 4, 6]
    assert found[0].options[-2:] == ("TRAINER.MAPLE.PROMPT_DEPTH", "1")
    assert len({job.folder for job in found}) == 20
    assert [job.planned.value for job in jobs("depth", values=[2], seeds=[1], datasets=["dtd"])] == [2] * 8


def test_given_weights_are_tested_on_both_halves_without_training():
    found = jobs(
        "base2new", methods=["MaPLe"], datasets=["dtd"], seeds=[3], weights="/w/{dataset}/seed{seed}"
    )
    tests = [("base", "dtd", "base", False), ("new", "dtd", "new", False), ("joint", "dtd", "all", False)]
    assert places(found) == tests
    assert {job.weights for job in found} == {"/w/dtd/seed3"}
    assert {job.needs for job in found} == {""}


def test_a_trainer_with_a_configuration_of_its_own_is_a_method():
    job, *_ = jobs("base2new", methods=["MaPLe:shapes_shallow"], datasets=["shapes"], seeds=[1])
    assert (job.planned.method, job.planned.config) == ("MaPLe-shallow", "shapes_shallow")
    job, *_ = jobs("base2new", methods=["CoOp:rn50"], datasets=["dtd"], seeds=[1])
    assert (job.planned.method, job.planned.trainer) == ("CoOp (rn50)", "CoOp")


@pytest.mark.parametrize("name", protocol_names())
def test_every_run_of_every_protocol_has_a_configuration_that_train_takes(name):
    parser, seen = train.build_parser(), set()
    for job in jobs(name, seeds=[1], source=""):
        planned = job.planned
        if (planned.trainer, planned.config, planned.value, planned.trains) not in seen:
            seen.add((planned.trainer, planned.config, planned.value, planned.trains))
            words = list(job.arguments(Path("/out")))
            if "--model-dir" in words:
                at = words.index("--model-dir")
                del words[at : at + 2]
            cfg = train.setup_cfg(parser.parse_args(words))
            assert planned.trainer == cfg.TRAINER.NAME


def test_methods_of_their_classes_are_not_tested_on_others(tmp_path, capsys):
    """CoOp with a context for each class, too, which its settings alone tell."""
    of_classes = {method.key for method in read_methods() if method.class_specific}
    assert {"CLAP", "TaskRes", "LPPlusPlus", "TipAdapter", "ZSLinearProbe"} <= of_classes
    trainers = {method.trainer for method in read_methods() if method.class_specific}
    assert all(TRAINER_REGISTRY.get(name).class_specific for name in trainers)
    for protocol in ("base2new", "cross_dataset", "domain_generalisation"):
        assert not of_classes & {job.planned.method for job in jobs(protocol, seeds=[1])}
    assert of_classes <= {job.planned.method for job in jobs("few_shot", seeds=[1], shots=[16])}

    command = ["base2new", "--datasets", "shapes", "--dry-run", "--output", str(tmp_path), "--trainers"]
    assert main([*command, "CLAP"]) == 0  # by name: trained and tested on base classes alone
    classes = re.findall(r"SUBSAMPLE_CLASSES (\w+)", capsys.readouterr().out)
    assert classes == 3 * ["base"]
    own_contexts = ("TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", "")
    csc = refused(capsys, *command, "CoOp", "--options", *own_contexts)
    assert "CoOp learns something for each class" in csc


def test_every_configuration_of_every_method_is_there():
    for method in read_methods():
        for config in method.configs:
            assert (ROOT / f"configs/trainers/{method.trainer}/{config}.yaml").is_file(), (method.key, config)
    pairs = [(method.trainer, config) for method in read_methods() for config in method.configs]
    assert len(pairs) == len(set(pairs)), "a run is of one method"


# --- the command


def refused(capsys, *words: str) -> str:
    assert main([*words]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    return message


SHAPES = ("base2new", "--datasets", "shapes", "--seeds", "1")


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path, capsys):
    output = tmp_path / "out"
    flags = ("--trainers", "MaPLe", "--output", str(output), "--root", str(tmp_path), "--dry-run")
    assert main([*SHAPES, *flags, "--options", "OPTIM.MAX_EPOCH", "1"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[:2] for command in commands] == [["python", "train.py"]] * 3
    assert [command[-2:] for command in commands] == [["OPTIM.MAX_EPOCH", "1"]] * 3
    assert not output.exists()
    args = train.build_parser().parse_args(commands[0][2:])
    assert args.trainer == "MaPLe"
    assert args.output_dir == f"{output}/base2new/train_base/shapes/shots_16/MaPLe/shapes/seed1"


def test_dry_run_needs_no_data(tmp_path, capsys):
    assert main(["base2new", "--trainers", "MaPLe", "--root", str(tmp_path), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 99


def test_a_missing_dataset_is_said_before_anything_runs(tmp_path, capsys):
    flags = ("--trainers", "MaPLe", "--root", str(tmp_path), "--output", str(tmp_path / "out"))
    message = refused(capsys, "base2new", "--datasets", "shapes", "dtd", *flags)
    assert message.startswith(f"sweep: DescribableTextures: there is no folder {tmp_path}/dtd.")
    assert "python -m datasets prepare dtd" in message
    assert not any(tmp_path.iterdir())  # nothing was drawn, either


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["base3new"], "protocol base3new: allowed are base2new, cross_dataset"),
        (["base2new", "--trainers", "MaPle"], "--trainers MaPle: allowed are all, ZeroshotCLIP"),
        (["base2new", "--trainers", "MaPLe:nothing"], "There is no configs/trainers/MaPLe/nothing.yaml; in"),
        (["base2new", "--datasets", "cifar"], "There is no configs/datasets/cifar.yaml; in its folder are"),
        (["base2new", "--seeds", "-1"], "--seeds is -1; allowed is 0 or more."),
        (["base2new", "--values", "3"], "--values is for ablations; base2new has no curve."),
        (["base2new", "--source", "dtd"], "--source is dtd; base2new trains on the dataset that it tests."),
        (
            ["base2new", "--ten-seeds", "cars"],
            "--ten-seeds cars: nothing is trained on it; allowed are imagenet,",
        ),
        (["base2new", "--classes", "odd"], "--classes odd: base2new has all, base, new."),
        (["base2new", "--jobs-per-gpu", "0"], "--jobs-per-gpu is 0; allowed are auto, and 1 or more."),
        (["zeroshot", "--trainers", "MaPLe"], "zeroshot tests without training: --trainers MaPLe is not"),
        (
            ["base2new", "--trainers", "MaPLe", "--weights", "/w/{sed}"],
            "allowed places in it are {dataset}, {seed}",
        ),
        (["base2new", "--cluster", "slurm", "--show"], "--show prints runs of this machine"),
        ([*SHAPES, "--options", "OPTIM.EPOCHS", "3"], "OPTIM.EPOCHS"),
        ([*SHAPES, "--stage", "test", "--trainers", "MaPLe"], "there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, words, says):
    flags = ["--output", str(tmp_path / "out"), "--root", str(tmp_path)]
    at = words.index("--options") if "--options" in words else len(words)
    assert says in refused(capsys, *words[:at], *flags, *words[at:])
    assert not (tmp_path / "out").exists()


def test_a_protocol_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: mine\ndatasets: [shapes]\nshots: [2]\n"
        "train: {role: all, classes: all, folder: 'mine/{method}/seed{seed}'}\n"
    )
    assert main([str(path), "--trainers", "MaPLe", "--seeds", "1", "--dry-run"]) == 0
    assert "DATASET.NUM_SHOTS 2" in capsys.readouterr().out
    path.write_text(path.read_text().replace("{method}", "{methode}"))
    assert "mine, folder is 'mine/{methode}/seed{seed}'; allowed places" in refused(capsys, str(path))
    path.write_text("title: mine\ndataset: [shapes]\n")
    assert f"{path}: unknown key 'dataset'; allowed are axis" in refused(capsys, str(path))


def test_a_dataset_that_draws_itself_is_drawn_before_any_run_starts(tmp_path, capsys, monkeypatch):
    def draw(self, folder):
        raise UserError(f"drawn into {folder}")

    monkeypatch.setattr("datasets.shapes.Shapes.make", draw)
    flags = ("--trainers", "MaPLe", "--root", str(tmp_path), "--output", str(tmp_path / "out"))
    assert f"drawn into {tmp_path}/shapes" in refused(capsys, *SHAPES, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["state_dict", "identity"])
def test_a_checkpoint_that_is_none_is_named_before_anything_runs(part, tmp_path):
    file = tmp_path / MaPLe.model_name / "model.pth.tar-5"
    file.parent.mkdir()
    torch.save({"state_dict": {}, "epoch": 5, part: [1]}, file)
    with pytest.raises(UserError, match=rf"model\.pth\.tar-5.*{part}"):
        Wanted().tested(MaPLe, tmp_path, 5)


# --- a whole sweep

SHORT = ["--options", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, few_shapes) -> Path:
    folder = few_shapes(tmp_path_factory.mktemp("swept"))
    words = [*SHAPES, "--trainers", "MaPLe", "--root", str(folder), "--output", str(folder / "out")]
    assert main([*words, *SHORT]) == 0
    return folder


def test_a_sweep_runs_everything_and_writes_down_what_it_wanted(swept):
    (path,) = (swept / "out/plans").iterdir()
    plan = json.loads(path.read_text())
    assert plan["protocol"] == "base2new"
    assert [(job["method"], job["role"]) for job in plan["jobs"]] == [
        ("MaPLe", "base"),
        ("MaPLe", "new"),
        ("MaPLe", "joint"),
    ]
    for job in plan["jobs"]:
        assert state(swept / "out" / job["folder"]) == ("finished", "")
    result = json.loads((swept / "out" / plan["jobs"][1]["folder"] / "result.json").read_text())
    assert result["trained_on"]["classes"] == "base"


def test_a_result_of_other_settings_is_not_taken_for_the_wanted_one(swept, capsys):
    words = [*SHAPES, "--trainers", "MaPLe", "--root", str(swept), "--output", str(swept / "out")]
    message = refused(capsys, *words, *SHORT, "OPTIM.LR", "0.1")
    assert "1 folders hold results of other runs" in message  # the other one is of a test
    assert "OPTIM.LR is 0.0035 there, 0.1 here" in message
    assert main([*words, *SHORT, "DATALOADER.CACHE_GB", "0."]) == 0, "this changes no result"
    assert "with a result from before: 3 of 3 runs" in capsys.readouterr().out


# --- the view


def test_remaining_time_is_told_from_runs_of_the_same_kind():
    found = jobs("base2new", methods=["MaPLe"], datasets=["shapes"], seeds=[1, 2, 3])
    status = Status(found, at_once=2)
    assert status.remaining() is None
    status.finished = {found[0].folder, found[1].folder}
    status.seconds = {("MaPLe", "shapes", 16, True): [100.0], ("MaPLe", "shapes", 16, False): [10.0]}
    assert status.remaining() == (2 * 100 + 5 * 10) / 2
    status.seconds = {("ZeroshotCLIP", "shapes", 16, False): [10.0]}
    assert status.remaining() is None, "a test does not tell how long a training takes"
    status.seconds |= {("CoOp", "shapes", 16, True): [50.0]}
    assert status.remaining() == (2 * 50 + 5 * 10) / 2


@pytest.mark.parametrize("terminal", [True, False])
def test_the_view_shows_what_is_done_running_and_failed(tmp_path, terminal, monkeypatch):
    monkeypatch.setattr("experiments.sweeps.view.REFRESH", 0.0)
    found = jobs("base2new", methods=["MaPLe"], datasets=["shapes"], seeds=[1, 2])
    status = Status(found)
    written = io.StringIO()
    view = View(tmp_path, Console(file=written, force_terminal=terminal, width=150, height=40))
    (tmp_path / found[2].folder).mkdir(parents=True)
    (tmp_path / found[2].folder / "log.txt").write_text(
        "epoch [2/5] batch [40/96] time 0.1 (0.1) data 0.0 (0.0) loss 1.0 (1.0) lr 1.0e-03 eta 0:00:12\n"
    )
    with view.shown():
        status.finished.add(found[0].folder)
        view(status, f"finished {found[0].folder} in 30 s: accuracy 80.00 %")
        status.running[found[2].folder] = view.start
        status.failed[found[1].folder] = "out of memory"
        view(status, f"failed   {found[1].folder}: out of memory")
    text = written.getvalue()
    assert f"[1/6] finished {found[0].folder} in 30 s: accuracy 80.00 %" in text
    assert f"[2/6] failed   {found[1].folder}: out of memory" in text
    if terminal:
        assert "1 finished, 1 running, 1 failed, 3 waiting" in text
        assert "epoch [2/5] batch [40/96], 0:00:12 left" in text


def test_a_terminal_shows_the_events_of_seconds_at_once_and_all_in_the_end(tmp_path, monkeypatch):
    job, *_ = jobs("base2new", methods=["MaPLe"], datasets=["shapes"], seeds=[1])
    status, written = Status([job]), io.StringIO()
    view = View(tmp_path, Console(file=written, force_terminal=True, width=80))
    monkeypatch.setattr("experiments.sweeps.view.REFRESH", 3600.0)
    with view.shown():
        for event in ("finished one", "finished two"):
            view(status, event)
        view.drawn = 0.0
        view(status, "")
        assert "[0/1] finished one\n" in written.getvalue()
        assert "[0/1] finished two\n" in written.getvalue()
        view(status, "finished three")
        assert "three" not in written.getvalue()
    assert "[0/1] finished three\n" in written.getvalue()


def test_without_a_terminal_progress_is_told_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.sweeps.view.HEARTBEAT", 0.0)
    job, *_ = jobs("base2new", methods=["MaPLe"], datasets=["shapes"], seeds=[1])
    status, written = Status([job]), io.StringIO()
    view = View(tmp_path, Console(file=written, force_terminal=False, width=80, soft_wrap=True))
    (tmp_path / job.folder).mkdir(parents=True)
    log = tmp_path / job.folder / "log.txt"
    log.write_text("epoch [4/5] batch [90/96] time 0.1 (0.1) loss 1.0 (1.0) lr 1.0e-03 eta 0:00:02\n")
    status.running[job.folder] = log.stat().st_mtime + 1
    with view.shown():
        view(status, "")  # that log is of an earlier attempt
        log.write_text("epoch [2/5] batch [40/96] time 0.1 (0.1) loss 1.0 (1.0) lr 1.0e-03 eta 0:00:12\n")
        os.utime(log, (status.running[job.folder] + 1,) * 2)
        view(status, "")
        view(status, "")  # nothing new
    assert written.getvalue() == (
        "[0/1] running  MaPLe, shapes, base, 16 shots, seed 1: epoch [2/5] batch [40/96], 0:00:12 left\n"
    )


def test_runs_are_told_apart_in_a_narrow_terminal(tmp_path):
    found = jobs("base2new", methods=["MaPLe", "MaPLe-shallow"], datasets=["oxford_flowers"], seeds=[1, 2])
    names = [name_of(job) for job in found]
    assert len(set(names)) == len(found) == 12
    assert max(map(len, names)) < 60


def test_progress_is_the_newest_line_of_the_newest_log(tmp_path):
    assert progress_of(tmp_path) == ""
    (tmp_path / "log.txt").write_text("Loading CLIP (backbone: ViT-B/16)\n")
    assert progress_of(tmp_path) == "Loading CLIP (backbone: ViT-B/16)"
