"""A training step on fixed views whose constant states are kept, beside the same step on their pixels.

    python -m benchmarks.views                    # MMRL and MMA from blocks 1, 5, 9 on, and other methods
    python -m benchmarks.views --trainers MMRL --first 6 --classes 19 100

Kept is what `DATALOADER.VIEWS` keeps: the image encoder's states before the first block that learns, or
CLIP's features. Both ways, and the papers' code as the plain one, run in one process, interleaved, on a
ViT-B/16 with random weights and images of noise. Neither reads nor decodes an image, which kept views are
spared in all epochs but the first. In float64 the logits and all gradients of the two are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    Errors,
    Rounds,
    batch_for,
    build,
    build_parser_of_ours,
    first_steps,
    gibibytes,
    in_float64,
    interleaved,
    is_refused,
    memory_line,
    milliseconds,
    model_line,
    one_line_errors,
    progress,
    ratios,
    result_path,
    save,
    step_differences,
    step_of,
    table,
    weights_of,
)
from benchmarks.machine import conditions, measure_rates
from experiments.costs.flops import step_flops
from prompted_clip.errors import UserError
from trainers import features

# Settings that have a method learn from a block on, counted from 1, to the last of so many.
FIRST_BLOCK: dict[str, Any] = {
    "MMRL": lambda first, last: ["TRAINER.MMRL.REP_LAYERS", str(tuple(range(first, last + 1)))],
    "MMRLpp": lambda first, last: ["TRAINER.MMRLPP.REP_LAYERS", str(tuple(range(first, last + 1)))],
    "MMA": lambda first, _: ["TRAINER.MMA.ADAPTER_START", str(first)],
    "TwoStageFS": lambda first, _: [
        *("TRAINER.TWOSTAGEFS.TEXT_START", str(first - 1)),
        *("TRAINER.TWOSTAGEFS.VISION_START", str(first - 1)),
    ],
}
TRAINERS = ["MMRL", "MMA", "CLIPLoRA", "TCP", "VPT", "MaPLe", "ZSLinearProbe", "TipAdapter-F"]
CHECKED = 2  # images that both ways are compared with
KEPT, PIXELS, PLAIN = "kept", "pixels", "plain"


@dataclass
class Step:
    """A way of taking a step, and what came of it: operations, and bytes that it takes beside the model."""

    rounds: Rounds
    flops: int
    memory: int | None


@dataclass
class Case:
    """A method that learns from a block on, and its ways, by their names.

    Attributes:
        first: the block, counted from 1; 0 for the method's own.
        place: what is kept.
        size: bytes kept for an image.
        errors: the largest relative differences of logits and of gradients, in float64.
    """

    name: str
    classes: int
    first: int
    place: str
    size: int
    errors: Errors
    steps: dict[str, Step]

    def row(self) -> list[str]:
        kept, pixels, plain = (self.steps.get(way) for way in (KEPT, PIXELS, PLAIN))
        assert pixels is not None
        row = [self.name, f"{self.classes:,}", str(self.first or "own"), self.place]
        row.append(milliseconds(pixels.rounds.wall))
        if kept is None:
            row += ["–"] * 4
        else:
            row += [
                milliseconds(kept.rounds.wall),
                ratios(pixels.rounds.wall, kept.rounds.wall),
                ratios(pixels.rounds.cpu, kept.rounds.cpu),
                f"{pixels.flops / kept.flops:.2f} = {pixels.flops / 1e9:,.0f} ÷ {kept.flops / 1e9:,.0f}",
            ]
        row.append("–" if plain is None else ratios(plain.rounds.wall, (kept or pixels).rounds.wall))
        row.append(", ".join(gibibytes(each.memory) for each in (pixels, kept) if each))
        row.append("–" if kept is None else f"{self.size / 2**10:,.0f}")
        row.append("–" if kept is None else "{:.0e}, {:.0e}".format(*self.errors))
        return row


COLUMNS = (
    *("method", "classes", "learns from block", "kept", "ms a step, pixels", "ms a step, kept"),
    *(
        "pixels / kept, wall",
        "pixels / kept, processor",
        "the same in GFLOPs: the bound",
        "plain / kept, wall",
    ),
    *("GiB more: pixels, kept", "KiB kept an image", "differences: logits, gradients"),
)


def keep(trainer: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    """The batch as fixed views of `DATALOADER.VIEWS` are handed to a step."""
    other = copy.copy(trainer)
    images, labels = batch["img"], batch["label"]
    other.place = features.place_of(other.model)
    states = features.encode(other, images, other.place)
    views = features.KeptViews(torch.stack([states] * trainer.cfg.DATALOADER.K_TRANSFORMS), labels)
    other.training_views = views
    if other.place == features.FEATURES:
        other.view_features = views
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            other.view_features  # noqa: B018  computed here, and not in a step that is measured
    return {**batch, "img": features.batch_of(other, torch.arange(len(labels), device=labels.device))}


def differences(trainer: Any, batch: dict[str, Tensor]) -> Errors:
    """Between both ways, in float64."""
    trainer = copy.copy(trainer)  # what it computes once is of float64 here
    with in_float64(trainer):
        batch = {**batch, "img": batch["img"].double()}
        kept, *_ = trainer.parse_batch_train(keep(trainer, batch))
        images, *more = trainer.parse_batch_train(batch)  # which may draw, once for both
        return step_differences(*(step_of(trainer, each, *more) for each in (kept, images)))


def measure(
    name: str, classes: int, first: int, args: argparse.Namespace, weights: str
) -> tuple[Case, list[float]]:
    """One method, in interleaved rounds, and the load averages."""
    options = list(args.options)
    if first:
        options += FIRST_BLOCK[name](first, args.last)
    trainer = build(name, classes, args.backbone, weights, args.prec, options)
    batch = batch_for(trainer, args.batch_size)
    ways = {PIXELS: (trainer, batch)}
    place, size, errors = "nothing", 0, (0.0, 0.0)
    if trainer.trains_on_views:
        kept = keep(trainer, batch)
        other = copy.copy(trainer)
        vars(other).pop("graphed_step", None)
        ways[KEPT] = other, kept
        found = features.place_of(trainer.model)
        place = f"states before block {found + 1}" if isinstance(found, int) else found
        stored = kept["img"]
        size = (stored if isinstance(stored, Tensor) else stored.all_states).nbytes // args.batch_size
        errors = differences(trainer, {key: each[:CHECKED] for key, each in batch.items()})
    if not args.no_plain:
        plain = build(name, classes, args.backbone, weights, "fp32", options, plain=True)
        ways[PLAIN] = plain, batch
    steps = {}
    for way, (owner, own_batch) in ways.items():
        rounds = Rounds(partial(owner.forward_backward, own_batch), owner.device)
        memory, _ = first_steps(rounds, owner)
        steps[way] = Step(rounds, 0 if way == PLAIN else step_flops(owner, own_batch), memory)
    loads = interleaved([step.rounds for step in steps.values()], args.rounds, args.seconds)
    return Case(name, classes, first, place, size, errors, steps), loads


def report(
    args: argparse.Namespace, cases: Sequence[Case], machine: Any, loads: Sequence[float]
) -> list[str]:
    """The measurement in words."""
    return [
        f"# Steps on kept states of fixed views, batch {args.batch_size}, {args.prec}",
        "",
        *conditions(["torch"], loads),
        f"{model_line(args)}; {args.rounds} interleaved rounds, after a warm-up; median and range",
        machine.line(),
        "- Pixels: ours, where the image encoder runs in whole in each step. Kept: from the first block that "
        "learns on, or from CLIP's features; so are features that a method stays near to",
        "- Ratios are of each round. The bound is the quotient of the operations of both",
        "- Plain: the papers' code in fp32 on pixels, over kept, or over pixels where nothing is kept",
        "- Differences: of kept and pixels, the largest over the largest value, in float64",
        memory_line(),
        "",
        table([case.row() for case in cases], COLUMNS),
    ]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser_of_ours(__doc__, classes=(19,))
    parser.set_defaults(trainers=TRAINERS)
    add = parser.add_argument
    add("--batch-size", type=int, default=4)
    add(
        "--first",
        nargs="+",
        type=int,
        default=[0, 1, 5, 9],
        help="MMRL's and MMA's first block; 0: as published",
    )
    add("--last", type=int, default=12, help="the encoders' last block")
    add("--no-plain", action="store_true", help="without the papers' way")
    add("--options", nargs="*", default=[], help="KEY VALUE pairs of settings of ours")
    args = parser.parse_args(argv)
    if wrong := [first for first in args.first if not 0 <= first <= args.last]:
        raise UserError(
            f"--first is {wrong[0]}; allowed are blocks 1 to {args.last}, and 0 for the published."
        )
    if is_refused(args):
        return 1
    machine = measure_rates(args.prec)
    cases, loads = [], []
    with weights_of(args.backbone) as weights:
        for name in args.trainers:
            for classes in args.classes:
                for first in (args.first if name in FIRST_BLOCK else []) or [0]:
                    progress(f"{name}, {classes} classes, from block {first or 'of its own'} ...")
                    case, those = measure(name, classes, first, args, weights)
                    cases.append(case)
                    loads += those
    names = [] if args.trainers == TRAINERS else [*args.trainers]
    names += [] if args.first == parser.get_default("first") else [f"from-{first}" for first in args.first]
    file = result_path(
        "views", argparse.Namespace(**{**vars(args), "trainers": names}), f"batch{args.batch_size}", args.prec
    )
    save(file, report(args, cases, machine, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
