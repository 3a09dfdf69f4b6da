"""Results of several seeds from their logs: recorded ones, and logs as they are found in practice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.results.reference_logs import read_metric
from parse_test_res import main, parse_directory

GOLDEN = Path(__file__).parent / "golden" / "logs"
EPOCH = "epoch [1/5] batch [1/4] time 0.202 (0.202) data 0.008 (0.008) loss 1.4142 (1.4142) lr 1.0000e-05"


def result(accuracy: str) -> list[str]:
    return [
        "=> result",
        "* total: 24",
        "* correct: 6",
        f"* accuracy: {accuracy}%",
        "* error: 75.0%",
        "* macro_f1: 10.0%",
    ]


def write_log(folder: Path, *lines: str, name: str = "log.txt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("flags", [[], ["--test-log"]])
@pytest.mark.parametrize(
    ("folder", "accuracy", "macro_f1"), [("train_base", 25.0, 10.0), ("test_new", 33.3, 16.7)]
)
def test_recorded_logs(
    folder: str, accuracy: float, macro_f1: float, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(GOLDEN / folder)
    for keyword, value in (("accuracy", accuracy), ("macro_f1", macro_f1)):
        assert main([directory, "--keyword", keyword, *flags]) == 0
        printed = capsys.readouterr().out
        for seed in (1, 2):
            assert f"file: {directory}/seed{seed}/log.txt. {keyword}: {value:.2f}%. \n" in printed
        assert f"\n===\nSummary of directory: {directory}\n* {keyword}: {value:.2f}% +- 0.00%\n" in printed
        assert "Missing: seed3 (no folder)\n" in printed


def test_mean_and_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [71.25, 73.5, 70.0]
    for seed, value in enumerate(values, 1):
        write_log(tmp_path / f"seed{seed}", *result(str(value)))
    summary = parse_directory(str(tmp_path))
    assert summary.values == {"seed1": 71.25, "seed2": 73.5, "seed3": 70.0}
    assert summary.missing == []
    assert summary.mean() == pytest.approx(np.mean(values))
    assert main([str(tmp_path)]) == 0
    assert f"* accuracy: {np.mean(values):.2f}% +- {np.std(values):.2f}%\n===" in capsys.readouterr().out
    assert main([str(tmp_path), "--ci95"]) == 0
    assert f"+- {1.96 * np.std(values) / 3**0.5:.2f}%" in capsys.readouterr().out


def test_a_training_counts_from_its_end_on(tmp_path: Path) -> None:
    validation = [EPOCH, *result("90.0")]
    log = tmp_path / "log.txt"
    write_log(tmp_path, *validation)
    assert read_metric(str(log)) is None
    assert read_metric(str(log), test_log=True) == 90.0
    write_log(tmp_path, *validation, "Finish training")
    assert read_metric(str(log)) is None
    for end in ("Finish training", "Finished training"):
        write_log(tmp_path, *validation, end, "Deploy the last-epoch model", *result("41.09"))
        assert read_metric(str(log)) == 41.09
        assert read_metric(str(log), "macro_f1") == 10.0
    for lines in ([], [*validation, "Finish training"]):
        write_log(tmp_path, *lines, "* accuracy: 5.0%")  # not below a result
        assert read_metric(str(log)) is None


def test_the_newest_log_with_a_result_counts(tmp_path: Path) -> None:
    seed = tmp_path / "seed1"
    write_log(seed, EPOCH)
    write_log(seed, EPOCH, "Finish training", *result("50.0"), name="log.txt-2024-01-02-03-04-05")
    write_log(seed, EPOCH, "Finish training", *result("60.0"), name="log.txt-2024-02-02-03-04-05")
    write_log(seed, EPOCH, name="log.txt-2024-03-02-03-04-05")
    write_log(seed, *result("99.0"), name="log.txt.bak")
    assert parse_directory(str(tmp_path)).values == {"seed1": 60.0}


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "seed10", *result("10.0"))
    write_log(tmp_path / "seed2", *result("20.0"))
    write_log(tmp_path / "seed3", EPOCH)
    (tmp_path / "seed4").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").touch()
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    absent = ", ".join(f"seed{seed} (no folder)" for seed in (1, 5, 6, 7, 8, 9))
    assert f"Missing: seed3 (no accuracy in its log), seed4 (no log.txt), {absent}\n" in printed
    assert printed.index("seed2/log.txt") < printed.index("seed10/log.txt")
    assert "* accuracy: 15.00% +- 5.00%" in printed


def test_several_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN / "train_base", tmp_path / "dtd")
    shutil.copytree(GOLDEN / "test_new", tmp_path / "eurosat")
    write_log(tmp_path / "pets" / "seed1", EPOCH)
    assert main([str(tmp_path), "--multi-exp"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(
        "Average performance\n* accuracy: 29.15%\nMissing: pets (no result, not in the average)\n"
    )
    assert f"Missing: no accuracy found in {tmp_path}/pets\n" in printed


@pytest.mark.parametrize("flags", [[], ["--multi-exp"]])
def test_errors_are_one_line(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for directory in (tmp_path / "nowhere", tmp_path):
        assert main([str(directory), *flags]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("parse_test_res.py: ")
        assert str(directory) in captured.err
        assert captured.err.count("\n") == 1
    write_log(tmp_path, *result("1.0"))
    assert main([str(tmp_path)]) == 2
    assert "folder of one seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", [["seed20240601"], ["seed1", "seed999999999999999999"], ["seed101", "seed2"]]
)
def test_a_seed_may_be_any_number(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_log(tmp_path / name, *result("50.0"))
    summary = parse_directory(str(tmp_path))
    assert set(summary.values) == set(names)
    assert len(summary.missing) <= 3


def test_a_named_pipe_is_no_log(tmp_path: Path) -> None:
    write_log(tmp_path / "seed1", *result("50.0"))
    (tmp_path / "seed2").mkdir()
    for place in ("seed1/log.txt-2020", "seed2/log.txt"):
        os.mkfifo(tmp_path / place)
    summary = parse_directory(str(tmp_path))
    assert summary.values == {"seed1": 50.0}
    assert summary.missing == ["seed2 (no log.txt)", "seed3 (no folder)"]
