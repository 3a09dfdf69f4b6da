"""A whole training, carried on from some steps: minutes, ours and the plain way's, and what decides them.

    python -m benchmarks.training                      # MaPLe on 1000 classes × 16 shots, 5 epochs, ViT-B/16
    python -m benchmarks.training --steps 100 --plain-steps 10 --workers 16

An epoch is run as `train.py` runs it, by the engine's loop with its loader and workers, and ends after some
steps. All images are decoded before, and kept in memory: drawn photos of 500 × 375 pixels, as many as these
steps take. The plain way is the reference's; it has the same images from the same loader. Beside these stand
the model alone, with a batch that is there, and the loader alone. CLIP's weights are random, as no time
depends on them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    CPU,
    Rounds,
    batch_for,
    build,
    build_parser_of_ours,
    carried_on,
    is_refused,
    memory_line,
    milliseconds,
    model_line,
    notice_in,
    one_line_errors,
    plain_sizes,
    progress,
    result_path,
    save,
    scaled_line,
    settle,
    spread,
    table,
    weights_of,
)
from benchmarks.loader import draw_photos
from benchmarks.machine import conditions, load_average, peak_memory, synchronize
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from experiments.costs.synthetic import registered

PHOTOS = 64  # drawn ones; the others are the same under other names, and are decoded and kept as any
WARM_UPS = 5  # steps of the epoch before the measured ones
GIGABYTES = 1000  # for decoded images: all that there are


class PhotosInTurn(DatasetBase):
    """The photos in `DATASET.ROOT`, one after the other one for each name of `DATASET.OWN.CLASS_LIST`."""

    def __init__(self, cfg: Any) -> None:
        self.template = cfg.DATASET.OWN.TEMPLATE
        names = list(cfg.DATASET.OWN.CLASS_LIST)
        paths = sorted(str(path) for path in Path(cfg.DATASET.ROOT).iterdir())
        labels = [number % len(names) for number in range(len(paths))]
        each = zip(paths, labels, strict=True)
        super().__init__(train_x=[Datum(path, label, classname=names[label]) for path, label in each])


class FirstBatches:
    """The first batches of a loader, with the seconds of those behind the first few.

    Attributes:
        started: seconds until the first batch is there.
        seconds: of a step, in each of some equal parts; once all were taken.
    """

    def __init__(self, loader: Any, parts: int, steps: int, device: torch.device) -> None:
        self.loader = loader
        self.part = steps // parts
        self.steps = self.part * parts
        self.device = device
        self.started = 0.0
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return WARM_UPS + self.steps

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        batches = iter(self.loader)
        clock = []
        for number in range(len(self)):
            if number >= WARM_UPS and (number - WARM_UPS) % self.part == 0:
                synchronize(self.device)
                clock.append(time.perf_counter())
            batch = next(batches)
            self.started = self.started or time.perf_counter() - start
            yield batch
        synchronize(self.device)
        clock.append(time.perf_counter())
        self.seconds = [(end - begin) / self.part for begin, end in itertools.pairwise(clock)]


@dataclass
class Run:
    """Steps of an epoch: seconds of each, in each part.

    Attributes:
        started: seconds at the beginning of an epoch until there is a batch.
        alone: seconds of the same step without a loader, of some rounds.
        model: bytes of the model.
        memory: bytes beside it, at the peak; None where the system cannot tell.
        said: why steps are not replayed.
    """

    seconds: list[float]
    started: float
    alone: list[float]
    model: int
    memory: int | None
    said: str


def run(trainer: Any, steps: int, args: argparse.Namespace) -> Run:
    """Some steps of the trainer's first epoch."""
    device = trainer.device
    batches = FirstBatches(trainer.train_loader_x, min(args.rounds, steps), steps, device)
    alone = Rounds(partial(trainer.forward_backward, batch_for(trainer, args.batch_size)), device)
    said: list[str] = []

    def epoch() -> None:
        said.append(settle(alone, trainer))
        alone.warm_up(args.seconds)
        for _ in range(args.rounds):
            alone.take_time()
        trainer.train_loader_x = batches
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
            trainer.init_writer(folder)  # as in a run: curves take time, too
            trainer.before_epoch()
            trainer.run_epoch()
            trainer.check_losses()
            trainer.close_writer()
        said.append(notice_in(printed.getvalue()))  # a replay is compared again in each epoch

    memory = peak_memory(epoch, device)
    model = sum(each.numel() * each.element_size() for each in trainer.model.parameters())
    return Run(batches.seconds, batches.started, alone.wall, model, memory, next(filter(None, said), ""))


