"""How much more memory than the model a training step takes: ours, ours with other settings, the plain way.

    python -m benchmarks.memory                                     # MaPLe on ViT-B/16, batch 4
    python -m benchmarks.memory --options MODEL.TEXT_CHUNK 100      # beside it, ours with that setting

Each case runs in a process of its own, whose heap nothing else has touched: a step to warm up, the growth of
the resident set in some steps, and the seconds of as many others. The plain way is the reference's; it is
left out where it takes too much.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.report import RESULTS, conditions, load_average, save, spread
from benchmarks.ways import (
    Rounds,
    batch_for,
    build,
    build_parser,
    by_turns,
    first_steps,
    is_refused,
    largest_plain,
    memory_line,
    memory_of,
    milliseconds,
    model_line,
    progress,
    result_name,
    table,
    told_in_one_line,
    weights_of,
)

OURS, PLAIN = "ours", "plain"
COLUMNS = ("classes", "way", "GiB more in a step", "ms a step")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Bytes and seconds of a case, one for each round; for the process of its own."""
    torch.set_num_threads(case["threads"])
    names = ("name", "classes", "backbone", "weights", "precision", "options", "plain")
    trainer = build(*(case[name] for name in names))
    device, batch = trainer.device, batch_for(trainer, case["batch_size"])
    steps = Rounds(lambda: trainer.forward_backward(batch), device)
    grown = [first_steps(steps, trainer)[0]]
    if device.type == "cpu":  # on a GPU all steps take the same
        grown += [memory_of(steps.compute, device) for _ in range(case["rounds"] - 1)]
    loads = by_turns([steps], case["rounds"])
    return {"bytes": grown, "wall": steps.wall, "loads": loads}


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    """Raises a `CalledProcessError` where it fails, as without memory; its words are on the terminal."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", json.dumps(case)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=RESULTS.parent.parent)
    return json.loads(output.stdout.splitlines()[-1])


def cases_of(name: str, classes: int, args: argparse.Namespace, weights: str) -> dict[str, dict[str, Any]]:
    """What is measured, by its name in the table."""
    ours = {
        "name": name,
        "classes": classes,
        "backbone": args.backbone,
        "weights": weights,
        "precision": args.prec,
        "options": [],
        "plain": False,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "threads": args.threads,
    }
    cases = {OURS: ours}
    if args.options:
        cases[f"{OURS}, {' '.join(args.options)}"] = {**ours, "options": args.options}
    if classes <= largest_plain():
        cases[PLAIN] = {**ours, "precision": args.plain_prec, "plain": True}
    return cases


def report(args: argparse.Namespace, rows: dict[str, list[list[str]]], loads: Sequence[float]) -> list[str]:
    """The measurement in words."""
    lines = [f"# Memory of a training step, batch {args.batch_size}, {args.prec}", ""]
    lines += conditions(["torch"], loads)
    lines += [
        model_line(args),
        memory_line(),
        f"- Each case in a process of its own, {args.rounds} rounds; median and range",
        f"- The plain way, in {args.plain_prec}, is measured up to {largest_plain():,} classes",
    ]
    for name, cells in rows.items():
        lines += ["", f"## {name}", "", table(cells, COLUMNS)]
    return lines


def command_parser() -> argparse.ArgumentParser:
    parser = build_parser(__doc__, classes=(19, 100, 1000))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--options", nargs="*", default=[], help="KEY VALUE pairs: ours is measured with these too"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    args = command_parser().parse_args(argv)
    if args.measure:
        print(json.dumps(measure(json.loads(args.measure))))
        return 0
    if is_refused(args):
        return 1
    rows: dict[str, list[list[str]]] = {}
    loads = load_average()
    with weights_of(args.backbone) as weights:
        for name in args.trainers:
            rows[name] = []
            for classes in args.classes:
                for way, case in cases_of(name, classes, args, weights).items():
                    progress(f"{name}, {classes} classes, {way} ...")
                    found = in_own_process(case)
                    loads += found["loads"]
                    grown = [each / 2**30 for each in found["bytes"] if each is not None]
                    memory = spread(grown) if grown else "unknown"
                    rows[name].append([f"{classes:,}", way, memory, milliseconds(found["wall"])])
    file = result_name("memory", args, f"batch{args.batch_size}", args.prec)
    save(file, report(args, rows, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
