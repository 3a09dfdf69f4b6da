"""Accuracy over the number of training images per class (CoOp, figure 3, arXiv 2109.01134)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.methods import Method
from experiments.report.layouts import zero_shot_beside
from experiments.results.accuracies import Accuracies, Setting, averaged, datasets_of, methods_of
from experiments.results.benchmarks import ELEVEN, label_of
from experiments.results.published import numbers_of, published
from experiments.results.runs import Run
from experiments.results.statistics import Value

from .curves import draw_series
from .data import missing_footnote, missing_lines, nothing_to_draw, seeds_of
from .style import ROW_WIDTH, NamedFigure, finish, look_of, panels, styled

AVERAGE = "average"  # the panel over all datasets
MOST_COLUMNS = 4
DASHES = (0, (4, 3))


@styled
def draw_few_shot(runs: Sequence[Run]) -> NamedFigure:
    """A panel per dataset, and one of their average; zero-shot methods are dashed lines.

    Where the runs are of the eleven datasets and the backbone of the papers, published averages stand beside
    the average, thin and dotted.

    Args:
        runs: of the protocols `few_shot` and, where there are some, `zeroshot`.

    Raises:
        ValueError: no trained run of `few_shot` has a result.
    """
    trained = [run for run in runs if run.protocol == "few_shot" and not run.method.is_zero_shot]
    if all(run.accuracy is None for run in trained):
        raise nothing_to_draw(trained or runs)
    datasets = datasets_of(trained)
    few_shot = [run for run in runs if run.protocol == "few_shot" and run.dataset in datasets]
    runs = [*few_shot, *zero_shot_beside(few_shot, runs)]
    members = averaged(datasets)
    shown = [AVERAGE, *datasets] if len(members) > 1 else datasets
    columns = min(len(shown), MOST_COLUMNS)
    rows = -(-len(shown) // columns)
    width = ROW_WIDTH if columns > 1 else ROW_WIDTH * 0.6
    figure, axes = panels(columns, rows, width, 3.2 if columns < 3 else 2.2, sharex=True)
    shots = sorted({run.shots for run in trained})
    handles: dict[str, Any] = {}
    accuracies = Accuracies(runs)
    for index, (axis, name) in enumerate(zip(axes.flat, shown, strict=False)):
        for method in methods_of(runs):
            handles |= _draw_method(axis, accuracies, method, shots, members if name == AVERAGE else [name])
        if name == AVERAGE and _is_as_published(trained):
            handles |= _draw_published(axis, methods_of(trained))
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, labels=[str(count) for count in shots])
        axis.minorticks_off()
        axis.set_title(f"average of {len(members)}" if name == AVERAGE else label_of(name))
        if index % columns == 0:
            axis.set_ylabel("accuracy (%)")
        if index + columns >= len(shown):
            axis.set_xlabel("images per class")
            axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    caption = f"Mean over {seeds_of(trained)}."
    names = ", ".join(map(label_of, datasets))
    title = f"Few-shot accuracy, {names if len(datasets) <= 3 else f'{len(datasets)} datasets'}"
    finish(figure, [caption, missing_footnote(runs)], list(handles.values()), list(handles))
    return NamedFigure(
        "few_shot",
        title,
        caption,
        figure,
        missing_lines(runs),
    )


def _draw_method(
    axis: Any, accuracies: Accuracies, method: Method, shots: Sequence[int], datasets: Sequence[str]
) -> dict[str, Any]:
    """A curve of what was trained, a line of what was not. Returns what a legend shows, by label."""

    def value(count: int) -> Value | None:
        if len(datasets) == 1:
            return accuracies.of(method, datasets[0], "all", Setting(count))
        return accuracies.average(method, datasets, "all", Setting(count))

    if not method.is_zero_shot:
        values: dict[float, Value | None] = {count: value(count) for count in shots}
        if not any(values.values()):
            return {}
        return {method.label: draw_series(axis, values, look_of(method))}
    found = value(0)
    if found is None or found.mean is None:
        return {}
    line = axis.axhline(found.mean, color=look_of(method).colour, linestyle=DASHES, linewidth=1.2)
    return {method.label: line}


def _is_as_published(runs: Sequence[Run]) -> bool:
    """Whether published averages are over these datasets, with this backbone."""
    backbones = {run.result.backbone for run in runs if run.result}
    return {run.dataset for run in runs} == set(ELEVEN) and backbones == {published()["backbone"]}


def _draw_published(axis: Any, methods: Sequence[Method]) -> dict[str, Any]:
    handles = {}
    for method in methods:
        if curve := numbers_of("few_shot", method):
            shots, values = [int(count) for count in curve], list(curve.values())
            colour = look_of(method).colour
            (line,) = axis.plot(shots, values, color=colour, linewidth=1, linestyle=":")
            handles[f"{method.label}, published"] = line
    return handles
