"""Base-to-novel accuracy of several methods: seeds as points, means as bars (MaPLe, table 3)."""

from __future__ import annotations

from collections.abc import Sequence

from .data import Run, shown_name
from .means import harmonic, mean_over_datasets, missing_footnote, missing_lines
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
    if all(run.result is None for run in runs):
        raise ValueError(f"None of the {len(runs)} planned runs of base2new has a result yet.")
    methods = list(dict.fromkeys(run.method for run in runs))
    figure, axes = panels(len(PANELS), height=1.0 + 0.3 * len(methods), sharey=True)
    for row, method in enumerate(methods):
        own = [run for run in runs if run.method == method]
        base, new = (mean_over_datasets([run for run in own if run.role == role]) for role in ("base", "new"))
        for axis, mean in zip(axes[0], (base, new, harmonic(base, new)), strict=True):
            if mean.value is None:
                continue
            face = "white" if mean.missing else COLOURS[0]
            seeds = list(mean.by_seed.values())
            axis.plot(seeds, [row] * len(seeds), "|", color=COLOURS[1], markersize=9, markeredgewidth=1.5)
            axis.plot(mean.value, row, "o", color=COLOURS[0], markerfacecolor=face, markersize=6)
            axis.annotate(
                f"{mean.value:.1f}",
                (mean.value, row),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    for axis, title in zip(axes[0], PANELS, strict=True):
        axis.set_title(title)
        axis.set_xlabel("accuracy (%)")
        axis.margins(x=0.15)
        axis.grid(axis="y", color=LIGHT_GREY)
    axes[0][0].set_yticks(range(len(methods)), labels=methods)
    axes[0][0].set_ylim(len(methods) - 0.4, -0.7)
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    over = shown_name(runs, datasets[0]) if len(datasets) == 1 else f"Mean over {len(datasets)} datasets"
    caption = f"{over}: circles are means over the seeds, strokes the seeds."
    finish(figure, [caption, missing_footnote(runs)])
    return Drawn("base2new", "Base to novel", caption, figure, missing_lines(runs))
