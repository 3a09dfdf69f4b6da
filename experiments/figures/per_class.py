"""Which classes gain by a method over another (MaPLe over CoCoOp: figure 5 of arXiv 2210.03117)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np

from .data import Run, shown_name
from .means import missing_footnote, missing_lines
from .style import COLOURS, LIGHT_GREY, ROW_WIDTH, Drawn, finish, panels, styled

MOST_CLASSES = 60  # bars that one figure can hold
BETTER, WORSE = COLOURS[0], COLOURS[1]


class ClassGain(NamedTuple):
    """A class, and how many points of accuracy the first method is above the second."""

    name: str
    gain: float


def class_gains(runs: Sequence[Run], methods: tuple[str, str]) -> dict[str, list[ClassGain]]:
    """By dataset, the gain of each class, a mean over the seeds of each method; sorted, the largest first.

    A class counts if both methods have tested it; datasets without such a class are left out.

    Raises:
        ValueError: a method is in no run.
    """
    for method in methods:
        if method not in {run.method for run in runs}:
            known = ", ".join(dict.fromkeys(run.method for run in runs))
            raise ValueError(f"--methods {method}: there is no run of it; there are {known}.")
    accuracies: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        for each in (run.result or {}).get("per_class", ()):
            if each["total"]:
                key = (run.dataset, each["name"], run.method)
                accuracies[key].append(100 * each["correct"] / each["total"])
    gains: defaultdict[str, list[ClassGain]] = defaultdict(list)
    for dataset, name in dict.fromkeys(key[:2] for key in accuracies):
        ours, theirs = (accuracies.get((dataset, name, method)) for method in methods)
        if ours and theirs:
            gains[dataset].append(ClassGain(name, mean(ours) - mean(theirs)))
    return {dataset: sorted(each, key=lambda pair: -pair.gain) for dataset, each in gains.items()}


def share_better(gains: Sequence[ClassGain]) -> float:
    """Percent of the classes that gain."""
    return 100 * sum(each.gain > 0 for each in gains) / len(gains)


@styled
def draw_shares(runs: Sequence[Run], methods: tuple[str, str]) -> Drawn:
    """The percentage of improved classes of each dataset.

    The datasets stand in the order of that share: of the paper's own order, by their distance from generic
    photos, no table is published.

    Raises:
        ValueError: a method is in no run, or no class was tested by both.
    """
    own = [run for run in runs if run.method in methods]
    gains = _gains(runs, methods)
    ordered = sorted(gains, key=lambda dataset: share_better(gains[dataset]))
    better = [share_better(gains[dataset]) for dataset in ordered]
    equal = [
        100 * sum(each.gain == 0 for each in gains[dataset]) / len(gains[dataset]) for dataset in ordered
    ]
    figure, axes = panels(1, width=max(3.4, min(ROW_WIDTH, 1.6 + 0.55 * len(ordered))), height=3.2)
    axis, places = axes[0][0], np.arange(len(ordered))
    axis.bar(places, better, 0.7, color=BETTER, label=f"{methods[0]} is better")
    axis.bar(
        places, equal, 0.7, bottom=better, color=LIGHT_GREY, hatch="///", edgecolor="white", label="equal"
    )
    for place, value in zip(places, better, strict=True):
        axis.text(place, value / 2, f"{value:.0f}", ha="center", va="center", color="white", fontsize=9)
    names = [f"{shown_name(runs, dataset)} ({len(gains[dataset])})" for dataset in ordered]
    axis.set_xticks(
        places, labels=names, rotation=40 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center"
    )
    axis.set_ylim(0, 100)
    axis.set_ylabel("classes (%)")
    axis.set_title(f"{methods[0]} against {methods[1]}, class by class")
    caption = (
        f"Share of the classes of which {methods[0]} recognises more images than {methods[1]}, mean over the "
        "seeds; in brackets the number of classes; datasets in the order of this share."
    )
    finish(figure, [caption, missing_footnote(own)], *axis.get_legend_handles_labels())
    title = f"Classes that gain by {methods[0]} over {methods[1]}"
    return Drawn("per_class", title, caption, figure, missing_lines(own))


@styled
def draw_gains(runs: Sequence[Run], methods: tuple[str, str], dataset: str) -> Drawn:
    """The gain of each class of one dataset, as bars; of very many classes those at both ends.

    Raises:
        ValueError: a method is in no run, or no class of the dataset was tested by both.
    """
    found = _gains(runs, methods)
    if dataset not in found:
        raise ValueError(
            f"--dataset {dataset}: no class of it was tested by both; there are {', '.join(found)}."
        )
    gains = found[dataset]
    shown, cut = list(gains), ""
    if len(gains) > MOST_CLASSES:
        shown = [*gains[: MOST_CLASSES // 2], *gains[-MOST_CLASSES // 2 :]]
        cut = f"The {MOST_CLASSES // 2} largest gains and losses of {len(gains)} classes."
    own = [run for run in runs if run.method in methods and run.dataset == dataset]
    longest = max(len(each.name) for each in shown)
    figure, axes = panels(1, width=min(ROW_WIDTH, 3.4 + 0.07 * longest), height=0.9 + 0.17 * len(shown))
    axis, places = axes[0][0], np.arange(len(shown))
    values = [each.gain for each in shown]
    axis.barh(places, values, 0.7, color=[BETTER if value > 0 else WORSE for value in values])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(places, labels=[each.name for each in shown])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    if cut:
        axis.axhline(MOST_CLASSES // 2 - 0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel(f"accuracy of {methods[0]} minus that of {methods[1]} (points)")
    name = shown_name(runs, dataset)
    axis.set_title(f"{name}: {share_better(gains):.0f} % of {len(gains)} classes gain")
    caption = f"Gain of {methods[0]} over {methods[1]} on each class of {name}, mean over the seeds."
    finish(figure, [caption, cut, missing_footnote(own)])
    return Drawn(f"per_class_{dataset}", f"Gain of each class of {name}", caption, figure, missing_lines(own))


def _gains(runs: Sequence[Run], methods: tuple[str, str]) -> dict[str, list[ClassGain]]:
    gains = class_gains(runs, methods)
    if not gains:
        raise ValueError(
            f"No class was tested by both {methods[0]} and {methods[1]}: per_class in their result.json says "
            "which were. Run both methods on the same classes first."
        )
    return gains
