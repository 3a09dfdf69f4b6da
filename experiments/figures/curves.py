"""Accuracy over prompt depth and over prompt length (MaPLe, figure 4, arXiv 2210.03117).

Three panels: base classes, new classes, and their harmonic mean; in each a curve a variant of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from experiments.protocols import read_protocol
from experiments.results.runs import Run

from .data import datasets_of, methods_of, over_what, seeds_of
from .means import Mean, base_new_harmonic, missing_footnote, missing_lines, nothing_to_draw
from .style import Drawn, finish, look, panels, styled

MOST_TICKS = 12
PANELS = ("base classes", "new classes", "harmonic mean")


def series_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Key of the method, and curve, of each series, in the order of the protocol."""
    order = list(read_protocol(runs[0].protocol).curves)
    series = dict.fromkeys((run.method.key, run.curve) for run in runs)
    return sorted(series, key=lambda each: order.index(each[1]) if each[1] in order else len(order))


def label_of_series(series: tuple[str, str], runs: Sequence[Run]) -> str:
    """The curve's name; with its method, where there are several and the name does not say which."""
    key, curve = series
    labels = {method.key: method.label for method in methods_of(runs)}
    if not curve:
        return labels[key]
    return curve if len(labels) == 1 or curve == labels[key] else f"{curve} ({labels[key]})"


def points(series: tuple[str, str], runs: Sequence[Run]) -> dict[float, tuple[Mean, Mean, Mean]]:
    """Base, new and harmonic mean of a series at each value on the x axis."""
    own = [run for run in runs if (run.method.key, run.curve) == series]
    return {
        value: base_new_harmonic([run for run in own if run.value == value], datasets_of(runs))
        for value in sorted({run.value for run in own if run.value is not None})
    }


@styled
def draw_curves(runs: Sequence[Run], protocol: str) -> Drawn:
    """Draws the runs of the protocol `depth` or `length`.

    Raises:
        ValueError: no point has results on all datasets.
    """
    series = series_of(runs)
    found = {each: points(each, runs) for each in series}
    if all(mean.value is None for each in found.values() for three in each.values() for mean in three):
        raise nothing_to_draw(runs)
    figure, axes = panels(len(PANELS), sharex=True)
    labels, handles = [label_of_series(each, runs) for each in series], []
    for number, each in enumerate(series):
        for column, axis in enumerate(axes[0]):
            means = {value: three[column] for value, three in found[each].items()}
            handle = draw_series(axis, means, number)
        handles.append(handle)
    for axis, title in zip(axes[0], PANELS, strict=True):
        axis.set_title(title)
        axis.set_xlabel(read_protocol(protocol).axis)
        values = sorted({run.value for run in runs if run.value is not None})
        if len(values) <= MOST_TICKS:
            axis.set_xticks(values)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0][0].set_ylabel("accuracy (%)")
    caption = f"{over_what(runs)}, {seeds_of(runs)}."
    finish(figure, [caption, missing_footnote(runs)], handles, labels)
    title = f"Accuracy over prompt {protocol}"
    return Drawn(protocol, title, caption, figure, missing_lines(runs))


def draw_series(axis: Any, means: dict[float, Mean], number: int) -> Any:
    """A line with error bars; points that lack runs are hollow. Returns what a legend shows."""
    style = look(number)
    there = {x: mean for x, mean in means.items() if mean.value is not None}
    x, y = list(there), [mean.value for mean in there.values()]
    axis.errorbar(
        x,
        y,
        yerr=[mean.spread for mean in there.values()],
        color=style.colour,
        linestyle=style.line,
        capsize=2,
        elinewidth=1,
    )
    for position, mean in there.items():
        axis.plot(
            position,
            mean.value,
            marker=style.marker,
            color=style.colour,
            markerfacecolor="white" if mean.missing else style.colour,
            linestyle="none",
        )
    (handle,) = axis.plot([], [], color=style.colour, marker=style.marker, linestyle=style.line)
    return handle
