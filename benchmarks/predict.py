"""Predictions of a trained model, of its exports, and of what one would take instead: images a second.

    python -m benchmarks.predict                          # MaPLe on ViT-B/16, 100 classes, drawn JPEGs
    python -m benchmarks.predict --folder PHOTOS          # on the JPEGs in a folder and those below it
    python -m benchmarks.predict --model output/RUN       # what was trained; with its accuracy on Shapes

Each way is a process of its own (`benchmarks/ways.py`), and they compute by turns: a batch of noise, and the
whole way from JPEGs to probabilities. Beside them stand open_clip's and timm's own way: zero-shot CLIP, and a
classifier with the same image encoder. In each round the rates of matmul and of the decoder are measured,
too: at these, the operations of an image and its decoding are the least that it takes. The first prediction
is a whole program, from its start to the class of one photo, on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prompted_clip
from benchmarks.harness import (
    add_common,
    is_refused,
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
from benchmarks.machine import Rates, conditions, load_average, measure_rates
from benchmarks.ways import DYNAMIC, FP32, STATIC, WAYS
from dassl.engine import TRAINER_REGISTRY
from experiments.costs.complexity import find_method
from experiments.costs.flops import image_and_text_flops
from experiments.costs.synthetic import class_names
from prompted_clip import PromptedCLIP
from prompted_clip.errors import UserError
from prompted_clip.predictions import images_below, tensor_of
from trainers import export, load
from trainers.commands.export import calibration_photos, embedded_test

ROOT = Path(__file__).parents[1]
EMBEDDED_FILE = Path(prompted_clip.__file__).parent / "embedded" / "vit_shapes_8.safetensors"
PLAIN, DECODER = "model fp32", "decoder"
ON_REQUEST = ("model fp32, compiled", "model bf16", "model fp16", "OpenVINO int8, dynamic")  # mostly slow
# The same encoder in open_clip and in timm.
THEIRS = {
    "ViT-B/32": ("ViT-B-32-quickgelu", "vit_base_patch32_clip_quickgelu_224"),
    "ViT-B/16": ("ViT-B-16-quickgelu", "vit_base_patch16_clip_quickgelu_224"),
    "ViT-L/14": ("ViT-L-14-quickgelu", "vit_large_patch14_clip_quickgelu_224"),
}
COLUMNS = ("way", "images a second", "÷ model fp32", "by processor time", "of the limit, %")
MORE = ("from JPEGs", "÷ model fp32", "of the limit, %", "MB at the peak", "file, MB")
FIRST = "from trainers import load; load({saved!r}, weights={weights!r}, device='cpu').predict({photo!r})"
LEAST = "import torch; from safetensors.torch import load_file; load_file({read!r})"


class Turns:
    """A way in a process of its own that waits for its turns."""

    def __init__(self, way: str, given: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.ways", way, json.dumps(given)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(given["threads"])}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment
        )
        self.way = way

    def take(self, turn: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(turn, file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise UserError(f"{self.way} ended; the reason is above. Leave it out: --ways names the others.")
        return json.loads(answer)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@dataclass
class Found:
    """Of a way, in each round, and on the test images.

    Attributes:
        tower, pipeline: images a second.
        spent: images of the tower per second of a processor.
        peak: MB.
        accuracy: in percent.
    """

    tower: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    pipeline: list[float] = field(default_factory=list)
    peak: float = 0.0
    accuracy: float | None = None


@dataclass
class Limits:
    """What the machine allows, in each round.

    Attributes:
        flops: of an image.
        machine: rates of matmul.
        decoded: photos a second.
    """

    flops: int
    machine: list[Rates] = field(default_factory=list)
    decoded: list[float] = field(default_factory=list)

    @property
    def tower(self) -> list[float]:
        """Images a second."""
        return [1 / each.floor(self.flops) for each in self.machine]

    @property
    def pipeline(self) -> list[float]:
        """The same cores decode and multiply."""
        return [1 / (1 / one + 1 / other) for one, other in zip(self.tower, self.decoded, strict=True)]


# --- what is measured -------------------------------------------------------------------------------------


def has_bf16() -> bool:
    """Whether oneDNN has this processor's instructions for bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def chosen_ways(args: argparse.Namespace, backbone: str) -> list[str]:
    """Those that were asked for, or all that this machine and the backbone allow."""
    if args.ways:
        return list(dict.fromkeys([PLAIN, *args.ways]))
    left_out = {DECODER, *ON_REQUEST} - ({"model bf16"} if has_bf16() else set())
    for package in ("open_clip", "timm", "onnxruntime", "openvino"):
        is_theirs = package in ("open_clip", "timm")
        if not importlib.util.find_spec(package) or (is_theirs and backbone not in THEIRS):
            start = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.get(package, package)
            left_out |= {way for way in WAYS if way.startswith(start)}
    return [way for way in WAYS if way not in left_out]


