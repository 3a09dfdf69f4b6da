"""What the benchmarks of models share: ours and the papers' way side by side, in interleaved rounds.

The plain way is the papers' (`benchmarks/reference.py`): 77 tokens per class, text features for every test
batch, and every position in the last blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.machine import default_device, load_average, memory_source, peak_memory, synchronize
from benchmarks.reference import compute_as_reference
from experiments.costs.complexity import build_cfg, find_method
from experiments.costs.synthetic import (
    batch_of_noise,
    build_synthetic,
    class_names,
    image_size,
    random_weights,
)
from prompted_clip import PromptedCLIP
from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from prompted_clip.factory import EMBEDDED
from trainers.step_graph import NOTICE

RESULTS = Path(__file__).parent / "results"

BUSY = 0.5  # load average at the start above which nothing is measured
ROUNDS = 5
LARGEST_PLAIN = 100  # classes, on a CPU; a step of the plain way takes 25 GiB with 1000
PLAIN_BYTES = 50 * 2**20  # of a GPU's free memory for each class: twice what the plain way takes
SCALED_FROM = (50, 100)
WARM_UPS = {"cpu": 1, "cuda": 5}  # on a GPU kernels are chosen, and steps recorded, in the first few
MOST_WARM_UPS = 40  # a loss scaler may need 20 steps before one can be replayed
# Seconds of a turn, at least: a GPU's step is too short for a clock.
FILLED = {"cpu": 1.0, "cuda": 0.3}
CPU = torch.device("cpu")


@dataclass
class Rounds:
    """A computation, and its seconds in each round: `wall`, and `cpu` of all threads together.

    Attributes:
        times: how often it is computed in a round; its seconds are those of once.
        warm: whether it need not be warmed up any more.
    """

    compute: Callable[[], object]
    device: torch.device = CPU
    times: int = 1
    warm: bool = False
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def warm_up(self, least: float | None) -> None:
        """Computes a few times, so that a turn can be made to last `least` seconds."""
        for _ in range(0 if self.warm else WARM_UPS[self.device.type]):
            self.compute()
        self.warm = True
        least = FILLED[self.device.type] if least is None else least
        self.times = max(1, math.ceil(least / max(self._seconds()[0], 1e-6)))

    def take_time(self) -> None:
        """Computes once more first: that meets what another way has left in caches and heap."""
        self.compute()
        wall, cpu = self._seconds()
        self.wall.append(wall)
        self.cpu.append(cpu)

    def _seconds(self) -> tuple[float, float]:
        synchronize(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.times):
            self.compute()
        synchronize(self.device)
        return (time.perf_counter() - wall) / self.times, (time.process_time() - cpu) / self.times


def interleaved(turn: Sequence[Rounds], rounds: int, least: float | None = None) -> list[float]:
    """Takes the time of each in each round, after a warm-up; returns the load averages before the rounds.

    Args:
        least: seconds of a turn; None for FILLED.
    """
    for each in turn:
        each.warm_up(least)
    loads = []
    for number in range(rounds if turn else 0):
        loads += load_average()
        first = number % len(turn)
        for each in [*turn[first:], *turn[:first]]:
            each.take_time()
    return loads


def settle(steps: Rounds, owner: Any = None) -> str:
    """Takes steps until those to come are alike.

    Then a GPU's kernels are chosen, a loss scaler has found its scale, and the step is replayed as a CUDA
    graph, or computed anew for good.

    Args:
        owner: a trainer, or what else has a `graphed_step`.

    Returns:
        Why it is computed anew, where that was not asked for; else "".
    """
    device = steps.device.type
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for number in range(MOST_WARM_UPS if device == "cuda" else WARM_UPS[device]):
            steps.compute()
            if number + 1 >= WARM_UPS[device] and is_settled(owner):
                break
    steps.warm = True
    if device == "cuda" and not is_settled(owner):
        return f"its gradients were not finite in {MOST_WARM_UPS} steps"
    return notice_in(said.getvalue())


def notice_in(printed: str) -> str:
    """Why steps are not replayed, where that was printed; else ""."""
    lines = (line for line in printed.splitlines() if line.startswith(NOTICE))
    return next(lines, "").removeprefix(NOTICE)


def is_settled(owner: Any) -> bool:
    """Whether no step of it will be computed beside its replay any more."""
    # Looked up so that it is not made by the look: a trainer makes it when it is needed first.
    graphed = getattr(owner, "__dict__", {}).get("graphed_step")
    return graphed is None or graphed.disabled or graphed.checked


def first_steps(rounds: Rounds, owner: Any = None) -> tuple[int | None, str]:
    """Settles; gives the bytes that steps take, see `memory_line`, and why none is replayed."""
    why: list[str] = []

    def steps() -> None:
        why.append(settle(rounds, owner))

    if rounds.device.type == "cuda":
        return peak_memory(steps, rounds.device), why[0]
    steps()  # they make the heap grow, too
    return peak_memory(rounds.compute, rounds.device), why[0]


def memory_line(when: str = "") -> str:
    """How memory is measured.

    Args:
        when: it was; by default as `first_steps` does.
    """
    on_gpu = default_device().type == "cuda"
    when = when or ("in the first steps" if on_gpu else "in a step after one to warm up")
    return f"- GiB: {memory_source(default_device())}, {when}"


def gibibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.2f}"


def milliseconds(seconds: Sequence[float]) -> str:
    """Median and range."""
    return spread([1000 * each for each in seconds], 1 if statistics.median(seconds) >= 0.1 else 2)


def build(
    name: str,
    classes: int,
    backbone: str,
    weights: str,
    precision: str = "fp32",
    options: Sequence[str] = (),
    plain: bool = False,
) -> Any:
    """A trainer that is ready to take steps, in which it learns nothing: each is like the one before.

    Args:
        weights: as `weights_of` gives them.
        options: KEY VALUE pairs of settings.
        plain: whether it computes as the reference does.
    """
    method, names = find_method(name, backbone), class_names(classes, backbone)
    size = image_size(backbone)
    if plain:  # the reference launches each kernel by itself
        options = [*options, "TRAIN.CUDA_GRAPHS", "off"]
    cfg = build_cfg(method, names, backbone, size, weights, precision, options)
    torch.manual_seed(1)
    trainer = build_synthetic(cfg)
    trainer.set_model_mode("train")
    # Random weights that learn from noise, step after step on one batch, may end where no loss is finite.
    for optim in filter(None, trainer._optims.values()):
        for group in optim.param_groups:
            group["lr"] = 0.0
    if plain:
        compute_as_reference(trainer.model)
    return trainer


def batch_for(trainer: Any, size: int) -> dict[str, Tensor]:
    """A batch of noise, where the trainer computes."""
    batch = batch_of_noise(trainer.cfg, size, trainer.num_classes)
    return {key: each.to(trainer.device) for key, each in batch.items()}


@contextlib.contextmanager
def in_float64(trainer: Any) -> Iterator[PromptedCLIP]:
    """Within, the trainer's model is a copy of it in float64, without dropout."""
    kept = trainer.model
    trainer.model = copy.deepcopy(kept).double()
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    try:
        yield trainer.model
    finally:
        trainer.model = kept


