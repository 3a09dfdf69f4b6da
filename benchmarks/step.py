"""A training step beside the plain way of computing it: seconds, operations, memory, and the same numbers.

    python -m benchmarks.step                     # MaPLe on ViT-B/16, 19, 50 and 100 classes
    python -m benchmarks.step --trainers CoCoOp --batch-size 1 --classes 19 50

The plain way is the reference's: 77 tokens for each class, and every position in the last blocks. Both run in
one process by turns, on a ViT-B/16 with random weights (no time depends on their values) and images of noise.
Where the plain way is too large, its text part is measured on fewer classes and scaled; the report says so.
In float64 the logits and all gradients of both are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.report import conditions, load_average, ratios, save, spread
from dassl.engine import build_trainer
from experiments.complexity import build_cfg, find_method
from experiments.costs import peak_memory
from experiments.flops import compute_as_reference, step_flops
from experiments.stand_ins import batch_of_noise, class_names, image_size, random_weights
from trainers.clip_trainer import CLIPPromptTrainer

BACKBONE = "ViT-B/16"
LARGEST_PLAIN = 100  # classes; the plain way takes 25 GiB with 1000
SCALED_FROM = (50, 100)
BUSY = 0.5  # load average at the start above which nothing is measured
ROUNDS = 5


@dataclass
class Way:
    """One way of computing, with its rounds.

    Attributes:
        wall, cpu: seconds a step, one for each round.
    """

    trainer: Any
    batch: dict[str, Tensor]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def step(self) -> None:
        self.trainer.forward_backward(self.batch)

    def take_time(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def build(name: str, classes: int, batch_size: int, weights: Path, precision: str, plain: bool) -> Way:
    """A trainer that is ready to take steps; `plain` for the reference's way of computing."""
    method = find_method(name, BACKBONE)
    names = class_names(classes, BACKBONE)
    cfg = build_cfg(method, names, BACKBONE, image_size(BACKBONE), str(weights), precision)
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 2, 0
    trainer.set_model_mode("train")
    if plain:
        compute_as_reference(trainer.model)
    return Way(trainer, batch_of_noise(cfg, batch_size, classes))


def differences(
    ours: CLIPPromptTrainer, plain: CLIPPromptTrainer, batch: dict[str, Tensor]
) -> tuple[float, float]:
    """Largest relative differences of the logits and of the gradients, in float64.

    Each is the largest absolute difference over the largest absolute value of the plain way's tensor.
    """
    found = []
    for trainer in (ours, plain):
        model = copy.deepcopy(trainer.model).double()
        images, labels = trainer.parse_batch_train(batch)
        kept, trainer.model = trainer.model, model
        try:
            logits = model(images.double())
            loss = torch.stack(list(trainer.losses(images.double(), labels).values())).sum()
        finally:
            trainer.model = kept
        learned = [each for each in model.parameters() if each.requires_grad]
        found.append((logits.detach(), torch.autograd.grad(loss, learned, allow_unused=True)))
    (logits, gradients), (plain_logits, plain_gradients) = found
    pairs = zip(gradients, plain_gradients, strict=True)
    each = [relative(one, other) for one, other in pairs if one is not None and other is not None]
    return relative(logits, plain_logits), max(each)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@dataclass
class Measured:
    """What came of one number of classes.

    Attributes:
        plain_wall, plain_cpu: seconds a step of the plain way, one for each round; scaled where it is larger
            than LARGEST_PLAIN.
        errors: largest relative differences of logits and gradients, in float64, with `checked` classes.
        flops: of a step, ours and the plain way's.
        memory: growth of the resident set in a step of ours, in bytes; None where the system cannot tell.
    """

    classes: int
    ours: Way
    plain_wall: list[float]
    plain_cpu: list[float]
    errors: tuple[float, float]
    checked: int
    flops: tuple[int, int]
    memory: int | None
    loads: list[float]

    def row(self) -> list[str]:
        memory = "unknown" if self.memory is None else f"{self.memory / 2**30:.2f}"
        gigaflops = " / ".join(f"{count / 1e9:,.0f}" for count in self.flops)
        return [
            f"{self.classes:,}",
            ratios(self.plain_wall, self.ours.wall),
            ratios(self.plain_cpu, self.ours.cpu),
            spread(self.ours.wall, 3),
            spread(self.plain_wall, 3) + ("" if self.classes <= LARGEST_PLAIN else ", scaled"),
            gigaflops,
            memory,
            f"{self.errors[0]:.0e}, {self.errors[1]:.0e}"
            + ("" if self.checked == self.classes else f" ({self.checked})"),
        ]


