"""A training step beside the plain way of computing it: seconds, operations, memory, and the same numbers.

    python -m benchmarks.step                     # MaPLe on ViT-B/16, 19, 50 and 100 classes
    python -m benchmarks.step --trainers CoCoOp --batch-size 1 --classes 19 50

The plain way is the reference's: 77 tokens for each class, and every position in the last blocks. Both run in
one process by turns, on a ViT-B/16 with random weights (no time depends on their values) and images of noise.
Where the plain way is too large, it is measured on fewer classes and scaled; the report says so. In float64
the logits and all gradients of both are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import Machine, measure_machine
from benchmarks.report import conditions, ratios, save, spread
from benchmarks.ways import (
    Rounds,
    batch_for,
    build,
    build_parser,
    by_turns,
    carried_on,
    in_float64,
    is_refused,
    model_line,
    plain_sizes,
    progress,
    relative,
    result_name,
    scaled_line,
    table,
    told_in_one_line,
    weights_of,
)
from experiments.costs.flops import step_flops
from experiments.costs.machine import peak_memory


def differences(ours: Any, plain: Any, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Largest relative differences of the logits and of the gradients, in float64."""
    found = []
    for trainer in (ours, plain):
        images, labels = trainer.parse_batch_train(batch)
        with in_float64(trainer) as model:
            logits = model(images.double())
            loss = torch.stack(list(trainer.losses(images.double(), labels).values())).sum()
        learned = [each for each in model.parameters() if each.requires_grad]
        found.append((logits.detach(), torch.autograd.grad(loss, learned, allow_unused=True)))
    (logits, gradients), (plain_logits, plain_gradients) = found
    pairs = zip(gradients, plain_gradients, strict=True)
    each = [relative(one, other) for one, other in pairs if one is not None and other is not None]
    return relative(logits, plain_logits), max(each)


@dataclass
class Measured:
    """What came of one number of classes.

    Attributes:
        wall, cpu: seconds a step of ours, one for each round.
        plain_wall, plain_cpu: the same of the plain way.
        scaled: whether the plain way's seconds and operations are carried on from fewer classes.
        errors: largest relative differences of logits and gradients, in float64, with `checked` classes.
        flops: of a step, ours and the plain way's.
        memory: growth of the resident set in a step of ours, in bytes; None where the system cannot tell.
    """

    classes: int
    wall: list[float]
    cpu: list[float]
    plain_wall: list[float]
    plain_cpu: list[float]
    scaled: bool
    errors: tuple[float, float]
    checked: int
    flops: tuple[float, float]
    memory: int | None
    loads: list[float]

    def row(self, machine: Machine) -> list[str]:
        memory = "unknown" if self.memory is None else f"{self.memory / 2**30:.2f}"
        shares = [machine.share(self.flops[0], seconds) for seconds in self.wall]
        return [
            f"{self.classes:,}",
            ratios(self.plain_wall, self.wall),
            ratios(self.plain_cpu, self.cpu),
            spread(self.wall, 3),
            spread(self.plain_wall, 3) + (", scaled" if self.scaled else ""),
            " / ".join(f"{count / 1e9:,.0f}" for count in self.flops),
            f"{machine.floor(self.flops[0]):.3f}; {spread(shares, 0)} %",
            memory,
            f"{self.errors[0]:.0e}, {self.errors[1]:.0e}"
            + ("" if self.checked == self.classes else f" ({self.checked})"),
        ]


COLUMNS = (
    *("classes", "plain / ours, wall", "plain / ours, processor", "s a step", "s a step, plain"),
    *("GFLOPs, ours / plain", "floor, s; how near", "GiB more in a step", "differences: logits, gradients"),
)


def measure(name: str, classes: int, args: argparse.Namespace, weights: str) -> Measured:
    """Rounds of ours and of the plain way by turns."""
    sizes, checked = plain_sizes(classes), min(classes, args.check)
    pair = [build(name, checked, args.backbone, weights, precision) for precision in ("fp32", "")]
    errors = differences(pair[0], pair[1], batch_for(pair[0], args.batch_size))
    del pair
    trainers = [build(name, classes, args.backbone, weights, args.prec)]
    trainers += [build(name, size, args.backbone, weights) for size in sizes]
    ours, *plain = [steps_of(trainer, args.batch_size) for trainer in trainers]
    flops, *plain_flops = [flops_of(trainer, args.batch_size) for trainer in trainers]
    ours.compute()
    memory = peak_memory(ours.compute, trainers[0].device)
    loads = by_turns([ours, *plain], args.rounds)
    plain_wall, plain_cpu = (
        [carried_on(classes, sizes, each) for each in zip(*seconds, strict=True)]
        for seconds in ([each.wall for each in plain], [each.cpu for each in plain])
    )
    return Measured(
        classes=classes,
        wall=ours.wall,
        cpu=ours.cpu,
        plain_wall=plain_wall,
        plain_cpu=plain_cpu,
        scaled=len(sizes) > 1,
        errors=errors,
        checked=checked,
        flops=(flops, carried_on(classes, sizes, plain_flops)),
        memory=memory,
        loads=loads,
    )


def steps_of(trainer: Any, batch_size: int) -> Rounds:
    batch = batch_for(trainer, batch_size)
    return Rounds(lambda: trainer.forward_backward(batch), trainer.device)


def flops_of(trainer: Any, batch_size: int) -> int:
    return step_flops(trainer, lambda images: batch_for(trainer, images))(batch_size)


def report(args: argparse.Namespace, results: dict[str, list[Measured]], machine: Machine) -> list[str]:
    """The measurement in words."""
    lines = [f"# A training step, batch {args.batch_size}, {args.prec}", ""]
    lines += conditions(
        ["torch"], [load for rows in results.values() for each in rows for load in each.loads]
    )
    lines += [
        f"{model_line(args)}; {args.rounds} rounds by turns, after a warm-up; median and range",
        machine.line(),
        "- Floor: operations of our step over that rate, and which share of the rate our seconds reach",
        "- Ratios are of each round: the plain way's seconds in fp32 over ours. Differences: the largest "
        "over the largest value of the plain way's, in float64; in brackets, with how many classes",
    ]
    if any(each.scaled for rows in results.values() for each in rows):
        lines.append(scaled_line())
    for name, rows in results.items():
        cells = [each.row(machine) for each in rows]
        lines += ["", f"## {name}", "", table(cells, COLUMNS)]
    return lines


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser(__doc__, classes=(19, 50, 100))
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args(argv)
    if is_refused(args):
        return 1
    machine = measure_machine(args.prec)
    results: dict[str, list[Measured]] = {}
    with weights_of(args.backbone) as weights:
        for name in args.trainers:
            results[name] = []
            for classes in args.classes:
                progress(f"{name}, {classes} classes ...")
                results[name].append(measure(name, classes, args, weights))
    file = result_name("step", args, f"batch{args.batch_size}", args.prec)
    save(file, report(args, results, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