@dataclass
class Way:
    """One way of training a method with some classes.

    Attributes:
        sizes: with how many classes it is run: that many, or two numbers to carry on from.
    """

    name: str
    classes: int
    sizes: Sequence[int]
    runs: list[Run]

    def step(self) -> list[float]:
        """Seconds, in each part."""
        return self._carried_on([run.seconds for run in self.runs])

    def alone(self) -> list[float]:
        """Seconds of a step without a loader, in each round."""
        return self._carried_on([run.alone for run in self.runs])

    def _carried_on(self, values: Sequence[Sequence[float]]) -> list[float]:
        return [carried_on(self.classes, self.sizes, each) for each in zip(*values, strict=True)]

    def minutes(self, args: argparse.Namespace, decoding: float) -> list[float]:
        """Of the whole training, by the seconds of each part."""
        steps, started = args.images // args.batch_size, self.runs[-1].started
        each_epoch = [started + steps * seconds for seconds in self.step()]
        return [(decoding * args.images + args.epochs * seconds) / 60 for seconds in each_epoch]

    def row(self, args: argparse.Namespace, decoding: float) -> list[str]:
        scaled, last = len(self.sizes) > 1, self.runs[-1]
        more = "unknown" if last.memory is None else f"{last.memory / 2**30:.2f}"
        return [
            f"{self.classes:,}",
            self.name
            + (", scaled" if scaled else "")
            + (f" (not replayed: {last.said})" if last.said else ""),
            spread(self.minutes(args, decoding), 1),
            spread([args.batch_size / seconds for seconds in self.step()], 1),
            milliseconds(self.step()),
            milliseconds(self.alone()),
            "–" if scaled else f"{last.model / 2**30:.2f} + {more}",
        ]


COLUMNS = (
    *("classes", "way", "minutes in all", "images a second", "ms a step", "ms a step, no loader"),
    "GiB: model + more",
)


@dataclass
class Measured:
    """What came of one method and number of classes.

    Attributes:
        plain: None where it was not asked for.
        decoding: seconds of an image; each is decoded once in the whole training.
        loader: images a second that it gives while nobody else computes, in each part.
    """

    ours: Way
    plain: Way | None
    decoding: float
    loader: list[float]

    def rows(self, args: argparse.Namespace) -> list[list[str]]:
        return [way.row(args, self.decoding) for way in (self.ours, self.plain) if way]

    def lines(self, name: str, args: argparse.Namespace) -> list[str]:
        """What the whole takes beside steps, and what decides how long a step is."""
        which = f"- {name}, {self.ours.classes:,} classes:"
        model = args.batch_size / statistics.median(self.ours.alone())
        slower = "loader" if statistics.median(self.loader) < model else "model"
        lines = [
            f"{which} the loader gives {spread(self.loader, 0)} images a second by itself, with "
            f"{args.workers} workers, and our model takes {model:,.0f}: the {slower} is the bottleneck",
            f"{which} {self.ours.runs[-1].started:.2f} s of each epoch are for its first batch, and "
            f"{self.decoding * args.images:.1f} s before the first epoch for decoding",
        ]
        if self.plain:
            plain, ours = (
                statistics.median(way.minutes(args, self.decoding)) for way in (self.plain, self.ours)
            )
            lines.append(f"{which} the plain way takes {plain / ours:.2f} times as many minutes")
        return lines


