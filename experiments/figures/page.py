"""The figures of a report's page: all that the results of a folder's runs give, without any model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .base2new import draw_methods
from .curves import draw_curves
from .data import Run, read_runs
from .few_shot import draw_few_shot, published_averages
from .per_class import draw_gains, draw_shares
from .style import Drawn

COMPARED = ("MaPLe", "CoCoOp")  # as in the paper


def for_report(folder: Path, methods: tuple[str, str] = COMPARED) -> list[Drawn]:
    """The figures that can be drawn of the runs in a folder; none where nothing has a result yet.

    Args:
        methods: whose gain on each class is drawn, the first over the second.

    Raises:
        ValueError: a plan or a result cannot be read.
    """
    found: list[Drawn] = []
    base2new = _runs(folder, "base2new")
    _add(found, base2new, lambda: draw_methods(base2new))
    if {run.method for run in base2new if run.result and run.result.get("per_class")} >= set(methods):
        _add(found, base2new, lambda: draw_shares(base2new, methods))
        datasets = {run.dataset for run in base2new if run.result}
        if len(datasets) == 1:
            _add(found, base2new, lambda: draw_gains(base2new, methods, *datasets))
    for protocol in ("depth", "length"):
        curves = _runs(folder, protocol)
        _add(found, curves, partial(draw_curves, curves, protocol))
    few_shot = _runs(folder, "few_shot")
    runs = [*few_shot, *_runs(folder, "zeroshot")]
    _add(found, few_shot, lambda: draw_few_shot(runs, published_averages()))
    return found


def _runs(folder: Path, protocol: str) -> list[Run]:
    try:
        return read_runs(folder, [protocol])
    except FileNotFoundError:
        return []


def _add(found: list[Drawn], runs: list[Run], draw: Callable[[], Drawn]) -> None:
    if any(run.result is not None for run in runs):
        found.append(draw())
