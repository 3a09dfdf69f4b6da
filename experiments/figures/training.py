"""Loss, learning rate and validation accuracy over the steps of a training, from its logs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .style import COLOURS, GREY, Drawn, finish, panels, styled, wrapped

STEP = re.compile(
    r"^epoch \[(\d+)/\d+\] batch \[(\d+)/(\d+)\] .*?\bloss ([\w.+-]+) \(([\w.+-]+)\).*\blr ([\d.e+-]+)"
)
VALIDATION = "Evaluate on the *val* set"
ACCURACY = re.compile(r"^\* accuracy: ([\d.]+)%")
MOST_RUNS = 6


class Step(NamedTuple):
    """A line of the log.

    Attributes:
        loss: of this batch.
        mean_loss: of the epoch so far.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    mean_loss: float
    lr: float

    @property
    def number(self) -> int:
        return (self.epoch - 1) * self.batches + self.batch


@dataclass
class Training:
    """What the logs of a run tell.

    Attributes:
        accuracy: in percent on the validation images, by epoch.
    """

    steps: list[Step] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)
    logs: int = 0


def read_training(folder: Path) -> Training:
    """Joins `log.txt` and the logs of continuations: from its first epoch on, a later log counts.

    Raises:
        FileNotFoundError: there is no folder or no log.
        ValueError: there are no training steps in the logs.
    """
    # log.txt is the oldest; the others' names end in their time.
    logs = sorted(folder.glob("log.txt*"))
    if not logs:
        raise FileNotFoundError(f"{folder}: there is no log.txt of a run.")
    whole = Training(logs=len(logs))
    for log in logs:
        part = _read_log(log)
        if part.steps:
            first = part.steps[0].epoch
            whole.steps = [step for step in whole.steps if step.epoch < first] + part.steps
            earlier = {epoch: value for epoch, value in whole.accuracy.items() if epoch < first}
            whole.accuracy = earlier | part.accuracy
    if not whole.steps:
        raise ValueError(
            f"{folder}: its log.txt holds no steps of a training; a test or a zero-shot method has none. "
            "Short trainings print them with TRAIN.PRINT_FREQ 1."
        )
    return whole


def _read_log(log: Path) -> Training:
    found, validating = Training(), False
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in map(str.strip, file):
            if match := STEP.match(line):
                epoch, batch, batches, loss, mean_loss, lr = match.groups()
                found.steps.append(
                    Step(int(epoch), int(batch), int(batches), float(loss), float(mean_loss), float(lr))
                )
                validating = False
            elif line.startswith("Evaluate on the"):
                validating = line == VALIDATION
            elif validating and found.steps and (match := ACCURACY.match(line)):
                found.accuracy.setdefault(found.steps[-1].epoch, float(match[1]))
    return found


def rate_by_epoch(steps: Sequence[Step]) -> tuple[list[int], list[float]]:
    """Step and learning rate; the rate changes between epochs, of which not each step is logged."""
    x, y = [], []
    for epoch in dict.fromkeys(step.epoch for step in steps):
        own = [step for step in steps if step.epoch == epoch]
        x += [(epoch - 1) * own[0].batches, *(step.number for step in own), epoch * own[0].batches]
        y += [own[0].lr, *(step.lr for step in own), own[-1].lr]
    return x, y


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Trainer, configuration and seed, as folders name them; and what else of the paths tells runs apart."""
    paths = [folder.resolve().parts[::-1] for folder in folders]
    usual = 3 if all(re.fullmatch(r"seed\d+", parts[0]) for parts in paths) else 1
    labels = [parts[:usual] for parts in paths]
    for place in range(usual, min(map(len, paths))):
        differs = len({parts[place] for parts in paths}) > 1
        if differs and len(set(labels)) < len(set(paths)):
            labels = [(*label, parts[place]) for label, parts in zip(labels, paths, strict=True)]
    return [" ".join(label[::-1]) for label in labels]


@styled
def draw_training(folders: Sequence[Path]) -> Drawn:
    """A column a run: loss, learning rate, and accuracy on validation images where it was measured.

    Raises:
        FileNotFoundError, ValueError: as `read_training`; or there are too many runs for one figure.
    """
    if len(folders) > MOST_RUNS:
        raise ValueError(f"{len(folders)} runs are given; one figure holds up to {MOST_RUNS}.")
    trainings = [read_training(folder) for folder in folders]
    labels = labels_of(folders)
    validated = any(training.accuracy for training in trainings)
    figure, axes = panels(
        len(folders), 3 if validated else 2, max(4.2, 2.4 * len(folders)), 1.9, sharex="col", sharey="row"
    )
    for column, (label, training) in enumerate(zip(labels, trainings, strict=True)):
        loss, rate = axes[0][column], axes[1][column]
        steps = training.steps
        x = [step.number for step in steps]
        loss.plot(x, [step.loss for step in steps], ".", color=GREY, markersize=3, label="loss of a batch")
        loss.plot(
            x, [step.mean_loss for step in steps], color=COLOURS[0], label="mean loss of the epoch so far"
        )
        loss.set_title(wrapped(label, 2.4))
        rate.plot(*rate_by_epoch(steps), color=COLOURS[2])
        if training.accuracy:
            ends = [epoch * steps[0].batches for epoch in training.accuracy]
            axes[2][column].plot(ends, list(training.accuracy.values()), "o-", color=COLOURS[1])
        axes[-1][column].set_xlabel("step")
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("learning rate")
    axes[1][0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if validated:
        axes[2][0].set_ylabel("validation\naccuracy (%)")
    caption = (
        "Loss and learning rate as logged; validation accuracy at the end of an epoch."
        if validated
        else ("Loss and learning rate as logged.")
    )
    continued = [label for label, each in zip(labels, trainings, strict=True) if each.logs > 1]
    joined = f"Joined from several logs: {', '.join(continued)}." if continued else ""
    finish(figure, [caption, joined], *axes[0][0].get_legend_handles_labels())
    return Drawn("training", "Course of the training", caption, figure)
