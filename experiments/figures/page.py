"""The figures of a report's page: all that the results of runs give, without any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.report.page import PageFigure
from experiments.results.accuracies import methods_of
from experiments.results.runs import Run
from prompted_clip.errors import UserError

from .base2new import draw_methods
from .curves import draw_curves
from .data import each_shots
from .few_shot import draw_few_shot
from .per_class import class_gains, draw_gains, draw_shares
from .style import NamedFigure, png_bytes

COMPARED = ("MaPLe", "CoCoOp")  # as in the paper


def for_report(
    runs: Sequence[Run], methods: tuple[str, str] = COMPARED, warnings: list[str] | None = None
) -> list[PageFigure]:
    """The figures that can be drawn of gathered runs; none where nothing has a result yet.

    Args:
        methods: keys of those whose gain on each class is drawn, the first over the second.
        warnings: a line is added for each figure that cannot be drawn.
    """
    drawn: list[NamedFigure] = []

    def add(title: str, draw: Callable[..., NamedFigure | None], *args: Any) -> None:
        try:
            figure = draw(*args)
        except UserError as error:  # too little has a result yet, or a file is broken
            if warnings is not None:
                warnings.append(f"No figure of {title}: {error}")
        else:
            drawn.extend([figure] if figure else [])

    if base2new := _with_results(runs, "base2new"):
        for suffix, own in each_shots(base2new).items():
            add("base to novel", draw_methods, own, suffix)
        add("the gain of each class", _draw_classes, base2new, methods)
    for protocol in dict.fromkeys(run.protocol for run in runs if run.curve):
        if with_results := _with_results(runs, protocol):
            for suffix, own in each_shots(with_results).items():
                add(protocol, draw_curves, own, protocol, suffix)
    if few_shot := _with_results(runs, "few_shot"):
        add("few-shot", draw_few_shot, [*few_shot, *_with_results(runs, "zeroshot")])
    return [PageFigure(each.title, each.caption, png_bytes(each.figure)) for each in drawn]


def _draw_classes(runs: Sequence[Run], methods: tuple[str, str]) -> NamedFigure | None:
    """Of one dataset the gain of each class, of several the shares; None where the methods share no class."""
    if not {method.key for method in methods_of(runs)} >= set(methods):
        return None
    gains = class_gains(runs, methods)
    if len(gains) == 1:
        return draw_gains(runs, methods, *gains)
    return draw_shares(runs, methods) if gains else None


def _with_results(runs: Sequence[Run], protocol: str) -> list[Run]:
    """The runs of a protocol, those that are missing, too; none where all are."""
    own = [run for run in runs if run.protocol == protocol]
    return own if any(run.accuracy is not None for run in own) else []
