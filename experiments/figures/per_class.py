"""Which classes gain by a method over another (MaPLe over CoCoOp: figure 5 of arXiv 2210.03117)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np

from experiments.methods import Method
from experiments.results.accuracies import methods_of
from experiments.results.benchmarks import label_of
from experiments.results.runs import Run
from prompted_clip.errors import UserError

from .data import missing_footnote, missing_lines, per_class_of
from .style import LIGHT_GREY, ROW_WIDTH, NamedFigure, finish, look_of, panels, styled, wrapped

MOST_CLASSES = 60  # bars that one figure can hold


class ClassGain(NamedTuple):
    """A class, and how many points of accuracy the first method is above the second."""

    name: str
    gain: float


def class_gains(runs: Sequence[Run], methods: tuple[str, str]) -> dict[str, list[ClassGain]]:
    """By dataset, the gain of each class, a mean over the seeds that both have; sorted, the largest first.

    A class counts if both methods have tested it; datasets without such a class are left out. Zero-shot
    methods are the same for all seeds.

    Args:
        methods: keys of two methods.

    Raises:
        ValueError: a method is in no run.
    """
    known = [method.key for method in methods_of(runs)]
    for method in methods:
        if method not in known:
            raise UserError(f"--methods {method}: there is no run of it; there are {', '.join(known)}.")
    accuracies: defaultdict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for run in runs:
        if run.method.key in methods and run.role != "joint":  # where the same classes have other rivals
            for each in per_class_of(run):
                key = (run.dataset, each["name"], run.method.key)
                accuracies[key][run.seed] = 100 * each["correct"] / each["total"]
    zero_shot = {run.method.key for run in runs if run.method.is_zero_shot} & {*methods}
    gains: defaultdict[str, list[ClassGain]] = defaultdict(list)
    for dataset, name in dict.fromkeys(key[:2] for key in accuracies):
        ours, theirs = (accuracies.get((dataset, name, method), {}) for method in methods)
        if not zero_shot:
            both = ours.keys() & theirs
            ours, theirs = ({seed: each[seed] for seed in both} for each in (ours, theirs))
        if ours and theirs:
            gains[dataset].append(ClassGain(name, mean(ours.values()) - mean(theirs.values())))
    return {dataset: sorted(each, key=lambda pair: -pair.gain) for dataset, each in gains.items()}


def share_better(gains: Sequence[ClassGain]) -> float:
    """Percent of the classes that gain."""
    return 100 * sum(each.gain > 0 for each in gains) / len(gains)


@styled
def draw_shares(runs: Sequence[Run], methods: tuple[str, str]) -> NamedFigure:
    """The percentage of improved classes of each dataset.

    The datasets stand in the order of that share. The paper orders them by their distance from generic
    photos, of which it gives no numbers.

    Raises:
        ValueError: a method is in no run, or no class was tested by both.
    """
    gains, own, (first, second) = _gains(runs, methods)
    ordered = sorted(gains, key=lambda dataset: share_better(gains[dataset]))
    better = np.array([share_better(gains[dataset]) for dataset in ordered])
    equal = np.array([100 * mean(each.gain == 0 for each in gains[dataset]) for dataset in ordered])
    figure, axes = panels(1, width=max(4.2, min(ROW_WIDTH, 1.6 + 0.55 * len(ordered))), height=3.2)
    axis, places = axes[0][0], np.arange(len(ordered))
    bars = {
        f"{first.label} is better": (better, {"color": look_of(first).colour}),
        "equal": (equal, {"color": LIGHT_GREY, "hatch": "///", "edgecolor": "white"}),
        f"{second.label} is better": (100 - better - equal, {"color": look_of(second).colour}),
    }
    bottom = np.zeros(len(ordered))
    for label, (heights, colours) in bars.items():
        if heights.any():
            axis.bar(places, heights, 0.7, bottom=bottom, label=label, **colours)
        bottom = bottom + heights
    for place, value in zip(places, better, strict=True):
        axis.text(
            place, max(value / 2, 4), f"{value:.0f}", ha="center", va="center", color="white", fontsize=9
        )
    names = [f"{label_of(dataset)} ({len(gains[dataset])})" for dataset in ordered]
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(names) > 3 else {}
    axis.set_xticks(places, labels=names, **slanted)
    middle, half = (len(ordered) - 1) / 2, max(len(ordered), 3) / 2
    axis.set_xlim(middle - half, middle + half)
    axis.set_ylim(0, 100)
    axis.set_ylabel("classes (%)")
    axis.set_title(
        wrapped(f"{first.label} against {second.label}, class by class", figure.get_figwidth() - 0.6)
    )
    caption = (
        f"Share of the classes of which {first.label} recognises more images than {second.label}, mean over "
        "the seeds; in brackets the number of classes; datasets in the order of this share."
    )
    finish(figure, [caption, missing_footnote(own, "")], *axis.get_legend_handles_labels())
    title = f"Classes that gain by {first.label} over {second.label}"
    return NamedFigure("per_class", title, caption, figure, missing_lines(own))


@styled
def draw_gains(runs: Sequence[Run], methods: tuple[str, str], dataset: str) -> NamedFigure:
    """The gain of each class of one dataset, as bars; of very many classes those at both ends.

    Raises:
        ValueError: a method is in no run, or no class of the dataset was tested by both.
    """
    found, own, (first, second) = _gains(runs, methods)
    if dataset not in found:
        raise UserError(f"No class of {dataset} was tested by both methods; there are {', '.join(found)}.")
    gains, half = found[dataset], MOST_CLASSES // 2
    cut = len(gains) > MOST_CLASSES
    shown = [*gains[:half], *gains[-half:]] if cut else gains
    longest = max(len(each.name) for each in shown)
    width = min(ROW_WIDTH, 3.4 + 0.07 * longest)
    figure, axes = panels(1, width=width, height=0.9 + 0.17 * len(shown))
    axis, places = axes[0][0], np.arange(len(shown))
    values = [each.gain for each in shown]
    axis.barh(places, values, 0.7, color=[look_of(first if value > 0 else second).colour for value in values])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(places, labels=[each.name for each in shown])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    if cut:
        axis.axhline(half - 0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("difference of accuracy (points)")
    name = label_of(dataset)
    axis.set_title(f"{name}: {share_better(gains):.0f} % of {len(gains)} classes gain")
    caption = f"Accuracy of {first.label} minus that of {second.label} on each class of {name}"
    caption += ", mean over the seeds."
    ends = f"The {half} classes at each end of {len(gains)}." if cut else ""
    own = [run for run in own if run.dataset == dataset]
    finish(figure, [caption, ends, missing_footnote(own, "")])
    return NamedFigure(
        f"per_class_{dataset}", f"Gain of each class of {name}", caption, figure, missing_lines(own)
    )


def _gains(
    runs: Sequence[Run], methods: tuple[str, str]
) -> tuple[dict[str, list[ClassGain]], list[Run], tuple[Method, Method]]:
    """Gains by dataset, the runs of both methods, and the methods."""
    gains = class_gains(runs, methods)
    if not gains:
        raise UserError(
            f"No class was tested by both {methods[0]} and {methods[1]}: per_class in their result.json says "
            "which were. Run both methods on the same classes first."
        )
    by_key = {method.key: method for method in methods_of(runs)}
    own = [run for run in runs if run.method.key in methods]
    return gains, own, (by_key[methods[0]], by_key[methods[1]])
