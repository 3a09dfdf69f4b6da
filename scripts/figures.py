"""Figures from saved runs, each as PNG and PDF.

    python -m scripts.figures base2new output
    python -m scripts.figures depth output
    python -m scripts.figures per-class output --methods MaPLe CoCoOp
    python -m scripts.figures tsne RUN [RUN ...]

What each kind draws is told in docs/figures.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.figures.style import NamedFigure
from prompted_clip.console import run_command

CLASSES = ("base", "new", "both")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Figures from saved runs, as PNG and PDF.", epilog="See docs/figures.md."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    folders = {
        "base2new": "accuracy of each method on base and new classes",
        "depth": "accuracy over prompt depth",
        "length": "accuracy over prompt length",
        "few-shot": "accuracy over training images per class",
        "per-class": "which classes gain by one method over another",
    }
    for name, text in folders.items():
        kind = kinds.add_parser(name, help=text, description=text)
        kind.add_argument("folder", type=Path, help="what a sweep has written into, such as output")
        kind.add_argument("--datasets", nargs="+", metavar="NAME", help="only these (default: all there are)")
        if name == "per-class":
            kind.add_argument("--methods", nargs=2, default=["MaPLe", "CoCoOp"], metavar=("A", "B"))
            kind.add_argument("--classes", choices=CLASSES, default="both", help="of base to novel")
    tsne = kinds.add_parser("tsne", help="image embeddings of runs side by side")
    tsne.add_argument("runs", type=Path, nargs="+", help="folders of runs; the first one's test images")
    tsne.add_argument("--images", type=int, default=1000, help="at most so many (default: %(default)s)")
    tsne.add_argument(
        "--classes", nargs="+", default=["12"], help="how many classes, or their names (default: 12)"
    )
    tsne.add_argument("--seed", type=int, default=1, help="of the images and of t-SNE (default: %(default)s)")
    attention = kinds.add_parser("attention", help="where the image encoder's CLS token looks")
    attention.add_argument("run", type=Path, help="folder of a run")
    attention.add_argument("images", type=Path, nargs="+", help="image files")
    attention.add_argument("--block", type=int, help="counted from 1 (default: the last)")
    attention.add_argument("--rollout", action="store_true", help="attention rolled out over the blocks")
    reliability = kinds.add_parser("reliability", help="how often runs are right, by how sure they are")
    reliability.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    for kind in (tsne, attention):
        kind.add_argument("--root", default="", help="folder of the datasets, if not that of the runs")
    for kind in kinds.choices.values():
        kind.add_argument(
            "--out", type=Path, help="folder of the figures (default: figures in the first folder)"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("figures", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Draws and writes the figures."""
    drawn = draw(args)
    from experiments.figures.style import save

    first = args.folder if "folder" in args else args.run if "run" in args else args.runs[0]
    for note in dict.fromkeys(note for each in drawn for note in each.notes):
        print(note)
    for each in drawn:
        print("Written:", *save(each, args.out or first / "figures"))


def draw(args: argparse.Namespace) -> list[NamedFigure]:
    """The figures of a kind.

    Raises:
        ValueError, OSError: one line that says what cannot be drawn, and why.
    """
    if "folder" in args:
        return _of_results(args)
    if args.kind == "tsne":
        from experiments.figures.tsne import draw_tsne, embed_runs

        classes = (
            int(args.classes[0]) if len(args.classes) == 1 and args.classes[0].isdigit() else args.classes
        )
        embedded, classnames = embed_runs(args.runs, args.images, classes, args.seed, args.root)
        return [draw_tsne(embedded, classnames, args.seed)]
    if args.kind == "reliability":
        from experiments.figures.reliability import draw_reliability

        return [draw_reliability(args.runs)]
    from experiments.figures.attention import draw_attention, look_at

    seen = look_at(args.run, args.images, args.block, args.rollout, args.root)
    return [draw_attention(seen, args.run, args.block, args.rollout)]


def _of_results(args: argparse.Namespace) -> list[NamedFigure]:
    """The kinds that need results alone, and no model."""
    from experiments.figures.data import each_shots, read_runs

    protocols = {"per-class": ["base2new"], "few-shot": ["few_shot", "zeroshot"]}.get(args.kind, [args.kind])
    runs = read_runs(args.folder, protocols, args.datasets)
    if args.kind == "per-class":
        from experiments.figures.per_class import draw_gains, draw_shares

        methods = (args.methods[0], args.methods[1])
        if args.classes != "both":
            runs = [run for run in runs if run.role == args.classes]
        datasets = {run.dataset for run in runs}
        if len(datasets) == 1:
            return [draw_gains(runs, methods, *datasets)]
        return [draw_shares(runs, methods)]
    if args.kind == "few-shot":
        from experiments.figures.few_shot import draw_few_shot

        return [draw_few_shot(runs)]
    if args.kind == "base2new":
        from experiments.figures.base2new import draw_methods

        return [draw_methods(own, suffix) for suffix, own in each_shots(runs).items()]
    from experiments.figures.curves import draw_curves

    return [draw_curves(own, args.kind, suffix) for suffix, own in each_shots(runs).items()]


if __name__ == "__main__":
    sys.exit(main())
