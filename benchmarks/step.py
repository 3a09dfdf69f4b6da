"""A training step beside the plain way of computing it: seconds, operations, memory, and the same numbers.

    python -m benchmarks.step                     # MaPLe on ViT-B/16, 19, 50 and 100 classes
    python -m benchmarks.step --trainers CoCoOp --batch-size 1 --classes 19 50
    python -m benchmarks.step --ways ours eager compiled plain        # on a GPU: other ways of ours, too

The plain way is the reference's: 77 tokens for each class, and every position in the last blocks. All run in
one process, interleaved, on a ViT-B/16 with random weights (no time depends on their values) and images of
noise, which are where the model is. On a GPU ours is replayed as a CUDA graph; `eager` is the same step
without the graph, `compiled` that by torch.compile; `other-linear` has oneDNN's linear layers on a CPU where
ours has torch's choice, and the other way round. Where the plain way is too large, it is measured on fewer
classes and scaled; the report says so. In float64 the logits and all gradients of both are compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import (
    FILLED,
    Errors,
    Rounds,
    batch_for,
    build,
    build_parser,
    carried_on,
    first_steps,
    gibibytes,
    in_float64,
    interleaved,
    is_refused,
    memory_line,
    milliseconds,
    model_line,
    one_line_errors,
    plain_sizes,
    progress,
    ratios,
    result_path,
    save,
    scaled_line,
    spread,
    step_differences,
    step_of,
    table,
    weights_of,
    write,
)
from benchmarks.machine import Rates, conditions, measure_rates
from experiments.costs.flops import step_flops
from prompted_clip import ops

OURS, EAGER, COMPILED, LINEAR, PLAIN = "ours", "eager", "compiled", "other-linear", "plain"
WAYS = (OURS, EAGER, COMPILED, *([LINEAR] if ops.ONEDNN_LINEAR is not None else []), PLAIN)


def differences(ours: Any, plain: Any, batch: dict[str, Tensor]) -> Errors:
    """Between both ways, in float64.

    What a method draws, and CLIP's features that it computed before in float32, are the same for both.
    """
    images, *more = ours.parse_batch_train(batch)
    found = []
    for way in (ours, plain):
        trainer = copy.copy(ours)
        trainer.model = way.model
        with in_float64(trainer):
            found.append(step_of(trainer, images.double(), *more))
    return step_differences(*found)


@dataclass
class Way:
    """One way of taking a step with some classes, and what came of it.

    Attributes:
        sizes: with how many classes it is measured: that many, or two numbers to carry on from.
        rounds: for each of `sizes`; empty where the way cannot be gone, and once it is measured.
        wall, cpu: seconds a step, one for each round.
        flops: operations of a step.
        memory: bytes that steps take beside the model; None where the system cannot tell.
        said: why steps are not replayed, or what hinders them.
        counted: the step whose kernels are counted, on a GPU.
    """

    name: str
    classes: int
    sizes: Sequence[int]
    flops: float = 0
    memory: int | None = None
    said: str = ""
    rounds: list[Rounds] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    counted: Callable[[], object] | None = None
    kernels: int | None = None

    def carried_on(self, values: Sequence[float]) -> float:
        return carried_on(self.classes, self.sizes, values)

    def finish(self) -> None:
        """Keeps the seconds alone: a recorded step's memory is free again."""
        self.wall, self.cpu = (
            [self.carried_on(each) for each in zip(*seconds, strict=True)]
            for seconds in ([each.wall for each in self.rounds], [each.cpu for each in self.rounds])
        )
        self.rounds = []

    def row(self, plain: Way | None, machine: Rates, errors: str) -> list[str]:
        name = self.name if self.name in (OURS, PLAIN) else f"ours, {self.name}"
        beside = plain is not None and bool(plain.wall and self.wall)
        row = [
            f"{self.classes:,}",
            name + (", scaled" if len(self.sizes) > 1 else "") + (f" ({self.said})" if self.said else ""),
            ratios(plain.wall, self.wall) if plain and beside else "–",
            ratios(plain.cpu, self.cpu) if plain and beside else "–",
            milliseconds(self.wall) if self.wall else "–",
            f"{self.flops / 1e9:,.0f}" if self.wall else "–",
            nearness(machine, self.flops, self.wall),
            gibibytes(self.memory) if self.wall else "–",
            errors if self.name == OURS else "–",
        ]
        if machine.device == "cuda":
            row.append("unknown" if self.kernels is None else f"{self.kernels:,}")
        return row


COLUMNS = (
    *("classes", "way", "plain / it, wall", "plain / it, processor", "ms a step", "GFLOPs"),
    *("floor, ms; how near", "GiB more", "differences: logits, gradients", "kernels"),
)


