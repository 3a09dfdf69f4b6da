"""Nearest words to the learned context of a run.

    python -m scripts.interpret output/base2new/train_base/shapes/shots_16/MaPLe/shapes/seed1 --top 5

It needs the checkpoint and the CLIP that it was trained on, and no data. Checkpoints of the reference do not
tell their CLIP: give --backbone.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from experiments.interpret import METRICS, Token, Vocabulary, load_words, read_learned, rows_of, text_tokens
from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from prompted_clip.escaping import csv_cell, printable

FORMATS = ("table", "csv")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Nearest words to the learned context of a run.")
    add = parser.add_argument
    add("run", type=Path, help="folder of a training, of this project or of the reference")
    add("--top", type=int, default=5, help="words a token (default: %(default)s)")
    add("--metric", choices=METRICS, default="euclidean", help="distance (default: %(default)s, as CoOp's)")
    add("--load-epoch", type=int, help="epoch whose checkpoint is read; by default the best or last")
    add("--backbone", default="", help="name of the CLIP; by default the one that the checkpoint names")
    add("--weights", default="", help="file of the CLIP's weights, where the name does not stand for it")
    add("--format", choices=FORMATS, default="table", help="of what is printed (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("interpret", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Prints the table, or csv alone."""
    if args.top < 1:
        raise UserError(f"--top {args.top}: allowed is 1 or more.")
    learned = read_learned(args.run, args.load_epoch)
    model = load_words(args.backbone, args.weights, learned)
    tokens = text_tokens(learned, model.transformer.width)
    vocabulary = Vocabulary(model, args.metric)
    if args.format == "csv":
        rows = rows_of(tokens, vocabulary, args.top)
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
        return
    print_table(tokens, vocabulary, args.top)
    trainer = learned.identity.get("trainer", "")
    if trainer == "CoCoOp" or any(key.startswith("meta_net.") for key in learned.tensors):
        print("CoCoOp moves these tokens for each image; shown is where they stand before that.")
    if any(key.startswith(("image_tokens", "proj.", "compound_prompts_image")) for key in learned.tensors):
        print("The tokens of the image encoder live in another space, which has no words; they are left out.")


def print_table(tokens: Sequence[Token], vocabulary: Vocabulary, top: int) -> None:
    rows = []
    for token in tokens:
        found = vocabulary.nearest(token.vector, top)
        rows.append(
            [
                token.depth,
                printable(token.classname),
                token.position,
                *(f"{n.word} {n.distance:.4f}" for n in found),
            ]
        )
    headers = ["depth", "class", "token", *(f"{rank}." for rank in range(1, len(rows[0]) - 2))]
    if not any(token.classname for token in tokens):
        headers.pop(1)
        rows = [[row[0], *row[2:]] for row in rows]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    print(
        f"\n{len(vocabulary.names):,} candidates, {vocabulary.metric} distance. A word's own nearest "
        f"neighbour is {vocabulary.typical_distance():.4f} away (median)."
    )
    if any(token.depth > 1 for token in tokens):
        print(
            "Tokens of depth 2 and more replace what a block makes, not words: read their words with doubt."
        )


if __name__ == "__main__":
    sys.exit(main())