COLUMNS = (
    *("classes", "plain / ours, wall", "plain / ours, processor", "s a step", "s a step, plain"),
    *("GFLOPs, ours / plain", "GiB more in a step", "differences: logits, gradients"),
)


def measure(name: str, classes: int, args: argparse.Namespace, weights: Path) -> Measured:
    """Rounds of ours and of the plain way by turns."""
    ours = build(name, classes, args.batch_size, weights, args.prec, plain=False)
    sizes = [classes] if classes <= LARGEST_PLAIN else list(SCALED_FROM)
    plain = [build(name, size, args.batch_size, weights, "fp32", plain=True) for size in sizes]
    checked = min(classes, args.check)
    pair = [build(name, checked, args.batch_size, weights, "fp32", plain=way) for way in (False, True)]
    errors = differences(pair[0].trainer, pair[1].trainer, pair[0].batch)
    del pair
    flops = [_flops(way, classes) for way in (ours, plain[-1])]
    ours.step()  # warm-up
    memory = peak_memory(ours.step, ours.trainer.device)
    for way in plain:
        way.step()
    loads = []
    for number in range(args.rounds):
        loads += load_average()
        turn = [ours, *plain]
        for way in turn[number % len(turn) :] + turn[: number % len(turn)]:
            way.take_time()
    if len(plain) == 1:
        wall, cpu = plain[0].wall, plain[0].cpu
    else:
        wall, cpu = (
            [_scaled(classes, *each) for each in zip(*(getattr(way, kind) for way in plain), strict=True)]
            for kind in ("wall", "cpu")
        )
        flops[1] = round(
            _scaled(classes, *(_flops(way, size) for way, size in zip(plain, sizes, strict=True)))
        )
    return Measured(classes, ours, wall, cpu, errors, checked, (flops[0], flops[1]), memory, loads)


def _scaled(classes: int, fewer: float, more: float) -> float:
    """What grows evenly with the classes, from its values at SCALED_FROM."""
    low, high = SCALED_FROM
    return more + (more - fewer) / (high - low) * (classes - high)


def _flops(way: Way, classes: int) -> int:
    batch = len(way.batch["img"])
    return step_flops(way.trainer, lambda images: batch_of_noise(way.trainer.cfg, images, classes))(batch)


def report(args: argparse.Namespace, results: dict[str, list[Measured]]) -> list[str]:
    """The measurement in words."""
    lines = [f"# A training step, batch {args.batch_size}, {args.prec}", ""]
    loads = [load for rows in results.values() for each in rows for load in each.loads]
    lines += conditions(["torch"], loads)
    lines += [
        f"- {torch.get_num_threads()} threads; {BACKBONE} with random weights; {args.rounds} rounds by "
        "turns, after one to warm up; median and range",
        "- Ratios are of each round: the plain way's seconds in fp32 over ours. Differences: the largest "
        "over the largest value of the plain way's, in float64; in brackets, with how many classes",
        f"- Scaled: the plain way was measured on {SCALED_FROM[0]} and {SCALED_FROM[1]} classes, and carried "
        "on evenly, as its text part grows",
    ]
    for name, rows in results.items():
        table = tabulate(
            [each.row() for each in rows], headers=COLUMNS, tablefmt="github", disable_numparse=True
        )
        lines += ["", f"## {name}", "", table]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A training step beside the plain way of computing it.")
    add = parser.add_argument
    add("--trainers", nargs="+", default=["MaPLe"], help="methods of a sweep, or TRAINER:CONFIG")
    add("--classes", nargs="+", type=int, default=[19, 50, 100])
    add("--batch-size", type=int, default=4)
    add("--prec", default="fp32", help="precision of ours; the plain way is fp32")
    add("--rounds", type=int, default=ROUNDS)
    add("--check", type=int, default=50, help="with how many classes, at most, both are compared in float64")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--anyway", action="store_true", help="measure on a busy machine, too")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    load = load_average()
    if load and load[0] > BUSY and not args.anyway:
        print(f"The machine is busy: load average {load[0]:.2f}. Wait, or give --anyway.", file=sys.stderr)
        return 1
    results: dict[str, list[Measured]] = {}
    with random_weights(BACKBONE) as weights:
        for name in args.trainers:
            results[name] = []
            for classes in args.classes:
                print(f"{name}, {classes} classes ...", file=sys.stderr, flush=True)
                results[name].append(measure(name, classes, args, weights))
    names = "_".join(args.trainers).lower()
    save(f"step_{names}_batch{args.batch_size}_{args.prec}.md", report(args, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
