"""Accuracy over prompt depth and over prompt length (MaPLe, figure 4, arXiv 2210.03117).

Three panels: base classes, new classes, and their harmonic mean; in each a curve a variant of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from .data import Run, shown_name
from .means import Mean, harmonic, mean_over_datasets, missing_footnote, missing_lines
from .style import Drawn, finish, look, panels, styled

PANELS = ("base classes", "new classes", "harmonic mean")
AXES = {
    "depth": "prompt depth J (blocks)",
    "length": "prompt length b (tokens)",
}


def series_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Method and curve of each series, in the order of the plan."""
    return list(dict.fromkeys((run.method, run.curve) for run in runs))


def points(runs: Sequence[Run]) -> dict[float, tuple[Mean, Mean, Mean]]:
    """Base, new and harmonic mean at each value on the x axis; of the runs of one series."""
    found = {}
    for value in sorted({run.value for run in runs if run.value is not None}):
        here = [run for run in runs if run.value == value]
        base, new = (
            mean_over_datasets([run for run in here if run.role == role]) for role in ("base", "new")
        )
        found[value] = (base, new, harmonic(base, new))
    return found


@styled
def draw_curves(runs: Sequence[Run], protocol: str) -> Drawn:
    """Draws the runs of the protocol `depth` or `length`.

    Raises:
        ValueError: none of them has a result.
    """
    if all(run.result is None for run in runs):
        raise ValueError(f"None of the {len(runs)} planned runs of {protocol} has a result yet.")
    series = series_of(runs)
    methods = {method for method, _ in series}
    figure, axes = panels(len(PANELS), sharex=True)
    handles, labels = [], []
    for number, (method, curve) in enumerate(series):
        label = " ".join(part for part in (method if len(methods) > 1 else "", curve) if part) or method
        found = points([run for run in runs if (run.method, run.curve) == (method, curve)])
        for column, axis in enumerate(axes[0]):
            handle = draw_series(axis, {x: three[column] for x, three in found.items()}, number, label)
        handles.append(handle)
        labels.append(label)
    for axis, title in zip(axes[0], PANELS, strict=True):
        axis.set_title(title)
        axis.set_xlabel(AXES[protocol])
        values = sorted({run.value for run in runs if run.value is not None})
        axis.set_xticks(values) if len(values) <= 12 else axis.xaxis.set_major_locator(
            MaxNLocator(integer=True)
        )
    axes[0][0].set_ylabel("accuracy (%)")
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    names = [shown_name(runs, name) for name in datasets]
    over = names[0] if len(names) == 1 else f"Mean over {len(names)} datasets"
    caption = f"{over}, {_seeds(runs)}; bars are the standard deviation over the seeds."
    finish(figure, [caption, missing_footnote(runs)], handles, labels)
    title = f"Accuracy over prompt {protocol}"
    return Drawn(protocol, title, caption, figure, missing_lines(runs))


def draw_series(axis: Any, means: dict[float, Mean], number: int, label: str) -> Any:
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
    (handle,) = axis.plot([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=label)
    return handle


def _seeds(runs: Sequence[Run]) -> str:
    count = len({run.seed for run in runs})
    return f"{count} seed{'s' if count > 1 else ''}"
