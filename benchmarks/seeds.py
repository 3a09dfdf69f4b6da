"""A training step of several seeds together (`train.py --seeds`) beside as many runs of one seed.

    python -m benchmarks.seeds                                   # three seeds of MaPLe on ViT-B/16
    python -m benchmarks.seeds --trainers MaPLe PromptSRC --seeds 5

Both take their steps in one process by turns, on a ViT-B/16 with random weights and batches of noise, which
are where the model is. Images are read and results written by each seed in both cases: that is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import conditions, ratios, save
from benchmarks.ways import (
    Rounds,
    batch_for,
    build,
    build_parser_of_ours,
    by_turns,
    first_steps,
    gibibytes,
    is_refused,
    memory_line,
    milliseconds,
    model_line,
    notice_in,
    progress,
    result_name,
    table,
    told_in_one_line,
    weights_of,
)
from trainers.seeds_together import Seed, SeedsTogether

COLUMNS = (
    *("classes", "ms a step, together", "ms a step, one run", "price: together / one run"),
    *("gain: all runs / together", "GiB more, together", "GiB more, one run"),
)


@dataclass
class Steps:
    """Those of all seeds, or of one run: their seconds, the bytes they take, and why none is replayed."""

    rounds: Rounds
    memory: int | None
    said: str

    def cell(self) -> str:
        return milliseconds(self.rounds.wall) + (f" (not replayed: {self.said})" if self.said else "")


@dataclass
class Measured:
    """What came of one number of classes."""

    classes: int
    seeds: int
    together: Steps
    alone: Steps

    def row(self) -> list[str]:
        together, alone = self.together.rounds.wall, self.alone.rounds.wall
        return [
            f"{self.classes:,}",
            self.together.cell(),
            self.alone.cell(),
            ratios(together, alone),
            ratios([self.seeds * seconds for seconds in alone], together),
            gibibytes(self.together.memory),
            gibibytes(self.alone.memory),
        ]


def measure(name: str, classes: int, args: argparse.Namespace, weights: str) -> tuple[Measured, list[float]]:
    """Steps of all seeds and of one run by turns, and the load averages."""
    runs: list[Any] = []

    def seeds() -> Iterator[Seed]:
        for number in range(args.seeds):
            seed = Seed(number + 1, io.StringIO())
            seed.trainer = build(name, classes, args.backbone, weights, args.prec)
            if not runs:  # the run of one seed: what it is before it is taken in with the others
                runs.append(copy.copy(seed.trainer))
            yield seed

    together = SeedsTogether(seeds())
    trainers = [seed.trainer for seed in together.seeds]
    batch = batch_for(runs[0], args.batch_size)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        together.step.begin_epoch(trainers)
    batches = [batch] * len(trainers)
    measured = Measured(
        classes,
        args.seeds,
        steps_of(Rounds(lambda: together.step(trainers, batches), runs[0].device), together.step),
        steps_of(Rounds(lambda: runs[0].forward_backward(batch), runs[0].device), runs[0]),
    )
    measured.together.said = measured.together.said or notice_in(printed.getvalue())
    loads = by_turns([measured.together.rounds, measured.alone.rounds], args.rounds)
    return measured, loads


def steps_of(rounds: Rounds, owner: Any) -> Steps:
    """With the first steps taken."""
    return Steps(rounds, *first_steps(rounds, owner))


def report(args: argparse.Namespace, results: dict[str, list[Measured]], loads: Sequence[float]) -> list[str]:
    """The measurement in words."""
    lines = [f"# A training step of {args.seeds} seeds, batch {args.batch_size} each, {args.prec}", ""]
    lines += conditions(["torch"], loads)
    lines += [
        f"{model_line(args)}; {args.rounds} rounds by turns, after a warm-up; median and range",
        "- Together: a step of every seed at once. One run: a step of a process with one seed. Ratios are of "
        "each round",
        memory_line(),
    ]
    for name, rows in results.items():
        lines += ["", f"## {name}", "", table([each.row() for each in rows], COLUMNS)]
    return lines


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser_of_ours(__doc__, classes=(19, 100))
    parser.add_argument("--batch-size", type=int, default=4, help="of each seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    args = parser.parse_args(argv)
    if is_refused(args):
        return 1
    results: dict[str, list[Measured]] = {}
    loads: list[float] = []
    with weights_of(args.backbone) as weights:
        for name in args.trainers:
            results[name] = []
            for classes in args.classes:
                progress(f"{name}, {classes} classes ...")
                measured, those = measure(name, classes, args, weights)
                results[name].append(measured)
                loads += those
    file = result_name(f"{args.seeds}seeds", args, f"batch{args.batch_size}", args.prec)
    save(file, report(args, results, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
