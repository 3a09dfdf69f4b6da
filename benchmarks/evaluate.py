"""An evaluation beside the plain way of computing it: seconds, operations, and the same logits.

    python -m benchmarks.evaluate                 # MaPLe on ViT-B/16, 19, 100 and 1000 classes, 1000 images
    python -m benchmarks.evaluate --trainers MaPLe CoOp CoCoOp ZeroshotCLIP --images 5000

The plain way is the reference's: text features for every batch of images, 77 tokens for each class, and every
position in the last blocks. Measured are one pass over the text and one batch of images of each way, by turns
in one process; the seconds of an evaluation are put together from these. Images are noise. Where text depends
on the image (CoCoOp), a smaller batch with its text is measured. In float64 the logits of both are compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import (
    Rounds,
    batch_for,
    build,
    build_parser,
    carried_on,
    in_float64,
    interleaved,
    is_refused,
    model_line,
    one_line_errors,
    plain_sizes,
    progress,
    ratios,
    relative,
    result_path,
    save,
    scaled_line,
    spread,
    table,
    weights_of,
)
from benchmarks.machine import Rates, conditions, measure_rates
from experiments.costs.flops import image_and_text_flops

CONDITIONAL_BATCH = 2  # images with a text of their own each
COMPARED = 4  # images whose logits are compared


@dataclass
class Way:
    """One way of computing a method with some classes, measured in parts.

    Attributes:
        images: of a batch.
        image: a batch, with its logits, and with its text where that is made of the image.
        text: all classes' text; None where it is made of the image.
        flops: operations of one image, and of the text.
    """

    trainer: Any
    images: int
    image: Rounds
    text: Rounds | None
    flops: tuple[int, int]


def prepare(trainer: Any, batch_size: int) -> Way:
    model = trainer.model
    trainer.set_model_mode("eval")
    conditional = model.prompt_learner.conditional
    size = min(batch_size, CONDITIONAL_BATCH) if conditional else batch_size
    images = batch_for(trainer, size)["img"]
    with torch.no_grad(), trainer.precision.autocast():
        features = None if conditional else model.encode_text()
    flops = image_and_text_flops(model, images[:1])

    @torch.no_grad()
    def image() -> None:
        with trainer.precision.autocast():
            if features is None:
                model(images)
            else:
                model.logits(model.encode_image(images), features)

    @torch.no_grad()
    def text() -> None:
        with trainer.precision.autocast():
            model.encode_text()

    parts = [Rounds(compute, trainer.device) for compute in (image, text)]
    return Way(trainer, size, parts[0], None if conditional else parts[1], flops)


def difference(ours: Any, plain: Any) -> float:
    """Largest relative difference of the logits, in float64."""
    found = []
    for trainer in (ours, plain):
        trainer.set_model_mode("eval")
        images = batch_for(trainer, COMPARED)["img"]
        with torch.no_grad(), in_float64(trainer) as model:
            found.append(model(images.double()))
    return relative(found[0], found[1])


@dataclass
class Measured:
    """What came of one number of classes: seconds of an evaluation, one for each round.

    Attributes:
        images: that are evaluated.
        text: seconds of our text, if it is computed once.
        scaled: whether the plain way's text is carried on from fewer classes.
        error: largest relative difference of the logits, in float64, with `checked` classes.
        flops: of an evaluation, ours and the plain way's.
    """

    classes: int
    images: int
    wall: list[float]
    cpu: list[float]
    plain_wall: list[float]
    plain_cpu: list[float]
    text: list[float] | None
    scaled: bool
    error: float
    checked: int
    flops: tuple[float, float]

    def rate(self, seconds: Sequence[float]) -> str:
        """Images a second."""
        return spread([self.images / each for each in seconds], 1)

    def row(self, machine: Rates) -> list[str]:
        return [
            f"{self.classes:,}",
            ratios(self.plain_wall, self.wall),
            ratios(self.plain_cpu, self.cpu),
            self.rate(self.wall),
            self.rate(self.plain_wall) + (", scaled" if self.scaled else ""),
            in_seconds(self.wall),
            "with each image" if self.text is None else in_seconds(self.text),
            " / ".join(f"{count / 1e9:,.0f}" for count in self.flops),
            f"{in_seconds([machine.floor(self.flops[0])]).partition(' ')[0]}; "
            f"{spread([machine.share(self.flops[0], seconds) for seconds in self.wall], 0)} %",
            f"{self.error:.0e}" + ("" if self.checked == self.classes else f" ({self.checked})"),
        ]


COLUMNS = (
    *("classes", "plain / ours, wall", "plain / ours, processor", "images a second", "the same, plain"),
    *("s", "of it text once, s", "GFLOPs, ours / plain", "floor, s; how near", "difference of logits"),
)


def in_seconds(values: Sequence[float]) -> str:
    return spread(values, 1 if statistics.median(values) >= 10 else 3)


def measure(name: str, args: argparse.Namespace, weights: str) -> tuple[list[Measured], list[float]]:
    """All numbers of classes by turns, and the load averages."""
    sizes = {classes: plain_sizes(classes) for classes in args.classes}
    ours = {
        classes: prepare(build(name, classes, args.backbone, weights, args.prec), args.batch_size)
        for classes in args.classes
    }
    plain = {
        size: prepare(build(name, size, args.backbone, weights, args.plain_prec, plain=True), args.batch_size)
        for size in sorted({size for each in sizes.values() for size in each})
    }
    ways = [*ours.values(), *plain.values()]
    # Where images have no text of their own, their seconds do not depend on the classes: taken once.
    images = {id(way): way for way in ways}
    if ways[0].text is not None:
        images = {id(way): group[max(group)] for group in (ours, plain) for way in group.values()}
    parts = [way.image for way in {id(way): way for way in images.values()}.values()]
    parts += [way.text for way in ways if way.text is not None]
    loads = interleaved(parts, args.rounds, args.seconds)
    batches = math.ceil(args.images / args.batch_size)

    def seconds(way: Way, kind: str, passes: int) -> list[float]:
        """Of an evaluation with this many passes over the text."""
        source = images[id(way)]
        image = [args.images / source.images * each for each in getattr(source.image, kind)]
        if way.text is None:
            return image
        return [one + passes * each for one, each in zip(image, getattr(way.text, kind), strict=True)]

    def operations(way: Way, passes: int) -> float:
        image, text = way.flops
        return args.images * image + (args.images if way.text is None else passes) * text

    results = []
    errors: dict[int, float] = {}  # by number of classes
    for classes, own in ours.items():
        others = [plain[size] for size in sizes[classes]]
        wall, cpu = (
            [
                carried_on(classes, sizes[classes], each)
                for each in zip(*(seconds(other, kind, batches) for other in others), strict=True)
            ]
            for kind in ("wall", "cpu")
        )
        checked = min(classes, args.check)
        if checked not in errors:
            errors[checked] = difference(
                *(build(name, checked, args.backbone, weights, plain=each) for each in (False, True))
            )
        results.append(
            Measured(
                classes=classes,
                images=args.images,
                wall=seconds(own, "wall", 1),
                cpu=seconds(own, "cpu", 1),
                plain_wall=wall,
                plain_cpu=cpu,
                text=None if own.text is None else own.text.wall,
                scaled=len(others) > 1,
                error=errors[checked],
                checked=checked,
                flops=(
                    operations(own, 1),
                    carried_on(classes, sizes[classes], [operations(each, batches) for each in others]),
                ),
            )
        )
    return results, loads


def report(
    args: argparse.Namespace, results: dict[str, list[Measured]], machine: Rates, loads: Sequence[float]
) -> list[str]:
    """The measurement in words."""
    lines = [f"# Evaluation of {args.images:,} images in batches of {args.batch_size}, {args.prec}", ""]
    lines += conditions(["torch"], loads)
    lines += [
        f"{model_line(args)}; {args.rounds} rounds by turns, after a warm-up; median and range",
        "- Put together from measured parts. Ours: one pass over the text, and the seconds of a batch of "
        f"images for all {args.images:,}; the plain way: a pass over the text for each batch, too. Where "
        f"text is made of the image, a batch of {CONDITIONAL_BATCH} images with their texts stands for all",
        machine.line(),
        "- Floor: operations of our evaluation over that rate, and which share of the rate our seconds reach",
        f"- Ratios are of each round: the plain way's seconds in {args.plain_prec} over ours",
        f"- Difference: the largest over the largest value of the plain way's, for {COMPARED} images in "
        "float64; in brackets, with how many classes",
        "- Images are where the model is; benchmarks.loader tells how fast they come there",
    ]
    if any(each.scaled for rows in results.values() for each in rows):
        lines.append(scaled_line())
    for name, rows in results.items():
        lines += ["", f"## {name}", "", table([each.row(machine) for each in rows], COLUMNS)]
    return lines


def command_parser() -> argparse.ArgumentParser:
    parser = build_parser(__doc__, classes=(19, 100, 1000))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=100, help="of images; 100 as configured")
    return parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = command_parser().parse_args(argv)
    if is_refused(args):
        return 1
    machine = measure_rates(args.prec)
    results: dict[str, list[Measured]] = {}
    loads: list[float] = []
    with weights_of(args.backbone) as weights:
        for name in args.trainers:
            progress(f"{name} ...")
            results[name], those = measure(name, args, weights)
            loads += those
    file = result_path("evaluate", args, f"{args.images}images", args.prec)
    save(file, report(args, results, machine, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
