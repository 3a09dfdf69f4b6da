"""Reliability diagrams: accuracy over confidence (Guo et al., figure 1, https://arxiv.org/abs/1706.04599)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.methods import Method, method_of, read_methods
from experiments.results.benchmarks import label_of
from experiments.results.result_file import content_of, read_result_file
from prompted_clip.calibration import Bin, checked_bins, expected_calibration_error
from prompted_clip.errors import UserError

from .style import GREY, LIGHT_GREY, ROW_WIDTH, NamedFigure, finish, look_of, panels, styled, wrapped

FEW = 0.01  # of the images: a bin with less is pale
WIDTH = ROW_WIDTH * 0.8  # so that letters can be read where the figure is as wide as a phone


class Panel(NamedTuple):
    title: str
    method: Method
    bins: list[Bin]


@styled
def draw_reliability(folders: Sequence[Path]) -> NamedFigure:
    """A row per run: accuracy in each bin of confidence as it was tested, and at its temperature.

    Raises:
        FileNotFoundError: a folder holds no result.
        ValueError: a result does not say how sure the model was.
    """
    rows = [_panels(folder) for folder in folders]
    columns = max(map(len, rows))
    width = WIDTH if columns > 1 else WIDTH * 0.6
    figure, axes = panels(columns, len(rows), width, 2.7, sharex=True, sharey=True)
    for line, row in zip(axes, rows, strict=True):
        for axis, panel in zip(line, row, strict=False):
            _draw(axis, panel, figure.get_figwidth() / columns - 0.5)
        for axis in line[len(row) :]:
            axis.set_visible(False)
        line[0].set_ylabel("accuracy (%)")
    for column in axes.T:
        [axis for axis in column if axis.get_visible()][-1].set_xlabel("confidence (%)")
    caption = (
        "Accuracy of the test images by the probability of the predicted class, in "
        f"{len(rows[0][0].bins)} bins. On the diagonal the model is right as often as it says; the hatched "
        "part is the gap to it."
    )
    pale = any(0 < each.images < FEW * _total(panel) for row in rows for panel in row for each in panel.bins)
    finish(figure, [caption, "Pale: fewer than 1 in 100 images." if pale else ""])
    return NamedFigure("reliability", "Accuracy over confidence", caption, figure)


def _panels(folder: Path) -> list[Panel]:
    """Of a run as it was tested and, where a temperature was fitted, at that temperature."""
    content = content_of(folder)
    where = f"{folder}: the calibration of its result"
    found: Any = content.get("calibration")
    if not isinstance(found, Mapping) or "bins" not in found:
        raise UserError(
            f"{folder}: its result does not say how sure the model was; it is of an earlier version, or of a "
            "trainer that gives no logits. Run its test again."
        )
    path = next(folder / name for name in ("result.json", "result_test.json") if (folder / name).is_file())
    result = read_result_file(path)
    method = method_of(read_methods(), result.trainer, result.config)
    classes = {"all": ""}.get(result.classes, f", {result.classes} classes")
    name = f"{method.label}, {label_of(result.dataset)}{classes}"
    before = checked_bins(found["bins"], where)
    panels_ = [Panel(name, method, before)]
    if "bins_after" in found:
        after = checked_bins(found["bins_after"], where)
        panels_.append(Panel(f"at temperature {result.temperature or 1:.2f}", method, after))
    return panels_


def _total(panel: Panel) -> int:
    return sum(each.images for each in panel.bins)


def _draw(axis: Any, panel: Panel, inches: float) -> None:
    width, colour, total = 100 / len(panel.bins), look_of(panel.method).colour, _total(panel)
    for place, each in enumerate(panel.bins):
        if each.accuracy is None or each.confidence is None:
            continue
        left = place * width
        shown = {"align": "edge", "width": width, "alpha": 1.0 if each.images >= FEW * total else 0.3}
        axis.bar(left, each.accuracy, color=colour, edgecolor="white", linewidth=0.6, **shown)
        low, high = sorted((each.accuracy, each.confidence))
        gap = {"facecolor": "none", "edgecolor": GREY, "hatch": "////", "linewidth": 0.6}
        axis.bar(left, high - low, bottom=low, **shown, **gap)
    axis.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--")
    axis.grid(axis="y", color=LIGHT_GREY)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 100)
    axis.set_xticks([20, 40, 60, 80, 100])
    axis.tick_params(labelbottom=True)
    axis.set_title(f"{wrapped(panel.title, inches)}\nECE {expected_calibration_error(panel.bins):.1f} %")
