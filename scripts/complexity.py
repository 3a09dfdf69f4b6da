"""Learned parameters and FLOPs of each method (table 6 of the MaPLe paper). No dataset is needed.

    python -m scripts.complexity
    python -m scripts.complexity --trainers MaPLe CoCoOp --classes 10 100 1000 --batch-sizes 1 4 \
        --backbone ViT-B/16 --random-weights

See docs/complexity.md.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from experiments.costs.complexity import Complexity, build_cfg, complexity_of, find_method
from experiments.costs.synthetic import class_names, image_size, random_weights, tokens_of_names
from prompted_clip.console import run_command
from trainers.configuration import load_plugin

DEFAULT_TRAINERS = ["ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe"]
TABLES = {"text": "simple", "markdown": "github"}
FORMATS = (*TABLES, "csv", "json")


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of 1 or more; KEY VALUE pairs stand behind --options, at the end"
        )
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Learned parameters and FLOPs of methods; no dataset is needed.",
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
    add("--batch-sizes", nargs="+", type=positive, default=[1, 4], help="images in a training step")
    add("--backbone", default="ViT-Shapes/8", help="name of the CLIP model, such as ViT-B/16")
    add("--random-weights", action="store_true", help="the backbone with random weights: nothing to fetch")
    add("--config", default="", help="settings of all methods: a file of configs/trainers/TRAINER")
    add("--class-names", default="", metavar="FILE", help="class names, one per line")
    add("--format", default="text", choices=FORMATS, help="of the output")
    add("--plugin", action="append", default=[], help="module or file that registers more; may be repeated")
    add(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs that change the configuration; the last flag, since it takes all that follows",
    )
    return parser


def complexities(args: argparse.Namespace) -> list[Complexity]:
    """One per method and number of classes.

    Raises:
        ValueError, OSError: a wrong option, or a trainer's word about a setting.
    """
    for plugin in args.plugin:
        load_plugin(plugin)
    methods = [find_method(given, args.backbone, args.config) for given in args.trainers]
    size = image_size(args.backbone)
    names = {count: class_names(count, args.backbone, args.class_names) for count in args.classes}
    found = []
    with contextlib.ExitStack() as stack:
        weights = str(stack.enter_context(random_weights(args.backbone))) if args.random_weights else ""
        for method in methods:
            for count in names:
                print(f"{method.name}, {count:,} classes ...", file=sys.stderr)
                cfg = build_cfg(method, names[count], args.backbone, size, weights, "fp32", args.options)
                found.append(complexity_of(method, cfg, args.batch_sizes, args.options))
    return found


def rows_of(found: Sequence[Complexity]) -> list[dict[str, Any]]:
    """Flat rows; None for what is unknown."""
    return [
        {
            "method": each.method,
            "classes": each.classes,
            "learned_parameters": each.learned,
            "published_parameters": each.published,
            "clip_parameters": each.clip_parameters,
            "percent_of_clip": 100 * each.learned / each.clip_parameters,
            "image_flops": each.image,
            "text_flops": each.text,
            "text_is_encoded": "per image" if each.conditional else "once",
            **{f"step_flops_batch{size}": each.step.get(size) for size in all_sizes(found)},
        }
        for each in found
    ]


def all_sizes(found: Sequence[Complexity]) -> list[int]:
    return sorted({size for each in found for size in each.step})


def render(found: Sequence[Complexity], form: str) -> str:
    """The rows in one of FORMATS; tables show GFLOPs."""
    rows = rows_of(found)
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "csv":
        file = io.StringIO()
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().rstrip("\n")
    heads = ["", "classes", "learned", "published", "% of CLIP", "GFLOPs: image", "text", "text is encoded"]
    heads += [f"step, batch {size}" for size in all_sizes(found)]
    cells = []
    for row in rows:
        method, classes, learned, published, _, percent, image, text, encoded, *steps = row.values()
        numbers = [f"{classes:,}", f"{learned:,}", "–" if published is None else f"{published:,}"]
        flops = [f"{percent:.3f}", giga(image), giga(text), encoded, *map(giga, steps)]
        cells.append([method, *numbers, *flops])
    align = ["left", *["right"] * (len(heads) - 1)]
    return tabulate(cells, heads, tablefmt=TABLES[form], colalign=align, disable_numparse=True)


def giga(flops: int | None) -> str:
    """In 10⁹, with three significant digits or more."""
    if flops is None:
        return "–"
    value = flops / 1e9
    return f"{value:,.{next((n for n, least in enumerate((100, 10, 1)) if value >= least), 3)}f}"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("complexity", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    found = complexities(args)
    if args.format in TABLES:
        names = class_names(max(args.classes), args.backbone, args.class_names)
        print(f"{args.backbone}; class names of {tokens_of_names(names):.1f} tokens on average\n")
    print(render(found, args.format))


if __name__ == "__main__":
    sys.exit(main())
