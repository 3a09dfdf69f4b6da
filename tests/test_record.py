"""What a run leaves behind for scripts: result.json; and the lock on the folder it writes into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import ROOT

import train
from dassl.evaluation import read_predictions
from experiments import record, run_folder
from experiments.record import sealed
from experiments.run_folder import IN_USE, is_in_use, locked
from prompted_clip.files import sha256_of_file
from train import command_line

SHORT = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory, few_shapes) -> str:
    return str(few_shapes(tmp_path_factory.mktemp("data")))


def run(root: str, output: Path, *flags: str, trainer: str = "MaPLe", classes: str = "base") -> dict:
    words = ["--root", root, "--seed", "3", "--trainer", trainer, "--output-dir", str(output), *flags]
    assert command_line([*words, *SHORT, "DATASET.SUBSAMPLE_CLASSES", classes]) == 0
    return json.loads((output / "result.json").read_text())


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(root, folder)


def test_a_training_tells_its_figures_to_full_precision(trained):
    folder, result = trained
    log = (folder / "log.txt").read_text()
    assert f"* accuracy: {result['results']['accuracy']:.2f}%" in log
    assert f"* macro_f1: {result['results']['macro_f1']:.2f}%" in log
    assert result["results"]["accuracy"] == 100 * result["correct"] / result["total"]
    assert (result["total"], len(result["per_class"])) == (72, 24)
    assert {each["total"] for each in result["per_class"]} == {3}
    assert result["per_class"][0]["name"] == "striped red circle"
    assert (result["classes"], result["split"], result["shots"], result["seed"]) == ("base", "test", 1, 3)


def test_a_training_tells_what_made_it(trained):
    folder, result = trained
    assert (result["trainer"], result["config"], result["dataset"]) == ("MaPLe", "shapes", "Shapes")
    assert result["settings"]["OPTIM"]["MAX_EPOCH"] == result["epochs"] == 1
    assert result["settings"]["INPUT"]["SIZE"] == [64, 64]
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    sample = json.loads((folder / "few_shot.json").read_text())["sha256"]
    assert result["sample_sha256"] == result["trained_on"]["sample_sha256"] == sample
    assert result["learned_parameters"] == 33_792
    seconds = result["seconds"]
    assert 0 < seconds["testing"] < seconds["total"]
    assert seconds["training"] + seconds["testing"] == pytest.approx(seconds["total"], abs=2e-3)
    assert 1e8 < result["peak_memory_bytes"]["process"] < 1e11
    assert result["eval_only"] is False


def test_a_test_tells_what_it_was_trained_on(root, trained, tmp_path):
    folder, training = trained
    result = run(root, tmp_path / "new", "--eval-only", "--model-dir", str(folder), classes="new")
    assert (result["classes"], result["eval_only"], result["epochs"]) == ("new", True, 0)
    assert result["trained_on"] == training["trained_on"]
    assert result["per_class"][0]["name"] != training["per_class"][0]["name"]


def test_a_test_in_the_folder_of_its_training_keeps_the_trainings_result(root, trained):
    folder, training = trained
    result = run(root, folder, "--eval-only", "--model-dir", str(folder), classes="new")
    assert result == training
    assert json.loads((folder / "result_test.json").read_text())["classes"] == "new"


def test_the_predictions_of_all_tested_images_are_stored_with_a_result(trained):
    folder, result = trained
    rows = read_predictions(folder / "predictions.csv.gz")
    assert sha256_of_file(folder / "predictions.csv.gz") == result["predictions_sha256"]
    assert (len(rows), sum(row.label == row.predicted for row in rows)) == (
        result["total"],
        result["correct"],
    )
    assert all(row.classes[0] == row.predicted and len(row.scores) == 5 for row in rows)
    assert all(list(row.scores) == sorted(row.scores, reverse=True) for row in rows)
    assert not any(Path(row.image).is_absolute() for row in rows)  # another machine has the same names
    assert (result["oracle"], result["per_dataset"], result["selected_on"]) == ("", False, "")
    assert result["images_per_second"] > 0
    assert sealed(result) == result


def test_a_test_keeps_the_predictions_of_the_training_in_whose_folder_it_is(root, tmp_path):
    training = run(root, tmp_path)
    run(root, tmp_path, "--eval-only", "--model-dir", str(tmp_path), classes="new")
    assert sha256_of_file(tmp_path / "predictions.csv.gz") == training["predictions_sha256"]
    result = json.loads((tmp_path / "result_test.json").read_text())
    assert sha256_of_file(tmp_path / "predictions_test.csv.gz") == result["predictions_sha256"]


def test_what_a_test_is_told_and_whose_its_settings_are_is_recorded(root, tmp_path, monkeypatch):
    file = tmp_path / "trainers/MaPLe/per_dataset/shapes.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"_BASE_: {ROOT}/configs/trainers/MaPLe/shapes.yaml")
    monkeypatch.setattr("trainers.maple.MaPLe.oracle", classmethod(lambda cls, cfg: "which half is asked"))
    dataset = ["--dataset-config-file", f"{ROOT}/configs/datasets/shapes.yaml", "--config-file", str(file)]
    output = tmp_path / "out"
    words = ["--root", root, "--seed", "1", "--trainer", "MaPLe", "--output-dir", str(output), *dataset]
    assert command_line([*words, *SHORT, "TEST.FINAL_MODEL", "best_val"]) == 0
    result = json.loads((output / "result.json").read_text())
    assert (result["oracle"], result["config"]) == ("which half is asked", "per_dataset/shapes")
    assert (result["per_dataset"], result["selected_on"]) == (True, "val")
    result = run(root, tmp_path / "test", "--eval-only", "--model-dir", str(output), classes="all")
    assert (result["per_dataset"], result["selected_on"]) == (False, "val")


def test_zero_shot_was_trained_on_nothing(root, tmp_path):
    result = run(root, tmp_path, trainer="ZeroshotCLIP")
    assert (result["trained_on"], result["learned_parameters"], result["epochs"]) == (None, 0, 0)


def test_the_best_on_validation_images_is_recorded_by_its_test(root, tmp_path):
    words = ["--root", root, "--seed", "1", "--trainer", "MaPLe", "--output-dir", str(tmp_path)]
    assert command_line([*words, *SHORT, "TEST.FINAL_MODEL", "best_val"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["split"], result["total"]) == ("test", 144)


def test_an_interrupted_run_has_no_result(root, tmp_path, monkeypatch):
    def stop(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.maple.MaPLe.forward_backward", stop)
    words = ["--root", root, "--trainer", "MaPLe", "--output-dir", str(tmp_path)]
    assert command_line([*words, *SHORT]) == 130
    assert (tmp_path / "log.txt").is_file()
    assert not (tmp_path / "result.json").exists()


def test_changes_since_the_commit_are_recorded(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "code.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record._commit() == (head, True)
    (tmp_path / "code.py").write_text("2")
    assert record._commit() == (head, False)


def test_without_git_the_commit_is_empty(monkeypatch):
    monkeypatch.setattr(record, "ROOT", Path(os.sep))
    assert record._commit() == ("", None)


# --- the lock


def test_a_folder_in_use_is_refused_and_left_alone(root, tmp_path, capsys):
    (tmp_path / "log.txt").write_text("of the other run\n")
    words = ["--root", root, "--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path)]
    with FileLock(tmp_path / ".lock"):
        assert command_line(words) == IN_USE
        message = capsys.readouterr().err
        assert message.startswith(f"train.py: --output-dir {tmp_path} is in use: another run writes into it.")
        assert message.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "log.txt"]
    assert command_line(words) == 0


def test_a_run_waits_for_a_report_that_looks_at_its_folder(tmp_path, monkeypatch):
    """Whether a run goes on is found out by its lock."""
    monkeypatch.setattr(train, "LOOK", 300.0)
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.2, lock.release)
    timer.start()
    with locked(tmp_path, train.LOOK):
        assert not lock.is_locked
    timer.join()


def test_a_killed_run_frees_its_folder(tmp_path):
    lines = ("import os", "from pathlib import Path", "from experiments.run_folder import locked")
    within = f"with locked(Path({str(tmp_path)!r})):\n    os.kill(os.getpid(), 9)"
    program = "\n".join([*lines, within])
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    assert not is_in_use(tmp_path)
    with locked(tmp_path):
        assert is_in_use(tmp_path)


def test_looking_at_a_lock_does_not_take_it(tmp_path, monkeypatch):
    """Else a run that starts in that moment says that its folder is in use."""
    with locked(tmp_path):
        monkeypatch.setattr(run_folder, "FileLock", None)  # not even tried
        assert is_in_use(tmp_path)
    assert not is_in_use(tmp_path)


def test_a_number_that_another_process_has_now_is_no_run(tmp_path):
    with locked(tmp_path):
        holder = json.loads((tmp_path / ".lock.holder").read_text())
        (tmp_path / ".lock.holder").write_text(json.dumps([*holder[:2], "1"]))
        assert not is_in_use(tmp_path)