def nearness(machine: Rates, flops: float, seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    shares = [machine.share(flops, each) for each in seconds]
    return f"{1000 * machine.floor(flops):.1f}; {spread(shares, 0)} %"


def measure(
    name: str, args: argparse.Namespace, weights: str
) -> tuple[list[list[Way]], dict[int, Errors], list[float]]:
    """All ways with each number of classes, in the same interleaved rounds; differences; load averages.

    A size that the plain way is carried on from for several numbers of classes is measured once.
    """
    ours = {
        classes: build(name, classes, args.backbone, weights, args.prec, args.options)
        for classes in args.classes
    }
    plain: dict[int, Any] = {}
    errors: dict[int, Errors] = {}
    groups: list[list[Way]] = []
    begun: dict[Any, tuple[Rounds, int | None, str]] = {}
    for classes, trainer in ours.items():
        texts = args.batch_size if trainer.model.prompt_learner.conditional else 1
        sizes = plain_sizes(classes, texts) if PLAIN in args.ways else []
        for size in sizes:
            if size not in plain:
                plain[size] = build(name, size, args.backbone, weights, args.plain_prec, plain=True)
        checked = min(classes, args.check)
        if sizes and checked not in errors:
            errors[checked] = compare(name, checked, (trainer, plain[sizes[0]]), args, weights)
        eager = computed_anew(trainer)
        groups.append([])
        for kind in args.ways:
            own = {OURS: trainer, EAGER: eager}.get(kind)
            changed = {COMPILED: compiled, LINEAR: with_other_linear}.get(kind)
            trainers = [changed(eager) if changed else own]
            if kind == PLAIN:
                trainers = [plain[size] for size in sizes]
            way = Way(kind, classes, sizes if kind == PLAIN else [classes])
            groups[-1].append(prepare(way, trainers, args.batch_size, begun))
    turn = {id(each): each for group in groups for way in group for each in way.rounds}
    loads = interleaved(list(turn.values()), args.rounds, args.seconds)
    plain_flops = {size: step_flops(each, batch_for(each, args.batch_size)) for size, each in plain.items()}
    for group, trainer in zip(groups, ours.values(), strict=True):
        batch = batch_for(trainer, args.batch_size)
        flops, step = step_flops(trainer, batch), partial(computed_anew(trainer).forward_backward, batch)
        for way in group:
            way.flops = flops
            if way.name == PLAIN:
                way.flops = way.carried_on([plain_flops[size] for size in way.sizes])
            if way.rounds and trainer.device.type == "cuda" and len(way.sizes) == 1:
                way.counted = step if way.name in (OURS, EAGER) else way.rounds[0].compute
            way.finish()
    return groups, errors, loads


def compare(name: str, classes: int, pair: tuple[Any, Any], args: argparse.Namespace, weights: str) -> Errors:
    """`differences` of ours and the plain way with so many classes: of `pair`, if that is what they are."""
    if any(each.num_classes != classes for each in pair) or {args.prec, args.plain_prec} != {"fp32"}:
        ours, plain = (build(name, classes, args.backbone, weights, plain=each) for each in (False, True))
        pair = (ours, plain)
    return differences(*pair, batch_for(pair[0], args.batch_size))


def computed_anew(trainer: Any) -> Any:
    """The same trainer, whose steps are not replayed."""
    other = copy.copy(trainer)
    other.graphed_step = None
    return other


def compiled(trainer: Any) -> Any:
    """The same trainer, whose loss, forwards and backwards, is computed by what torch.compile makes of it."""
    other = copy.copy(trainer)
    other.summed_losses = torch.compile(trainer.summed_losses, dynamic=False)
    return other


def with_other_linear(trainer: Any) -> Any:
    """The same trainer, whose frozen layers in float32 take the other one of `ops.linear`'s two ways."""
    other = copy.copy(trainer)

    def step(batch: dict[str, Tensor]) -> Any:
        with mock.patch.object(ops, "_ONEDNN_IS_FASTER", not ops._ONEDNN_IS_FASTER):
            return trainer.forward_backward(batch)

    other.forward_backward = step
    return other


def prepare(
    way: Way, trainers: Sequence[Any], batch_size: int, begun: dict[Any, tuple[Rounds, int | None, str]]
) -> Way:
    """Takes the first steps, and says what is to be known of them.

    Args:
        begun: what is known of trainers that have taken theirs; these are put there.
    """
    start = time.perf_counter()
    try:
        for trainer in trainers:
            if trainer not in begun:
                step = partial(trainer.forward_backward, batch_for(trainer, batch_size))
                rounds = Rounds(step, trainer.device)
                begun[trainer] = (rounds, *first_steps(rounds, trainer))
        all_rounds, memory, why = zip(*(begun[trainer] for trainer in trainers), strict=True)
        way.rounds = list(all_rounds)
        way.said = f"not replayed: {why[-1]}" if why[-1] else ""
    except torch.OutOfMemoryError:
        way.said, way.rounds = "too little memory", []
    except Exception as error:
        if way.name != COMPILED:
            raise
        way.said, way.rounds = f"cannot be compiled: {in_few_words(error)}", []
    else:
        if way.name == COMPILED:
            way.said = f"in {time.perf_counter() - start:.0f} s"
        known = [each for each in memory if each is not None]
        way.memory = round(way.carried_on(known)) if len(known) == len(memory) else None
    return way


def in_few_words(error: Exception, most: int = 120) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= most else words[: most - 1] + "…"


# --- kernels ----------------------------------------------------------------------------------------------


def kernels_of(step: Callable[[], object]) -> int | None:
    """How many kernels a GPU runs in a step; None where the profiler sees none."""
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        for _ in range(2):  # the first time the profiler itself is made ready
            try:
                with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                    step()
                    torch.cuda.synchronize()
                profiler.export_chrome_trace(str(file))
            except RuntimeError:
                return None
            found = kernels_in(json.loads(file.read_text(encoding="utf-8", errors="replace")))
    return found or None


def kernels_in(trace: dict[str, Any]) -> int:
    """Kernels in a profiler's trace; copies, and calls of the host, are none."""
    return sum(event.get("cat") == "kernel" for event in trace["traceEvents"])


# --- the report -------------------------------------------------------------------------------------------


def report(
    args: argparse.Namespace,
    results: dict[str, tuple[list[list[Way]], dict[int, Errors]]],
    machine: Rates,
    loads: Sequence[float],
) -> list[str]:
    """The measurement in words."""
    on_gpu = machine.device == "cuda"
    seconds = FILLED[machine.device] if args.seconds is None else args.seconds
    ways = [way for groups, _ in results.values() for group in groups for way in group]
    lines = [f"# A training step, batch {args.batch_size}, {args.prec}", ""]
    lines += conditions(["torch"], loads)
    lines += [
        f"{model_line(args)}; {args.rounds} interleaved rounds, after a warm-up; median and range",
        machine.line(),
        "- Floor: operations of a step over that rate, and which share of the rate its seconds reach",
        f"- Ratios are of each round: the plain way's seconds in {args.plain_prec} over those of the way",
        "- Differences of ours: the largest over the largest value of the plain way's, in float64; in "
        "brackets, with how many classes",
        memory_line(),
        f"- In each turn, a way takes a step to warm up, and then as many as fill {seconds} s",
    ]
    if on_gpu:
        lines += [
            "- Ours is replayed as a CUDA graph, unless the table says why not; eager is ours with "
            "TRAIN.CUDA_GRAPHS off",
            "- Kernels: of a step computed anew; a replayed one launches them with one call",
        ]
    if any(len(way.sizes) > 1 for way in ways):
        lines.append(scaled_line())
    for name, (groups, errors) in results.items():
        cells = []
        for group in groups:
            plain = next((way for way in group if way.name == PLAIN), None)
            cells += [way.row(plain, machine, in_brackets(way.classes, args.check, errors)) for way in group]
        lines += ["", f"## {name}", "", table(cells, COLUMNS if on_gpu else COLUMNS[:-1])]
    return lines


def in_brackets(classes: int, most: int, errors: dict[int, Errors]) -> str:
    checked = min(classes, most)
    if checked not in errors:
        return "–"
    logits, gradients = errors[checked]
    return f"{logits:.0e}, {gradients:.0e}" + ("" if checked == classes else f" ({checked})")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser(__doc__, classes=(19, 50, 100))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[OURS, PLAIN])
    parser.add_argument("--options", nargs="*", default=[], help="KEY VALUE pairs of settings of ours")
    args = parser.parse_args(argv)
    if is_refused(args):
        return 1
    usual = args.ways == [OURS, PLAIN]
    file = result_path(
        "step", args, f"batch{args.batch_size}", args.prec, *([] if usual else args.ways), *args.options
    )
    machine = measure_rates(args.prec)
    results: dict[str, tuple[list[list[Way]], dict[int, Errors]]] = {}
    loads: list[float] = []
    with weights_of(args.backbone) as weights:
        for name in args.trainers:
            progress(f"{name} ...")
            groups, errors, those = measure(name, args, weights)
            results[name] = (groups, errors)
            loads += those
            write(file, report(args, results, machine, loads))  # the next one may need too much memory
    kernels: dict[int, int | None] = {}  # last of all: a profiler may leave something behind that takes time
    for way in (way for groups, _ in results.values() for group in groups for way in group):
        if way.counted and id(way.counted) not in kernels:
            kernels[id(way.counted)] = kernels_of(way.counted)
        way.kernels = kernels.get(id(way.counted))
    save(file, report(args, results, machine, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