@contextlib.contextmanager
def photos_of(args: argparse.Namespace) -> Iterator[list[str]]:
    """Some of a folder's JPEGs, evenly spaced; drawn ones without a folder."""
    with tempfile.TemporaryDirectory() as drawn:
        if not args.folder:
            draw_photos(Path(drawn), args.images)
        paths = [path for path in images_below(args.folder or drawn) if path.lower().endswith("jpg")]
        if not paths:
            raise UserError(f"--folder {args.folder} holds no .jpg; give a folder of JPEGs.")
        yield paths[:: max(1, len(paths) // args.images)][: args.images]


def made(args: argparse.Namespace, weights: str) -> PromptedCLIP:
    if args.model:
        return load(args.model, weights=args.weights, device="cpu", precision="fp32")
    names = class_names(args.classes[0], args.backbone)
    trainer_class = TRAINER_REGISTRY.get(find_method(args.trainers[0], args.backbone).trainer)
    return trainer_class.from_clip(args.backbone, names, weights=weights, device="cpu")


def file_of(way: str) -> str:
    """The graph that a way runs; "" for none."""
    return getattr(WAYS[way], "keywords", {}).get("file", "")


def prepare(model: PromptedCLIP, saved: Path, files: Sequence[str], calibration: Sequence[str]) -> None:
    """The saved folder, and those graphs in it that are needed."""
    model.save_pretrained(saved, classifier=True)
    export.pictures(1)[0].save(saved / "photo.png")
    graphs = saved / "graphs"
    graphs.mkdir()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if any(files):
            graph = export.ImageGraph(model)
            export.save_onnx(export.traced(graph), graph, graphs / FP32)
        if DYNAMIC in files:
            export.to_int8(graphs / FP32, graphs / DYNAMIC, "images", [])
        if STATIC in files:
            images = [tensor_of(model, path)[None] for path in calibration]
            export.to_int8(graphs / FP32, graphs / STATIC, "images", images)


def seconds_of(code: str) -> float:
    """Of a program on one core, from its start to its end."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start


def measure(
    args: argparse.Namespace,
    ways: Sequence[str],
    given: dict[str, Any],
    limits: Limits,
    labels: Sequence[int],
) -> tuple[dict[str, Found], list[float]]:
    """All ways by turns, and the load averages."""
    found = {way: Found() for way in ways}
    loads: list[float] = []
    with contextlib.ExitStack() as stack:
        processes = {}
        for way in [*ways, DECODER]:
            progress(f"{way} ...")
            processes[way] = Turns(way, given)
            stack.callback(processes[way].end)
            for part in ("tower", "pipeline"):
                processes[way].take(f"{part} 0")  # to warm up
            if way in found:
                found[way].peak = processes[way].take("peak")
        for number in range(args.rounds):
            progress(f"round {number + 1} of {args.rounds} ...")
            loads += load_average()
            limits.machine.append(measure_rates())
            limits.decoded.append(processes[DECODER].take(f"pipeline {args.seconds}")[0])
            first = number % len(ways)
            for way in [*ways[first:], *ways[:first]]:
                wall, spent = processes[way].take(f"tower {args.seconds}")
                found[way].tower.append(wall)
                found[way].spent.append(spent)
                found[way].pipeline.append(processes[way].take(f"pipeline {args.seconds}")[0])
        for way in ways if labels else ():
            progress(f"accuracy of {way} ...")
            right = np.equal(processes[way].take("classes"), labels)
            found[way].accuracy = 100 * float(right.mean())
    return found, loads


# --- the report -------------------------------------------------------------------------------------------


def percent(rates: Sequence[float], limits: Sequence[float]) -> str:
    return spread([100 * one / other for one, other in zip(rates, limits, strict=True)], 0)


def row(way: str, found: dict[str, Found], limits: Limits, sizes: dict[str, float]) -> list[str]:
    one, plain = found[way], found[PLAIN]
    file = file_of(way)
    return [
        way,
        spread(one.tower),
        ratios(one.tower, plain.tower),
        ratios(one.spent, plain.spent),
        percent(one.tower, limits.tower),
        spread(one.pipeline),
        ratios(one.pipeline, plain.pipeline),
        percent(one.pipeline, limits.pipeline),
        f"{one.peak:,.0f}",
        f"{sizes[file]:.1f}" if file else "–",
        *([] if one.accuracy is None else [f"{one.accuracy:.2f}"]),
    ]


def report(
    args: argparse.Namespace,
    title: str,
    found: dict[str, Found],
    limits: Limits,
    first: Sequence[tuple[float, float]],
    loads: Sequence[float],
    sizes: dict[str, float],
    tested: int,
) -> list[str]:
    """The measurement in words."""
    packages = ["torch", "torchvision", "pillow", "numpy"]
    packages += [each for each in ("onnxruntime", "openvino", "timm") if importlib.util.find_spec(each)]
    packages += ["open_clip_torch"]
    photos = "photos of a folder" if args.folder else "drawn JPEGs of 500 × 375 pixels"
    saved = ", ".join(f"{name} {sizes[name]:.1f}" for name in ("model.safetensors", "classifier.safetensors"))
    whole, least = [one for one, _ in first], [other for _, other in first]
    best = max(limits.machine, key=lambda each: each.matmul)
    lines = [
        f"# Predictions of {title}",
        "",
        *conditions(packages, loads),
        f"- {args.threads} threads, batches of {args.batch_size}; {args.rounds} rounds by turns, each way in "
        f"a process of its own, {args.seconds:g} s at least after a warm-up; median and range. Ratios are of "
        "each round, by the clock and by processor time, which other work on the machine moves less",
        f"- From JPEGs: {args.images} {photos}, decoded, resized and classified. `predict` and the graphs "
        "read them by threads while a batch is computed; open_clip and timm by torch's loader, with "
        f"{args.threads} workers",
        "- open_clip and timm: random weights of the same encoder, without prompts",
        "- int8, static: ranges of activations from photos; dynamic: as the graph runs",
        best.line(),
        f"- The limit: {limits.flops / 1e9:.1f} GFLOPs of an image, our way, at the rate of matmul in each "
        f"round, {spread(limits.tower)} images a second; from JPEGs the decoder's seconds as well, on the "
        f"same cores: {spread(limits.decoded, 0)} images a second by {args.threads} threads, together "
        f"{spread(limits.pipeline)}. It is float32's: other types could pass it",
        f"- Instructions for bfloat16 that oneDNN takes: {'yes' if has_bf16() else 'none'}",
        "- MB at the peak: of the process's resident set after both parts, with Python and all libraries",
        f"- Saved folder, MB: {saved}; CLIP's weights: {sizes['CLIP']:.1f}",
        f"- First prediction on one core: {spread(whole, 1)} s; a program that imports torch and reads "
        f"CLIP's weights: {spread(least, 1)} s; ratio {ratios(whole, least)}",
    ]
    if tested:
        lines.append(f"- Accuracy in percent of {tested:,} test images of Shapes")
    columns = [*COLUMNS, *MORE, *(["accuracy, %"] if tested else [])]
    return [*lines, "", table([row(way, found, limits, sizes) for way in found], columns)]


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trainers", nargs=1, default=["MaPLe"], help="one method")
    add("--classes", nargs=1, type=int, default=[100])
    add("--backbone", default="ViT-B/16", help="with random weights, unless it is an embedded one")
    add("--model", help="folder of a run or of a saved model, in place of the three above")
    add("--weights", default="", help="CLIP's weights for --model, in place of those its backbone stands for")
    add("--calibration", type=Path, metavar="FOLDER", help="photos that static int8 takes its ranges from")
    add("--folder", help="of JPEGs, in place of drawn ones")
    add("--images", type=int, default=8, help="JPEGs of a turn")
    add("--batch-size", type=int, default=4)
    add("--ways", nargs="+", default=[], help=f"by default all but {'; '.join(ON_REQUEST)}")
    add_common(parser)
    parser.set_defaults(usual_classes=[100], rounds=3, seconds=1.0)
    return parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = command_parser().parse_args(argv)
    if is_refused(args):
        return 1
    if wrong := [each for each in args.ways if each not in WAYS or each == DECODER]:
        allowed = "; ".join(each for each in WAYS if each != DECODER)
        raise UserError(f"--ways has {wrong[0]!r}; allowed are {allowed}.")
    found: dict[str, Found] = {}
    with contextlib.ExitStack() as stack:
        weights = "" if args.model else stack.enter_context(weights_of(args.backbone))
        photos = stack.enter_context(photos_of(args))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        progress("exporting ...")
        model = made(args, weights)
        args.backbone = model.method.cfg.MODEL.BACKBONE.NAME
        args.trainers, args.classes = [model.method.name], [len(model.classnames)]
        torch.set_num_threads(args.threads)  # an embedded CLIP has one of its own choice
        ways = chosen_ways(args, args.backbone)
        saved, read = Path(folder) / "saved", Path(weights or args.weights or EMBEDDED_FILE)
        calibration = calibration_photos(args.calibration) if args.calibration else photos
        prepare(model, saved, list(map(file_of, ways)), calibration)
        test = list(embedded_test(model)) if args.model else []
        np.save(saved / "test.npy", [tensor_of(model, image).numpy() for image, _ in test])
        of_open_clip, of_timm = THEIRS.get(args.backbone, ("", ""))
        prep: Any = model.preprocess
        given = {
            **{"saved": str(saved), "weights": weights or args.weights, "classes": len(model.classnames)},
            **{"open_clip": of_open_clip, "timm": of_timm, "side": prep.size, "batch": args.batch_size},
            **{"mean": prep.mean or [0.0] * 3, "std": prep.std or [1.0] * 3, "threads": args.threads},
            **{"photos": photos, "test": str(saved / "test.npy")},
        }
        limits = Limits(image_and_text_flops(model, torch.zeros(1, 3, prep.size, prep.size))[0])
        title = f"{model.method.name} on {args.backbone}, {len(model.classnames):,} classes"
        del model
        found, loads = measure(args, ways, given, limits, [label for _, label in test])
        progress("first predictions ...")
        of_first = {**given, "photo": str(saved / "photo.png"), "read": str(read)}
        first = [
            (seconds_of(FIRST.format(**of_first)), seconds_of(LEAST.format(**of_first)))
            for _ in range(args.rounds)
        ]
        files = (*saved.iterdir(), *(saved / "graphs").iterdir())
        sizes = {path.name: path.stat().st_size / 1e6 for path in files}
        sizes["CLIP"] = read.stat().st_size / 1e6
    rest = ["trained"] if args.model else []
    rest += ["photos"] if args.folder else []
    rest += [way.replace(",", "") for way in ways if args.ways and way != PLAIN]
    file = result_path("predict", args, f"batch{args.batch_size}", *rest)
    save(file, report(args, title, found, limits, first, loads, sizes, len(test)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
