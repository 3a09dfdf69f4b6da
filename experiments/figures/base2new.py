"""Base-to-novel accuracy of several methods: seeds as strokes, means as circles (MaPLe, table 3)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from experiments.methods import Method
from experiments.report.layouts import measured
from experiments.results.accuracies import Accuracies, averaged, datasets_of, methods_of
from experiments.results.runs import Run
from experiments.results.statistics import Value

from .data import (
    missing_footnote,
    missing_lines,
    nothing_to_draw,
    over_what,
    setting_of,
)
from .style import GREY, LIGHT_GREY, NamedFigure, finish, look_of, panels, styled

PANELS = {"base": "base classes", "new": "new classes", "HM": "harmonic mean"}
MEASURES = tuple(PANELS)


@styled
def draw_methods(runs: Sequence[Run], suffix: str = "") -> NamedFigure:
    """Three panels on one scale, a row per method: its mean, and each seed as a stroke.

    Args:
        runs: of the protocol `base2new`, with one number of shots.
        suffix: of the file's name.

    Raises:
        ValueError: none of them has a result.
    """
    means: dict[Method, list[Value | None]] = {}
    accuracies, datasets, notes = Accuracies(runs), averaged(datasets_of(runs)), missing_lines(runs)
    for method in methods_of(runs):
        three = measured(accuracies, method, datasets, setting_of(runs), MEASURES)
        if any(value and value.mean is not None for value in three):
            means[method] = three
        else:
            notes.append(f"{method.label} is left out: it lacks runs that others have.")
    if not means:
        raise nothing_to_draw(runs)
    figure, axes = panels(len(PANELS), height=1.0 + 0.3 * len(means), sharex=True, sharey=True)
    for row, (method, three) in enumerate(means.items()):
        colour = look_of(method).colour
        for axis, value in zip(axes[0], three, strict=True):
            if value is None or value.mean is None:
                continue
            seeds = list(value.by_seed.values())
            axis.plot(seeds, [row] * len(seeds), "|", color=GREY, markersize=12, markeredgewidth=1.2)
            face = colour if value.is_complete else "white"
            axis.plot(value.mean, row, "o", color=colour, markerfacecolor=face, markersize=6)
            place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 9}
            axis.annotate(f"{value.mean:.1f}", (value.mean, row), **place)
    for axis, title in zip(axes[0], PANELS.values(), strict=True):
        axis.set_title(title)
        axis.set_xlabel("accuracy (%)")
        axis.grid(axis="y", color=LIGHT_GREY)
    axes[0][0].margins(x=0.15)
    axes[0][0].xaxis.set_major_locator(MaxNLocator(4))
    axes[0][0].set_yticks(range(len(means)), labels=[method.label for method in means])
    axes[0][0].set_ylim(len(means) - 0.4, -0.7)
    caption = f"{over_what(runs)}: circles are means over the seeds, strokes the seeds."
    finish(figure, [caption, missing_footnote(runs)])
    shots = f", {setting_of(runs).shots} shots" if suffix else ""
    what = over_what(runs)
    title = f"Base to novel, {what[0].lower() + what[1:] if len(datasets) > 1 else what}{shots}"
    return NamedFigure(f"base2new{suffix}", title, caption, figure, notes)
