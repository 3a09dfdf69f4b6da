"""The figures of a report's page: all that the results of runs give, without any model."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.page import PageFigure
from experiments.results.accuracies import datasets_of, methods_of
from experiments.results.runs import Run

from .base2new import draw_methods
from .curves import draw_curves
from .data import each_shots
from .few_shot import draw_few_shot
from .per_class import class_gains, draw_gains, draw_shares
from .style import NamedFigure, png_bytes

COMPARED = ("MaPLe", "CoCoOp")  # as in the paper


def for_report(runs: Sequence[Run], methods: tuple[str, str] = COMPARED) -> list[PageFigure]:
    """The figures that can be drawn of gathered runs; none where nothing has a result yet.

    Args:
        methods: keys of those whose gain on each class is drawn, the first over the second.

    Raises:
        ValueError: a result cannot be read.
    """
    drawn: list[NamedFigure] = []
    base2new = _with_results(runs, "base2new")
    if base2new:
        drawn += [draw_methods(own, suffix) for suffix, own in each_shots(base2new).items()]
        known = {method.key for method in methods_of(base2new)}
        if known >= set(methods) and class_gains(base2new, methods):
            datasets = datasets_of(base2new)
            if len(datasets) == 1:
                drawn.append(draw_gains(base2new, methods, datasets[0]))
            else:
                drawn.append(draw_shares(base2new, methods))
    for protocol in dict.fromkeys(run.protocol for run in runs if run.curve):
        for suffix, own in each_shots(_with_results(runs, protocol)).items():
            drawn.append(draw_curves(own, protocol, suffix))
    if few_shot := _with_results(runs, "few_shot"):
        drawn.append(draw_few_shot([*few_shot, *_with_results(runs, "zeroshot")]))
    return [PageFigure(each.title, each.caption, png_bytes(each.figure)) for each in drawn]


def _with_results(runs: Sequence[Run], protocol: str) -> list[Run]:
    """The runs of a protocol, those that are missing, too; none where all are."""
    own = [run for run in runs if run.protocol == protocol]
    return own if any(run.accuracy is not None for run in own) else []
