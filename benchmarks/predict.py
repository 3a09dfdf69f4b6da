"""Predictions of a trained model, and of its exports: images a second, memory, sizes, and the first one.

    python -m benchmarks.predict                     # MaPLe on ViT-B/16, 100 classes, batches of 16

Each way is a process of its own, by turns: the model in float32 and bfloat16, its ONNX file in float32 and
int8. It loads what was saved, and computes a batch of noise, again and again. The first prediction is a
whole program, from its start to the class of one photo, on one core, beside a program that imports torch and
reads CLIP's weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import prompted_clip
from benchmarks.harness import (
    add_common,
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
from benchmarks.machine import conditions, load_average
from dassl.engine import TRAINER_REGISTRY
from experiments.costs.complexity import find_method
from experiments.costs.synthetic import class_names, image_size
from trainers import export

EMBEDDED_FILE = Path(prompted_clip.__file__).parent / "embedded" / "vit_shapes_8.safetensors"
WAYS = {"model fp32": "fp32", "model bf16": "bf16", "ONNX fp32": "image.onnx", "ONNX int8": "image_int8.onnx"}
COLUMNS = ("way", "images a second", "÷ model fp32", "MB at the peak", "file, MB")
FIRST = "from trainers import load; load({saved!r}, weights={weights!r}, device='cpu').predict({photo!r})"
LEAST = "import torch; from safetensors.torch import load_file; load_file({read!r})"
# Programs of their own, so that a way takes no memory but its own.
MODEL = """
import torch
from trainers import load
torch.set_num_threads({threads})
model, given = load({saved!r}, weights={weights!r}, device="cpu", precision={of!r}), torch.from_numpy(images)
def compute(): model.probabilities(given)
"""
ONNX = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
session = onnxruntime.InferenceSession({saved!r} + "/graphs/{of}", options)
def compute(): session.run(None, dict(images=images))
"""
MEASURE = """
import json, time
import numpy as np
images = np.random.RandomState(0).standard_normal(({batch}, 3, {side}, {side})).astype(np.float32)
{way}
compute()
start, batches = time.perf_counter(), 0
while batches == 0 or time.perf_counter() - start < {seconds}:
    compute()
    batches += 1
rate = batches * {batch} / (time.perf_counter() - start)
try:
    peaks = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
except OSError:  # another system
    peaks = []
print(json.dumps(dict(rate=rate, peak=1024 * int(peaks[0]) / 1e6 if peaks else float("nan"))))
"""


def in_a_process(code: str, threads: int) -> str:
    """What a program prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def seconds_of(code: str) -> float:
    """Of a program on one core, from its start to its end."""
    start = time.perf_counter()
    in_a_process(code, threads=1)
    return time.perf_counter() - start


def prepare(args: argparse.Namespace, weights: str, saved: Path) -> None:
    """The saved folder, and the graphs in it."""
    names = class_names(args.classes[0], args.backbone)
    trainer_class = TRAINER_REGISTRY.get(find_method(args.trainers[0], args.backbone).trainer)
    model = trainer_class.from_clip(args.backbone, names, weights=weights, device="cpu")
    model.save_pretrained(saved, classifier=True)
    export.export_onnx(model, saved / "graphs", ("fp32", "int8"))
    export.pictures(1)[0].save(saved / "photo.png")


def report(
    args: argparse.Namespace,
    found: dict[str, list[dict[str, float]]],
    first: Sequence[float],
    least: Sequence[float],
    loads: Sequence[float],
    sizes: dict[str, float],
) -> list[str]:
    """The measurement in words."""
    rates = {way: [each["rate"] for each in rounds] for way, rounds in found.items()}
    rows = [
        [
            way,
            spread(rates[way], 1),
            ratios(rates[way], rates["model fp32"]),
            spread([each["peak"] for each in rounds], 0),
            f"{sizes[WAYS[way]]:.1f}" if way.startswith("ONNX") else "the saved folder's, and CLIP's",
        ]
        for way, rounds in found.items()
    ]
    saved = ", ".join(f"{name} {sizes[name]:.1f}" for name in ("model.safetensors", "classifier.safetensors"))
    texts = ", ".join(f"{name} {sizes[name]:.1f}" for name in ("text.onnx", "text_int8.onnx"))
    return [
        f"# Predictions in batches of {args.batch_size}, {args.classes[0]:,} classes, {args.trainers[0]}",
        "",
        *conditions(["torch", "onnxruntime"], loads),
        f"{model_line(args)}, images of {image_size(args.backbone)} pixels; {args.rounds} rounds by turns, "
        f"each way in a process of its own, {args.seconds:g} s after a warm-up; median and range",
        "- MB at the peak: of the process's resident set, with Python and all libraries",
        f"- Saved folder, MB: {saved}; CLIP's in float16: {sizes['CLIP']:.1f}; for other classes: {texts}",
        f"- First prediction on one core: {spread(first, 1)} s; a program that imports torch and reads "
        f"CLIP's weights: {spread(least, 1)} s; ratio {ratios(first, least)}",
        "",
        table(rows, COLUMNS),
    ]


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trainers", nargs=1, default=["MaPLe"], help="one method")
    add("--classes", nargs=1, type=int, default=[100])
    add("--backbone", default="ViT-B/16", help="with random weights, unless it is an embedded one")
    add("--batch-size", type=int, default=16)
    add_common(parser)
    parser.set_defaults(usual_classes=[100], rounds=3, seconds=10.0)
    return parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = command_parser().parse_args(argv)
    if is_refused(args):
        return 1
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    first: list[float] = []
    least: list[float] = []
    loads: list[float] = []
    with weights_of(args.backbone) as weights, tempfile.TemporaryDirectory() as folder:
        saved, read = Path(folder) / "saved", Path(weights or EMBEDDED_FILE)
        progress("exporting ...")
        prepare(args, weights, saved)
        given = {
            **{"saved": str(saved), "weights": weights, "photo": str(saved / "photo.png"), "read": str(read)},
            **{"side": image_size(args.backbone), "batch": args.batch_size},
            **{"threads": args.threads, "seconds": args.seconds},
        }
        for number in range(args.rounds):
            loads += load_average()
            progress(f"round {number + 1} of {args.rounds} ...")
            ways = [*WAYS, *WAYS][number % len(WAYS) :][: len(WAYS)]
            for way in ways:
                prepared = (ONNX if way.startswith("ONNX") else MODEL).format(of=WAYS[way], **given)
                code = MEASURE.format(way=prepared, **given)
                found[way].append(json.loads(in_a_process(code, args.threads)))
            first.append(seconds_of(FIRST.format(**given)))
            least.append(seconds_of(LEAST.format(**given)))
        files = (*saved.iterdir(), *(saved / "graphs").iterdir())
        sizes = {path.name: path.stat().st_size / 1e6 for path in files}
        sizes["CLIP"] = read.stat().st_size / 1e6
    file = result_path("predict", args, f"batch{args.batch_size}")
    save(file, report(args, found, first, least, loads, sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