def relative(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of `other`, if that is not 0."""
    return float((one - other).abs().max() / (other.abs().max() or 1))


Step = tuple[Tensor, Sequence[Tensor | None]]  # logits, and the gradient of each learned tensor
Errors = tuple[float, float]  # largest relative differences of logits and of gradients


def step_of(trainer: Any, images: Any, *more: Tensor) -> Step:
    """What a training step computes, of all that `parse_batch_train` gives."""
    logits = trainer.model(images[0] if trainer.takes_views else images)
    loss = torch.stack(list(trainer.losses(images, *more).values())).sum()
    learned = [each for each in trainer.model.parameters() if each.requires_grad]
    return logits.detach(), torch.autograd.grad(loss, learned, allow_unused=True)


def step_differences(one: Step, other: Step) -> Errors:
    gradients = zip(one[1], other[1], strict=True)
    each = [relative(a, b) for a, b in gradients if a is not None and b is not None]
    return relative(one[0], other[0]), max(each)


def largest_plain(texts: int = 1) -> int:
    """With how many classes, at most, the plain way is measured; on a GPU as its free memory allows.

    Args:
        texts: how many a step computes of each class; several where it is made of the image.
    """
    device = default_device()
    if device.type != "cuda":
        return LARGEST_PLAIN
    return max(LARGEST_PLAIN, torch.cuda.mem_get_info(device)[0] // (PLAIN_BYTES * texts))


def plain_sizes(classes: int, texts: int = 1) -> list[int]:
    """With how many classes the plain way is measured, for that many; two to carry on from."""
    return [classes] if classes <= largest_plain(texts) else list(SCALED_FROM)


def carried_on(classes: int, sizes: Sequence[int], values: Sequence[float]) -> float:
    """What grows evenly with the classes, from its values at `sizes`: one, which is it, or two."""
    if len(sizes) == 1:
        return values[0]
    (low, high), (fewer, more) = sizes, values
    return more + (more - fewer) / (high - low) * (classes - high)


# --- numbers of several rounds ------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float], digits: int = 2) -> str:
    """Median and range of the quotients of each round."""
    return spread([a / b for a, b in zip(above, below, strict=True)], digits)


def save(path: Path, lines: Sequence[str]) -> None:
    """Prints the report, and writes it into a file."""
    print("\n".join(lines) + "\n")
    write(path, lines)


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- commands ---------------------------------------------------------------------------------------------


def build_parser(description: str | None, classes: Sequence[int]) -> argparse.ArgumentParser:
    """Of a measurement of ours and the plain way."""
    parser = build_parser_of_ours(description, classes)
    add = parser.add_argument
    add("--plain-prec", default="fp32", help="precision of the plain way; the papers' code computes in fp16")
    add("--check", type=int, default=50, help="with how many classes, at most, both are compared in float64")
    return parser


def build_parser_of_ours(description: str | None, classes: Sequence[int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trainers", nargs="+", default=["MaPLe"], help="methods of a sweep, or TRAINER:CONFIG")
    add("--classes", nargs="+", type=int, default=list(classes))
    parser.set_defaults(usual_classes=list(classes))
    add("--backbone", default="ViT-B/16", help="with random weights, unless it is an embedded one")
    add("--prec", default="fp32", help="precision of ours")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser, threads: int = 0) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=threads or torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, help="of a turn, at least (default: 1 on a CPU, 0.3 on a GPU)"
    )
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine, too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")


def one_line_errors(main: Callable[..., int]) -> Callable[..., int]:
    """A command whose user's mistakes are one line, and exit code 2."""

    def command(argv: Sequence[str] | None = None) -> int:
        return run_command("benchmark", lambda: main(argv))

    return command


def is_refused(args: argparse.Namespace) -> bool:
    """Sets the threads; says so where the machine is too busy to measure on it.

    Raises:
        ValueError: a number below 1, or a method that is not known.
    """
    counts = ("classes", "check", "rounds", "threads", "batch_size", "images", "steps", "epochs")
    for name in (*counts, "runs", "results", "photos", "folders", "jobs", "shots", "views"):
        given = getattr(args, name, 1)
        wrong = [each for each in (given if isinstance(given, list) else [given]) if each < 1]
        if wrong:
            raise UserError(f"--{name.replace('_', '-')} is {wrong[0]}; allowed is 1 or more.")
    for name in getattr(args, "trainers", ()):
        find_method(name, args.backbone)
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


def result_path(kind: str, args: argparse.Namespace, *rest: str) -> Path:
    """The report's file, named by what is not the default: backbone, classes, GPU."""
    backbone = [] if args.backbone == "ViT-B/16" else [args.backbone]
    precision = getattr(args, "plain_prec", "fp32")
    plain = [] if precision == "fp32" else [f"plain-{precision}"]
    usual = args.classes == args.usual_classes
    classes = [] if usual else [*map(str, args.classes), "classes"]
    gpu = [torch.cuda.get_device_name().removeprefix("NVIDIA ")] if torch.cuda.is_available() else []
    name = "_".join([kind, *args.trainers, *backbone, *rest, *plain, *classes, *gpu]).lower()
    return args.out / ("".join("-" if each in "/: " else each for each in name) + ".md")


def scaled_line() -> str:
    low, high = SCALED_FROM
    return (
        f"- Scaled: above {largest_plain():,} classes the plain way's text was measured on {low} and {high}, "
        "and carried on evenly, as it grows; so were its operations"
    )


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    return tabulate(rows, headers=columns, tablefmt="github", disable_numparse=True)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
