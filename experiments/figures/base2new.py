"""Base-to-novel accuracy of several methods: seeds as points, means as bars (MaPLe, table 3)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from experiments.results.runs import Run

from .data import datasets_of, methods_of, over_what
from .means import base_new_harmonic, missing_footnote, missing_lines, nothing_to_draw
from .style import COLOURS, LIGHT_GREY, Drawn, finish, panels, styled

PANELS = ("base classes", "new classes", "harmonic mean")


@styled
def draw_methods(runs: Sequence[Run]) -> Drawn:
    """Three panels, a row a method: its mean, and each seed as a point.

    Args:
        runs: of the protocol `base2new`.

    Raises:
        ValueError: none of them has a result.
    """
    means, notes = {}, missing_lines(runs)
    for method in methods_of(runs):
        own = [run for run in runs if run.method.key == method.key]
        three = base_new_harmonic(own, datasets_of(runs))
        if any(mean.value is not None for mean in three):
            means[method.label] = three
        else:
            notes.append(f"{method.label} is left out: it lacks a dataset that others have.")
    if not means:
        raise nothing_to_draw(runs)
    figure, axes = panels(len(PANELS), height=1.0 + 0.3 * len(means), sharey=True)
    for row, three in enumerate(means.values()):
        for axis, mean in zip(axes[0], three, strict=True):
            if mean.value is not None:
                face = "white" if mean.missing else COLOURS[0]
                seeds = list(mean.by_seed.values())
                axis.plot(
                    seeds, [row] * len(seeds), "|", color=COLOURS[1], markersize=12, markeredgewidth=1.5
                )
                axis.plot(mean.value, row, "o", color=COLOURS[0], markerfacecolor=face, markersize=6)
                place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 9}
                axis.annotate(f"{mean.value:.1f}", (mean.value, row), **place)
    for axis, title in zip(axes[0], PANELS, strict=True):
        axis.set_title(title)
        axis.set_xlabel("accuracy (%)")
        axis.margins(x=0.15)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="y", color=LIGHT_GREY)
    axes[0][0].set_yticks(range(len(means)), labels=list(means))
    axes[0][0].set_ylim(len(means) - 0.4, -0.7)
    caption = f"{over_what(runs)}: circles are means over the seeds, strokes the seeds."
    finish(figure, [caption, missing_footnote(runs)])
    return Drawn("base2new", "Base to novel", caption, figure, notes)
