"""Accuracy over what an ablation varies, such as prompt depth or length (MaPLe, figure 4, arXiv 2210.03117).

A panel per measure: base classes, new classes, and their harmonic mean; in each a curve per variant of the
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from experiments.methods import Method
from experiments.protocols import protocol_names, read_protocol
from experiments.report.layouts import measured, measures_of
from experiments.results.accuracies import Accuracies, averaged, curves_of, datasets_of
from experiments.results.runs import Run
from experiments.results.statistics import Value

from .base2new import PANELS
from .data import (
    missing_footnote,
    missing_lines,
    nothing_to_draw,
    over_what,
    seeds_of,
    setting_of,
)
from .style import ROW_WIDTH, Look, NamedFigure, finish, look, look_of, panels, styled

MOST_TICKS = 12


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
    curves, datasets, measures = curves_of(runs), averaged(datasets_of(runs)), measures_of(runs)
    accuracies, setting = Accuracies(runs), setting_of(runs)
    values = sorted({run.value for run in runs if run.value is not None})
    points = {
        (curve, method): {
            value: measured(
                accuracies, method, datasets, setting._replace(curve=curve, value=value), measures
            )
            for value in values
        }
        for curve, method in curves
    }
    known = [value for each in points.values() for found in each.values() for value in found if value]
    if all(value.mean is None for value in known):
        raise nothing_to_draw(runs)
    figure, axes = panels(
        len(measures), width=ROW_WIDTH if len(measures) > 1 else ROW_WIDTH / 2, sharex=True, sharey=True
    )
    methods, handles = [method for _, method in curves], []
    several, is_of_methods = len(set(methods)) > 1, len(set(methods)) == len(methods) > 1
    for number, ((_, method), each) in enumerate(points.items()):
        style = look_of(method) if is_of_methods else look(number)
        for column, axis in enumerate(axes[0]):
            handle = draw_series(axis, {value: found[column] for value, found in each.items()}, style)
        handles.append(handle)
    axis_label = read_protocol(protocol).axis if protocol in protocol_names() else ""
    for axis, measure in zip(axes[0], measures, strict=True):
        axis.set_title(PANELS.get(measure, f"{measure} classes"))
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
    what = over_what(runs)
    title += f", {what[0].lower() + what[1:] if len(datasets) > 1 else what}"
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
    for is_complete, face in ((True, style.colour), (False, "white")):
        points = {x: value.mean for x, value in there.items() if value.is_complete == is_complete}
        if points:
            axis.plot(
                *zip(*points.items(), strict=True), style.marker, color=style.colour, markerfacecolor=face
            )
    (handle,) = axis.plot([], [], color=style.colour, marker=style.marker, linestyle=style.line)
    return handle
