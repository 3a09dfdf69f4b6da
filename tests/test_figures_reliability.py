"""Reliability diagrams, of the results of runs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_runs import result, write
from figure_checks import assert_written, words_of

from experiments.figures.reliability import draw_reliability
from scripts import figures

BEFORE = [[0, None, None], [90, 60.0, 80.0], [10, 90.0, 85.0]]
AFTER = [[0, None, None], [1, 61.0, 0.0], [199, 90.0, 89.0]]


def heights(axis: Any) -> list[tuple[float, float]]:
    """Lower and upper end of each bar, and of each hatched gap."""
    return [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axis.patches]


def test_a_row_has_the_accuracies_before_and_at_the_temperature(tmp_path: Path) -> None:
    fitted = {"bins_after": AFTER, "ece_after": 1.3, "temperature": 0.75}
    write(tmp_path / "a", result(80.0, calibration={"ece": 18.5, "bins": BEFORE, **fitted}))
    write(tmp_path / "b", result(80.0, classes="all", calibration={"ece": 18.5, "bins": BEFORE}))
    figure = draw_reliability([tmp_path / "a", tmp_path / "b"]).figure
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [" ".join(axis.get_title().split()) for axis in shown] == [
        "MaPLe, OxfordPets, base classes ECE 18.5 %",
        "at temperature 0.75 ECE 1.3 %",
        "MaPLe, OxfordPets ECE 18.5 %",
    ]
    assert heights(shown[0]) == [(0, 80), (60, 80), (0, 85), (85, 90)]
    assert heights(shown[1]) == [(0, 0), (0, 61), (0, 89), (89, 90)]
    assert shown[0].patches[0].get_x() == pytest.approx(100 / 3)
    assert "Pale: fewer than 1 in 100" in words_of(figure)  # 1 of 200
    alone = draw_reliability([tmp_path / "b"]).figure
    assert len(alone.axes) == 1
    assert "Pale" not in words_of(alone)


def test_the_command_writes_it(tmp_path: Path) -> None:
    write(tmp_path, result(80.0, calibration={"ece": 18.5, "bins": BEFORE}))
    assert figures.main(["reliability", str(tmp_path)]) == 0
    assert_written(tmp_path / "figures", "reliability")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "does not say how sure the model was"),
        ({"ece": 1.0}, "does not say how sure the model was"),
        ({"bins": [[1, 50.0]]}, "no bins of count"),
        ({"bins": [[1, 50.0, 101.0]]}, "no bins of count"),
        ({"bins": [[0, None, None]]}, "no bins of count"),
        ({"bins": 7}, "no bins of count"),
    ],
)
def test_a_result_without_bins_is_one_line(tmp_path: Path, capsys, calibration: Any, message: str) -> None:
    write(tmp_path, result(80.0, calibration=calibration))
    assert figures.main(["reliability", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "figures").exists()
