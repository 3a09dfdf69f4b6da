"""Accuracy over what an ablation varies, such as prompt depth or length (MaPLe, figure 4, arXiv 2210.03117).

Three panels: base classes, new classes, and their harmonic mean; in each a curve per variant of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from experiments.methods import Method
from experiments.protocols import protocol_names, read_protocol
from experiments.results.accuracies import Accuracies, averaged, curves_of, datasets_of
from experiments.results.runs import Run
from experiments.results.statistics import Value

from .data import (
    base_new_harmonic,
    missing_footnote,
    missing_lines,
    nothing_to_draw,
    over_what,
    seeds_of,
    setting_of,
)
from .style import Look, NamedFigure, finish, look, panels, styled

MOST_TICKS = 12
PANELS = ("base classes", "new classes", "harmonic mean")


def label_of_curve(curve: str, method: Method, several: bool) -> str:
    """The curve's name; with its method, where there are several and the name does not say which."""
    if not curve:
        return method.label
    return f"{curve} ({method.label})" if several and curve != method.label else curve


@styled
def draw_curves(runs: Sequence[Run], protocol: str, suffix: str = "") -> NamedFigure:
    """Draws the runs of an ablation.

    Args:
        runs: of one protocol, with one number of shots.
        protocol: its name, and that of the file.
        suffix: of the file's name.

    Raises:
        ValueError: no point has results on all datasets.
    """
    curves, datasets = curves_of(runs), averaged(datasets_of(runs))
    accuracies, setting = Accuracies(runs), setting_of(runs)
    values = sorted({run.value for run in runs if run.value is not None})
    points = {
        (curve, method): {
            value: base_new_harmonic(accuracies, method, datasets, setting._replace(curve=curve, value=value))
            for value in values
        }
        for curve, method in curves
    }
    known = [value for each in points.values() for three in each.values() for value in three if value]
    if all(value.mean is None for value in known):
        raise nothing_to_draw(runs)
    figure, axes = panels(len(PANELS), sharex=True)
    several, handles = len({method for _, method in curves}) > 1, []
    for number, each in enumerate(points.values()):
        for column, axis in enumerate(axes[0]):
            handle = draw_series(axis, {value: three[column] for value, three in each.items()}, look(number))
        handles.append(handle)
    axis_label = read_protocol(protocol).axis if protocol in protocol_names() else ""
    for axis, title in zip(axes[0], PANELS, strict=True):
        axis.set_title(title)
        axis.set_xlabel(axis_label or "value")
        if len(values) <= MOST_TICKS:
            axis.set_xticks(values)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0][0].set_ylabel("accuracy (%)")
    caption = f"{over_what(runs)}, {seeds_of(runs)}."
    labels = [label_of_curve(curve, method, several) for curve, method in curves]
    finish(figure, [caption, missing_footnote(runs)], handles, labels)
    title = f"Accuracy over {read_protocol(protocol).title if axis_label else protocol}"
    return NamedFigure(f"{protocol}{suffix}", title, caption, figure, missing_lines(runs))


def draw_series(axis: Any, values: dict[float, Value | None], style: Look) -> Any:
    """A line with error bars; points that lack seeds are hollow. Returns what a legend shows."""
    there = {x: value for x, value in values.items() if value and value.mean is not None}
    axis.errorbar(
        list(there),
        [value.mean for value in there.values()],
        yerr=[value.std or 0.0 for value in there.values()],
        color=style.colour,
        linestyle=style.line,
        capsize=2,
        elinewidth=1,
    )
    for x, value in there.items():
        face = style.colour if value.is_complete else "white"
        axis.plot(x, value.mean, style.marker, color=style.colour, markerfacecolor=face, linestyle="none")
    (handle,) = axis.plot([], [], color=style.colour, marker=style.marker, linestyle=style.line)
    return handle
