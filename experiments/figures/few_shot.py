"""Accuracy over the number of training images a class (CoOp, figure 3, arXiv 2109.01134)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .curves import draw_series
from .data import Run, shown_name
from .means import Mean, mean_over_datasets, missing_footnote, missing_lines
from .style import ROW_WIDTH, Drawn, finish, look, panels, styled

PUBLISHED = Path(__file__).resolve().parent.parent / "published.json"
AVERAGE = "average"  # the panel over all datasets
PUBLISHED_DATASETS = 11  # that published averages are over
MOST_COLUMNS = 4


@styled
def draw_few_shot(runs: Sequence[Run], published: Mapping[str, Mapping[int, float]] | None = None) -> Drawn:
    """A panel a dataset, and one of their average; zero-shot methods are dashed lines.

    Args:
        runs: of the protocols `few_shot` and, where there are some, `zeroshot`.
        published: average accuracy over 11 datasets by shots, for each method; drawn where these runs are
            of as many.

    Raises:
        ValueError: no run of `few_shot` has a result.
    """
    trained = [run for run in runs if run.protocol == "few_shot"]
    if all(run.result is None for run in trained):
        raise ValueError(f"None of the {len(trained)} planned runs of few_shot has a result yet.")
    datasets = list(dict.fromkeys(run.dataset for run in trained))
    runs = [run for run in runs if run.dataset in datasets]
    methods = list(dict.fromkeys(run.method for run in trained))
    zero_shot = list(dict.fromkeys(run.method for run in runs if run.protocol == "zeroshot"))
    shown = [AVERAGE, *datasets] if len(datasets) > 1 else datasets
    columns = min(len(shown), MOST_COLUMNS)
    rows = math.ceil(len(shown) / columns)
    width = ROW_WIDTH if columns > 1 else ROW_WIDTH * 0.6
    figure, axes = panels(columns, rows, width, 3.2 if columns < 3 else 2.2, sharex=True)
    handles = {}
    for axis, name in zip(axes.flat, shown, strict=False):
        here = [run for run in runs if name in (AVERAGE, run.dataset)]
        shots = sorted({run.shots for run in trained})
        for number, method in enumerate(methods):
            handles[method] = draw_series(axis, _by_shots(here, method), number, method)
        for number, method in enumerate(zero_shot, start=len(methods)):
            mean = mean_over_datasets(
                [run for run in here if (run.method, run.protocol) == (method, "zeroshot")]
            )
            if mean.value is not None:
                line = axis.axhline(
                    mean.value, color=look(number).colour, linestyle=(0, (4, 3)), linewidth=1.2
                )
                handles[method] = line
        if name == AVERAGE and published and len(datasets) == PUBLISHED_DATASETS:
            for number, method in enumerate(methods):
                if curve := published.get(method):
                    (line,) = axis.plot(
                        *zip(*curve.items(), strict=True), color=look(number).colour, lw=0.8, ls=":"
                    )
                    handles[f"{method}, published"] = line
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, labels=[str(count) for count in shots])
        axis.minorticks_off()
        title = f"average of {len(datasets)}" if name == AVERAGE else shown_name(runs, name)
        axis.set_title(title, fontweight="bold" if name == AVERAGE else "normal")
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for index, axis in enumerate(axes.flat[: len(shown)]):
        if index % columns == 0:
            axis.set_ylabel("accuracy (%)")
        if index + columns >= len(shown):
            axis.set_xlabel("images a class")
            axis.tick_params(labelbottom=True)
    seeds = len({run.seed for run in trained})
    caption = (
        f"Mean over {seeds} seed{'s' if seeds > 1 else ''}; bars are the standard deviation over the seeds."
    )
    finish(figure, [caption, missing_footnote(runs)], list(handles.values()), list(handles))
    return Drawn("few_shot", "Few-shot accuracy", caption, figure, missing_lines(runs))


def _by_shots(runs: Sequence[Run], method: str) -> dict[float, Mean]:
    """The mean of a method at each number of shots."""
    own = [run for run in runs if (run.method, run.protocol) == (method, "few_shot")]
    return {
        shots: mean_over_datasets([run for run in own if run.shots == shots])
        for shots in sorted({run.shots for run in own})
    }


def published_averages() -> dict[str, dict[int, float]]:
    """Published accuracy averaged over 11 datasets, by method and shots."""
    if not PUBLISHED.is_file():
        return {}
    curves = json.loads(PUBLISHED.read_text(encoding="utf-8")).get("few_shot", {})
    return {method: {int(shots): value for shots, value in curve.items()} for method, curve in curves.items()}
