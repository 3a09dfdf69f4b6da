"""What each method costs: parameters, FLOPs, speed and memory, on this machine (table 6 of the MaPLe paper).

    python -m scripts.complexity
    python -m scripts.complexity --trainers MaPLe CoCoOp --classes 10 100 1000 --batch-sizes 1 4 10 100 \
        --backbone ViT-B/16 --random-weights --reference

No dataset is needed: see docs/complexity.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from experiments.configuration import load_plugin
from experiments.costs.complexity import (
    ConfiguredMethod,
    Costs,
    build_cfg,
    find_method,
    measure,
    published_parameters,
)
from experiments.costs.machine import device_name, is_busy, load_average, memory_source
from experiments.costs.stand_ins import class_names, image_size, random_weights, tokens_of_names
from experiments.costs.tables import FORMATS, render
from trainers.precision import PRECISIONS

DEFAULT_TRAINERS = ["ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe"]


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of 1 or more; KEY VALUE pairs stand behind --options, at the end"
        )
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Parameters, FLOPs, speed and memory of methods, on this machine; no dataset is needed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--trainers",
        nargs="+",
        default=DEFAULT_TRAINERS,
        help="of configs/protocols/methods.yaml, or TRAINER:CONFIG",
    )
    add("--classes", nargs="+", type=positive, default=[10], help="numbers of classes")
    add("--batch-sizes", nargs="+", type=positive, default=[1, 4, 100], help="images in a batch")
    add("--backbone", default="ViT-Shapes/8", help="name of the CLIP model, such as ViT-B/16")
    add("--random-weights", action="store_true", help="the backbone with random weights: nothing to fetch")
    add("--config", default="", help="settings of all methods: a file of configs/trainers/TRAINER")
    add("--prec", default="fp32", choices=PRECISIONS, help="precision")
    add("--class-names", default="", metavar="FILE", help="class names, one a line")
    add("--reference", action="store_true", help="measure the reference's way of computing, too: slow")
    add("--seconds", type=float, default=0.3, help="how long each speed is measured; 0 for FLOPs only")
    add("--format", default="text", choices=FORMATS, help="of the output")
    add("--plugin", action="append", default=[], help="module or file that registers more; may be repeated")
    add(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs that change the configuration; the last flag, since it takes all that follows",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures what `args` ask for, and prints it; after Ctrl-C or an error, what there is.

    Raises:
        ValueError, OSError: a wrong option, before anything is measured; or a trainer's word about a setting.
    """
    load = load_average()
    if args.seconds < 0:
        raise ValueError(f"--seconds is {args.seconds}; allowed is 0 (FLOPs only) or more.")
    for plugin in args.plugin:
        load_plugin(plugin)
    methods = [find_method(given, args.backbone, args.config) for given in args.trainers]
    size = image_size(args.backbone)
    names = {count: class_names(count, args.backbone, args.class_names) for count in args.classes}
    if is_busy(load):
        print(f"WARNING: {busy(load)}", file=sys.stderr)

    costs: list[Costs] = []
    stopped: BaseException | None = None
    with contextlib.ExitStack() as stack:
        weights = str(stack.enter_context(random_weights(args.backbone))) if args.random_weights else ""
        jobs = [
            (method, build_cfg(method, names[count], args.backbone, size, weights, args.prec, args.options))
            for method in methods
            for count in names
        ]
        device = torch.device("cuda" if torch.cuda.is_available() and jobs[0][1].USE_CUDA else "cpu")
        torch.backends.cudnn.benchmark = device.type == "cuda"  # as in train.py
        for number, (method, cfg) in enumerate(jobs, start=1):
            try:
                costs.append(_measured(f"[{number}/{len(jobs)}]", method, cfg, args))
            except (KeyboardInterrupt, ValueError, OSError, FloatingPointError) as error:
                stopped = error
                break
    if costs:
        conditions = conditions_of(args, device, load, tokens_of_names(names[max(names)]))
        settings = [f"{each.trainer}:{each.config}" for each in methods]
        conditions["settings"] = ", ".join(settings + args.options)
        conditions["CLIP's parameters"] = f"{costs[0].clip_parameters:,}"
        if stopped is not None:
            conditions["stopped"] = f"after {len(costs)} of {len(jobs)} configurations"
        print(render(costs, conditions, args.format))
    if stopped is not None:
        raise stopped
    return 0


def _measured(place: str, method: ConfiguredMethod, cfg: Any, args: argparse.Namespace) -> Costs:
    classes = len(cfg.DATASET.OWN.CLASS_LIST)
    print(f"{place} {method.name}, {classes:,} classes ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        published = published_parameters(method, cfg, args.options)
        return measure(method, cfg, args.batch_sizes, args.seconds, args.reference, published)
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr)


def conditions_of(
    args: argparse.Namespace, device: torch.device, load: float | None, tokens: float
) -> dict[str, str]:
    """What the numbers were measured on, for the lines above the tables."""
    conditions = {
        "device": device_name(device),
        "CPU threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "torch": torch.__version__,
        "precision": args.prec,
        "backbone": args.backbone,
        "weights": "random" if args.random_weights else "real",
        "class names": f"{tokens:.1f} tokens on average",
        "memory": memory_source(device),
        "load average at the start": "unknown" if load is None else f"{load:.2f}",
    }
    if is_busy(load):
        conditions["WARNING"] = busy(load)
    return conditions


def busy(load: float | None) -> str:
    return f"THE MACHINE IS BUSY (load average {load:.2f}): do not trust its seconds, nor its images/s."


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"complexity: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("complexity: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
