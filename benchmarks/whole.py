"""Whole trainings by `train.py`, on new views in each epoch and on fixed ones whose constant states are kept.

    python -m benchmarks.whole                            # ViT-B/16, 8 classes of drawn photos
    python -m benchmarks.whole --backbone ViT-Shapes/8    # the embedded CLIP and dataset, with accuracy

Each training is a process of its own: seconds and memory are those of its `result.json`, from the reading of
the images to the saved model, with decoding and the computation of what is kept. CLIP's weights are random
but for an embedded backbone, which learns the base classes of Shapes, whatever `--classes` says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import (
    build_parser_of_ours,
    gibibytes,
    is_refused,
    model_line,
    one_line_errors,
    progress,
    ratios,
    result_path,
    save,
    spread,
    table,
    weights_of,
)
from benchmarks.loader import draw_photos
from benchmarks.machine import conditions, load_average
from dassl.engine import TRAINER_REGISTRY
from datasets import shapes
from experiments.configuration import ROOT
from experiments.costs.complexity import find_method
from prompted_clip.errors import UserError
from prompted_clip.factory import EMBEDDED

TRAINERS = ["MMRL", "MMA"]
SHAPES_CLASSES = 24  # the base classes of the embedded dataset
NEW, KEPT = "new", "kept"
COLUMNS = (
    *("method", "views of an image", "seconds", "new / fixed", "processor seconds", "new / fixed, processor"),
    *("peak memory, GiB", "accuracy"),
)


@dataclass
class Trainings:
    """What came of the rounds of one way: seconds by the clock and of all cores, bytes, accuracy."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[int | None] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    def add(self, result: Path, cpu: float) -> None:
        found = json.loads(result.read_text(encoding="utf-8"))
        self.seconds.append(found["seconds"]["training"])
        self.cpu.append(cpu)
        memory = found["peak_memory_bytes"]
        self.memory.append(memory["device"] or memory["process"])
        self.accuracy.append(found["results"]["accuracy"])


def draw_classes(folder: Path, classes: int, shots: int) -> None:
    """Drawn photos, as many as are trained on and one for the test: <folder>/{train,test}/<class>/*.jpg."""
    folder.mkdir()
    draw_photos(folder, classes * (shots + 1))
    for number, photo in enumerate(sorted(folder.glob("*.jpg"))):
        part = "test" if number < classes else "train"
        place = folder / part / f"class {number % classes:04d}"
        place.mkdir(parents=True, exist_ok=True)
        photo.rename(place / photo.name)


def train(
    name: str, views: int, args: argparse.Namespace, weights: str, data: Path, output: Path
) -> tuple[Path, float]:
    """Trains in another process, with `views` fixed ones or, if 0, new ones.

    Returns:
        Its result, and the processor seconds of the whole process.

    Raises:
        ValueError: the training ended with an error, whose last words it has.
    """
    method = find_method(name, args.backbone)
    trainer = TRAINER_REGISTRY.get(method.trainer)
    embedded = args.backbone in EMBEDDED
    options = ["DATASET.NUM_SHOTS", str(args.shots), "DATALOADER.VIEWS", str(views)]
    options += [f"TRAINER.{trainer.settings_key()}.PREC", args.prec]
    if "DESCRIPTIONS" in trainer.settings:
        options += [f"TRAINER.{trainer.settings_key()}.DESCRIPTIONS", "template"]
    options += ["DATASET.SUBSAMPLE_CLASSES", "base"] if embedded else ["MODEL.BACKBONE.PATH", weights]
    command = [sys.executable, "train.py", "--trainer", method.trainer, "--seed", "1", "--root", str(data)]
    command += ["--backbone", args.backbone]
    command += ["--dataset-config-file", f"configs/datasets/{'shapes' if embedded else 'folder'}.yaml"]
    command += ["--config-file", str(method.file), "--output-dir", str(output), *options, *args.options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    before = os.times()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{name} with DATALOADER.VIEWS {views} ended with {done.returncode}: {''.join(last)}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return output / "result.json", cpu


def rows_of(name: str, ways: dict[str, Trainings], args: argparse.Namespace) -> list[list[str]]:
    rows = []
    for way, found in ways.items():
        new = ways.get(NEW) if way == KEPT else None
        rows.append(
            [
                name,
                "new in each epoch" if way == NEW else f"{args.views} fixed",
                spread(found.seconds, 1),
                ratios(new.seconds, found.seconds) if new else "–",
                spread(found.cpu, 1),
                ratios(new.cpu, found.cpu) if new else "–",
                gibibytes(max(found.memory) if None not in found.memory else None),  # type: ignore[type-var]
                f"{statistics.mean(found.accuracy):.2f}" if args.backbone in EMBEDDED else "–",
            ]
        )
    return rows


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser_of_ours(__doc__, classes=(8,))
    parser.set_defaults(trainers=TRAINERS, rounds=1)
    add = parser.add_argument
    add("--shots", type=int, default=16)
    add("--views", type=int, default=2, help="fixed ones of each image")
    add("--ways", nargs="+", choices=(NEW, KEPT), default=[NEW, KEPT])
    add("--options", nargs="*", default=[], help="KEY VALUE pairs of settings")
    args = parser.parse_args(argv)
    if is_refused(args):
        return 1
    embedded = args.backbone in EMBEDDED
    found: dict[tuple[str, int], dict[str, Trainings]] = {}
    loads: list[float] = []
    with weights_of(args.backbone) as weights, tempfile.TemporaryDirectory() as folder:
        for classes in [SHAPES_CLASSES] if embedded else args.classes:
            data = Path(folder) / f"{classes}"
            if embedded:  # before, as drawing takes seconds
                shapes.draw_dataset(str(data / "shapes"))
            else:
                draw_classes(data, classes, args.shots)
            for name in args.trainers:
                ways = found[name, classes] = {way: Trainings() for way in args.ways}
                for number in range(args.rounds):
                    for way, trainings in ways.items():
                        loads += load_average()
                        progress(f"{name}, {classes} classes, {way} views, round {number + 1} ...")
                        views = args.views if way == KEPT else 0
                        output = Path(folder) / f"{name}_{classes}_{way}_{number}"
                        trainings.add(*train(name, views, args, weights, data, output))
    lines = [
        f"# Whole trainings on {args.shots} images per class, {args.prec}",
        "",
        *conditions(["torch"], loads),
        f"{model_line(args)}; {args.rounds} interleaved rounds: median and range",
        "- Seconds of training, with decoding and with the computation of what is kept; not the test. "
        "Those of the processor are of the whole process, with imports and the test",
        "- Memory of the whole process with torch, or a GPU's"
        + (", in the largest round" * (args.rounds > 1)),
        f"- Images: {'the base classes of Shapes' if embedded else 'drawn photos of 500 × 375 pixels'}",
    ]
    for classes in dict.fromkeys(each for _, each in found):
        ours = [rows_of(name, ways, args) for (name, size), ways in found.items() if size == classes]
        lines += [
            "",
            f"## {classes} classes",
            "",
            table([row for each in ours for row in each], COLUMNS),
        ]
    names = [] if args.trainers == TRAINERS else args.trainers
    given = argparse.Namespace(**{**vars(args), "trainers": names})
    save(result_path("whole", given, f"{args.views}views", args.prec), lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
