"""The product's way of computing and the plain one, side by side: what `step`, `evaluate` and `memory` share.

The plain way is the reference's: 77 tokens for each class, text features for every test batch, and every
position in the last blocks (`experiments.costs.flops.compute_as_reference`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.report import load_average
from clip.clip import EMBEDDED
from dassl.engine import build_trainer
from experiments.costs.complexity import build_cfg, find_method
from experiments.costs.flops import compute_as_reference
from experiments.costs.machine import wait_for
from experiments.costs.stand_ins import batch_of_noise, class_names, image_size, random_weights
from trainers.prompted_clip import PromptedCLIP

BUSY = 0.5  # load average at the start above which nothing is measured
ROUNDS = 5
LARGEST_PLAIN = 100  # classes; a step of the plain way takes 25 GiB with 1000
SCALED_FROM = (50, 100)
WARM_UPS = {"cpu": 1, "cuda": 10}  # on a GPU kernels are chosen, and steps recorded, in the first few
CPU = torch.device("cpu")


@dataclass
class Rounds:
    """A computation, and its seconds in each round: `wall`, and `cpu` of all threads together."""

    compute: Callable[[], object]
    device: torch.device = CPU
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take_time(self) -> None:
        wait_for(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        self.compute()
        wait_for(self.device)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def by_turns(turn: Sequence[Rounds], rounds: int) -> list[float]:
    """Takes the time of each in each round, after a warm-up; gives the load averages before the rounds."""
    for each in turn:
        for _ in range(WARM_UPS[each.device.type]):
            each.compute()
    loads = []
    for number in range(rounds):
        loads += load_average()
        first = number % len(turn)
        for each in [*turn[first:], *turn[:first]]:
            each.take_time()
    return loads


def build(
    name: str, classes: int, backbone: str, weights: str, precision: str = "", options: Sequence[str] = ()
) -> Any:
    """A trainer that is ready to take steps.

    Args:
        weights: as `weights_of` gives them.
        precision: empty for the plain way, the reference's, in fp32.
        options: KEY VALUE pairs of settings.
    """
    method, names = find_method(name, backbone), class_names(classes, backbone)
    size = image_size(backbone)
    if not precision:  # the reference launches each kernel by itself
        options = [*options, "TRAIN.CUDA_GRAPHS", "off"]
    cfg = build_cfg(method, names, backbone, size, weights, precision or "fp32", options)
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 2, 0  # as in the middle of an epoch
    trainer.set_model_mode("train")
    if not precision:
        compute_as_reference(trainer.model)
    return trainer


def batch_for(trainer: Any, size: int) -> dict[str, Tensor]:
    return batch_of_noise(trainer.cfg, size, trainer.num_classes)


@contextlib.contextmanager
def in_float64(trainer: Any) -> Iterator[PromptedCLIP]:
    """Within, the trainer's model is a copy of it in float64."""
    kept = trainer.model
    trainer.model = copy.deepcopy(kept).double()
    try:
        yield trainer.model
    finally:
        trainer.model = kept


def relative(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of `other`."""
    return float((one - other).abs().max() / other.abs().max())


def plain_sizes(classes: int) -> list[int]:
    """With how many classes the plain way is measured, for that many; two to carry on from."""
    return [classes] if classes <= LARGEST_PLAIN else list(SCALED_FROM)


def carried_on(classes: int, sizes: Sequence[int], values: Sequence[float]) -> float:
    """What grows evenly with the classes, from its values at `sizes`: one, which is it, or two."""
    if len(sizes) == 1:
        return values[0]
    (low, high), (fewer, more) = sizes, values
    return more + (more - fewer) / (high - low) * (classes - high)


# --- commands ---------------------------------------------------------------------------------------------


def build_parser(description: str | None, classes: Sequence[int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trainers", nargs="+", default=["MaPLe"], help="methods of a sweep, or TRAINER:CONFIG")
    add("--classes", nargs="+", type=int, default=list(classes))
    add("--backbone", default="ViT-B/16", help="with random weights, unless it is an embedded one")
    add("--prec", default="fp32", help="precision of ours; the plain way is fp32")
    add("--check", type=int, default=50, help="with how many classes, at most, both are compared in float64")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser, threads: int = 0) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=threads or torch.get_num_threads())
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine, too")


def told_in_one_line(main: Callable[..., int]) -> Callable[..., int]:
    """A command whose user's mistakes are one line, and exit code 2."""

    def command(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 2

    return command


def is_refused(args: argparse.Namespace) -> bool:
    """Sets the threads; says so where the machine is too busy to measure on it.

    Raises:
        ValueError: a number below 1.
    """
    for name in ("classes", "check", "rounds", "threads", "batch_size", "images"):
        given = getattr(args, name, 1)
        wrong = [each for each in (given if isinstance(given, list) else [given]) if each < 1]
        if wrong:
            raise ValueError(f"--{name.replace('_', '-')} is {wrong[0]}; allowed is 1 or more.")
    torch.set_num_threads(args.threads)
    load = load_average()
    if args.anyway or not load or load[0] <= BUSY:
        return False
    print(f"The machine is busy: load average {load[0]:.2f}. Wait, or give --anyway.", file=sys.stderr)
    return True


@contextlib.contextmanager
def weights_of(backbone: str) -> Iterator[str]:
    """A file of random weights; "" for the weights that an embedded backbone comes with."""
    if backbone in EMBEDDED:
        yield ""
        return
    with random_weights(backbone) as file:
        yield str(file)


def model_line(args: argparse.Namespace) -> str:
    weights = "its own" if args.backbone in EMBEDDED else "random"
    return f"- {args.backbone} with {weights} weights, {torch.get_num_threads()} threads"


def result_name(kind: str, args: argparse.Namespace, *rest: str) -> str:
    """Of the file in results/: the backbone is in it where it is not ViT-B/16."""
    backbone = [] if args.backbone == "ViT-B/16" else [args.backbone]
    name = "_".join([kind, *args.trainers, *backbone, *rest]).lower()
    return name.replace("/", "-").replace(":", "-") + ".md"


def scaled_line() -> str:
    low, high = SCALED_FROM
    return (
        f"- Scaled: above {LARGEST_PLAIN} classes the plain way's text was measured on {low} and {high}, and "
        "carried on evenly, as it grows; so were its operations"
    )


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    return tabulate(rows, headers=columns, tablefmt="github", disable_numparse=True)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