def measure(name: str, classes: int, args: argparse.Namespace, weights: str, folder: str) -> Measured:
    """Ours, then the plain way."""
    options = ["DATASET.NAME", PhotosInTurn.__name__, "DATASET.ROOT", folder]
    options += ["DATALOADER.TRAIN_X.LOADER", "build_data_loader", "DATALOADER.CACHE_GB", str(GIGABYTES)]
    options += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch_size)]
    options += ["DATALOADER.NUM_WORKERS", str(args.workers)]
    with registered(DATASET_REGISTRY, PhotosInTurn):
        trainer = build(name, classes, args.backbone, weights, args.prec, options)
    loader = trainer.train_loader_x
    cache = loader.dataset.cache
    start = time.perf_counter()
    cache.fill((item.impath for item in loader.dataset.data_source), max(1, args.workers))
    decoding = (time.perf_counter() - start) / len(cache)
    batches = FirstBatches(loader, min(args.rounds, args.steps), args.steps, CPU)
    for _ in batches:
        pass
    ours = Way("ours", classes, [classes], [run(trainer, args.steps, args)])
    del trainer
    plain = None
    if args.plain_steps:
        plain = Way("plain", classes, plain_sizes(classes), [])
        for size in plain.sizes:
            with registered(DATASET_REGISTRY, PhotosInTurn):
                trainer = build(name, size, args.backbone, weights, args.plain_prec, options, plain=True)
            trainer.train_loader_x.dataset.cache = cache
            plain.runs.append(run(trainer, args.plain_steps, args))
            del trainer
    return Measured(ours, plain, decoding, [args.batch_size / each for each in batches.seconds])


def make_photos(folder: Path, count: int) -> None:
    """Files of drawn photos; all but the first few are further names of these."""
    draw_photos(folder, min(count, PHOTOS))
    for number in range(PHOTOS, count):
        os.link(folder / f"{number % PHOTOS:04d}.jpg", folder / f"again_{number:07d}.jpg")


def report(
    args: argparse.Namespace, results: dict[str, list[Measured]], photos: int, loads: Sequence[float]
) -> list[str]:
    """The measurement in words."""
    lines = [
        f"# Training on {args.images:,} images, {args.epochs} epochs in batches of {args.batch_size}, "
        f"{args.prec}",
        "",
        *conditions(["torch"], loads),
        model_line(args),
        f"- Carried on: {args.steps} steps of an epoch were run, {args.plain_steps} of the plain way, after "
        f"a warm-up, for the {args.images // args.batch_size:,} of each epoch. Minutes are of all epochs, "
        "with the start of the workers in each, and of decoding; without saving, and without a test",
        f"- The engine's loop and loader; {photos:,} photos, decoded before, in memory. Median and range of "
        f"up to {args.rounds} parts, one behind the other",
        f"- The plain way computes in {args.plain_prec}, and has the same loader",
        memory_line("in these steps"),
    ]
    measured = [(name, each) for name, rows in results.items() for each in rows]
    if any(each.plain and len(each.plain.sizes) > 1 for _, each in measured):
        lines.append(scaled_line())
    for name, each in measured:
        lines += each.lines(name, args)
    for name, rows in results.items():
        cells = [row for each in rows for row in each.rows(args)]
        lines += ["", f"## {name}", "", table(cells, COLUMNS)]
    return lines


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser_of_ours(__doc__, classes=(1000,))
    add = parser.add_argument
    add("--plain-prec", default="fp32", help="precision of the plain way; the papers' code computes in fp16")
    add("--images", type=int, default=16_000, help="of the whole training")
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=4)
    add("--workers", type=int, default=8, help="of the loader")
    add("--steps", type=int, default=200, help="that are run")
    add("--plain-steps", type=int, default=20, help="of the plain way; 0 leaves it out")
    args = parser.parse_args(argv)
    if is_refused(args):
        return 1
    results: dict[str, list[Measured]] = {}
    loads = load_average()
    photos = max((WARM_UPS + max(args.steps, args.plain_steps)) * args.batch_size, *args.classes)
    with weights_of(args.backbone) as weights, tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), photos)
        for name in args.trainers:
            results[name] = []
            for classes in args.classes:
                progress(f"{name}, {classes} classes ...")
                results[name].append(measure(name, classes, args, weights, folder))
                loads += load_average()
    usual = (args.images, args.epochs) == (16_000, 5)
    size = [] if usual else [f"{args.images}images", f"{args.epochs}epochs"]
    file = result_path("training", args, *size, f"batch{args.batch_size}", args.prec)
    save(file, report(args, results, photos, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
