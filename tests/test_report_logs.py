"""Runs that left only logs: the reference's, as recorded, and as its scripts lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import GOLDEN

from experiments.methods import read_methods
from experiments.results.reference_logs import read_logs, read_metric
from experiments.results.result_file import Training
from experiments.results.runs import gather
from scripts.report import main

LOGS = GOLDEN / "logs"
TRAINING = (LOGS / "train_base" / "seed1" / "log.txt").read_text()
TEST = (LOGS / "test_new" / "seed2" / "log.txt").read_text()


def log(folder: Path, text: str, name: str = "log.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def test_a_recorded_training() -> None:
    run = read_logs(LOGS / "train_base" / "seed1")
    assert (run.trainer, run.config, run.dataset) == ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx", "oxford_pets")
    assert (run.classes, run.shots, run.seed, run.backbone) == ("base", 4, 1, "ViT-B/16")
    assert (run.accuracy, run.macro_f1, run.total, run.source) == (25.0, 10.0, 24, "log")
    assert run.trained_on == Training("oxford_pets", "base", 4, 1)
    assert run.torch == "2.15.0+cu132"


def test_a_recorded_test_is_of_a_model_of_the_same_dataset() -> None:
    run = read_logs(LOGS / "test_new" / "seed2")
    assert (run.classes, run.accuracy, run.seed) == ("new", 33.3, 2)
    assert run.trained_on == Training("oxford_pets", "base", 4, 2)


def test_the_report_of_the_recorded_logs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(LOGS)]) == 0
    printed = capsys.readouterr()
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert "Base to novel, 4 shots" in lines
    # HM: 2·25·33.3/58.3; standard errors over seeds and over the 24 and 18 images.
    row = "OxfordPets MaPLe 25.00 ± 0.00 [0.00/8.84] 33.30 ± 0.00 [0.00/11.11] 28.56 ± 0.00 [0.00/7.07]"
    assert row in lines
    assert (
        "- Not compared with published numbers: MaPLe, trained with 4 shots and not 16 (OxfordPets)." in lines
    )
    assert printed.err == ""


def test_content_counts_and_not_the_folder(tmp_path: Path) -> None:
    run = read_logs(log(tmp_path / "train_base" / "dtd" / "shots_16" / "CoOp" / "x" / "seed7", TRAINING))
    assert (run.trainer, run.dataset, run.shots, run.seed) == ("MaPLe", "oxford_pets", 4, 1)


def test_the_folder_helps_where_an_old_log_does_not_say(tmp_path: Path) -> None:
    text = changed(
        TRAINING,
        ("config_file: configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml\n", ""),
        ("dataset_config_file: configs/datasets/oxford_pets.yaml\n", ""),
        ("SEED: 1", "SEED: -1"),
        ("seed: 1", "seed: -1"),
    )
    run = read_logs(log(tmp_path / "my_config" / "seed7", text))
    assert (run.config, run.dataset, run.seed) == ("my_config", "oxford_pets", 7)


def test_tests_on_other_datasets_say_their_training_by_model_dir(tmp_path: Path) -> None:
    """The reference's xd scripts give no shots for tests: they stand in the path of the model."""
    config = "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"
    model = f"output/imagenet/MaPLe/{config}_16shots/seed2"
    for stem, name in (("eurosat", "EuroSAT"), ("imagenet_a", "ImageNetA")):
        text = changed(
            TEST,
            ("/REF/out/e2e/train_base/seed2", model),
            ("vit_b16_c2_ep5_batch4_2ctx", config),
            (f"{config}_cross_datasets", config),
            ("oxford_pets", stem),
            ("OxfordPets", name),
            ("SUBSAMPLE_CLASSES: new", "SUBSAMPLE_CLASSES: all"),
            ("NUM_SHOTS: 4", "NUM_SHOTS: -1"),
        )
        log(tmp_path / "evaluation" / stem / "seed2", text)
    runs = gather([tmp_path], read_methods(), seeds=[2]).runs
    found = {
        (run.protocol, run.dataset, run.role, run.source, run.shots, run.seed, run.method.key) for run in runs
    }
    assert found == {
        ("cross_dataset", "eurosat", "target", "imagenet", 16, 2, "MaPLe"),
        ("domain_generalisation", "imagenet_a", "target", "imagenet", 16, 2, "MaPLe"),
    }


def test_zero_shot_logs_have_no_training(tmp_path: Path) -> None:
    text = changed(
        TEST, ("trainer: MaPLe", "trainer: ZeroshotCLIP"), ("  NAME: MaPLe", "  NAME: ZeroshotCLIP")
    )
    run = read_logs(log(tmp_path, text))
    assert run.trained_on is None


def test_the_newest_log_with_a_result_counts(tmp_path: Path) -> None:
    log(tmp_path, TRAINING)
    log(tmp_path, TRAINING.replace("accuracy: 25.0%", "accuracy: 50.0%"), "log.txt-2026-11-28-00-00-00")
    log(tmp_path, TRAINING.partition("Finish training")[0], "log.txt-2026-11-28-01-00-00")
    run = read_logs(tmp_path)
    assert run.accuracy == 50.0


def test_a_training_that_stopped_is_interrupted_or_failed(tmp_path: Path) -> None:
    stopped = TRAINING.partition("Finish training")[0]
    log(tmp_path / "a", stopped)
    log(tmp_path / "b", stopped.replace("SEED: 1", "SEED: 2"))
    (tmp_path / "b" / "error.txt").write_text("RuntimeError: out of memory\n")
    runs = gather([tmp_path], read_methods(), seeds=[1, 2]).runs
    states = {(run.role, run.seed): run.state for run in runs}
    assert states == {
        ("base", 1): "interrupted",
        ("base", 2): "failed",
    }


def test_own_logs_say_more(tmp_path: Path) -> None:
    sample = f"Sample of all classes: 592 images to train on, 148 to validate; sha256 {'ab' * 32}"
    text = changed(
        TRAINING, ("Loading evaluator", f"Learned parameters: 3,555,072\n{sample}\nLoading evaluator")
    )
    run = read_logs(log(tmp_path, text))
    assert run.learned_parameters == 3555072
    assert run.sample_sha256 == "ab" * 32


def test_texts_that_look_like_yaml_do_no_harm(tmp_path: Path) -> None:
    text = changed(TRAINING, ("CTX_INIT: a photo of a", "CTX_INIT: a: {photo, [of a # b"))
    run = read_logs(log(tmp_path, text))
    assert run.shots == 4


@pytest.mark.parametrize("text", ["", "hello\n", "** Config **\nDATASET:\n  NAME: \nTRAINER:\n  NAME: \n"])
def test_logs_of_other_programs(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="holds no configuration"):
        read_logs(log(tmp_path, text))


def test_a_percentage_of_many_digits_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(f"Finish training\n=> result\n* accuracy: 81.5%\n* accuracy: 1{'0' * 400}%\n")
    assert read_metric(str(path)) == 81.5
