"""Classes of photos, by a trained model.

    python -m scripts.classify output/run photos/                  # a run, a saved folder, or a hub id
    python -m scripts.classify user/name a.jpg b.jpg --names cat dog --csv > classes.csv

Folders are searched at any depth. Where photos lie in folders that have the names of classes, the accuracy
is printed, too. A photo that cannot be read is named at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prompted_clip.calibration import threshold_of, too_few_scores
from prompted_clip.console import run_command
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.escaping import csv_cell, printable
from prompted_clip.predictions import images_below, stream
from trainers.pretrained import load

MOST_LISTED = 20  # photos that cannot be read


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="classify", description="Classes of photos, by a trained model.")
    add = parser.add_argument
    add("model", help="folder of a run, folder of a saved model, or a model of the hub (user/name)")
    add("photos", nargs="+", help="images, and folders of images at any depth")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--names", nargs="+", help="other classes than those that were trained")
    names.add_argument("--names-from", type=Path, help="a file of such names, one in a line")
    add("--top", type=int, default=5, help="classes that are printed for a photo (default: %(default)s)")
    add("--coverage", type=float, help="also the set of classes that holds the right one this often, as 0.9")
    add("--threshold", type=float, default=0.0, help="least probability; a photo below has no class")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="prints a table")
    form.add_argument(
        "--json", action="store_true", help="prints a JSON object for each photo, one in a line"
    )
    add_model_flags(parser)
    add("--batch-size", type=int, default=64, help="photos that are computed at once (default: %(default)s)")
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of commands that use a model."""
    add_source_flags(parser)
    add = parser.add_argument
    add("--device", help="cpu, cuda, ...; by default a GPU where there is one")
    add("--precision", choices=("fp32", "fp16", "bf16", "amp"), help="by default that of the training")


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model it is, beside its folder or name."""
    add = parser.add_argument
    add(
        "--weights",
        default="",
        help="file of CLIP's weights, where the backbone's name does not stand for it",
    )
    add("--load-epoch", type=int, help="of a run, the epoch to take; by default the best or last")
    add("--revision", help="of the hub: branch, tag or commit")


def load_model(args: argparse.Namespace, **options: Any) -> Any:
    """The model that `model` and the flags name; `options` of `load` in place of --device and --precision."""
    return load(
        args.model,
        weights=args.weights,
        **(options or {"device": args.device, "precision": args.precision}),
        epoch=args.load_epoch,
        revision=args.revision,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("classify", lambda: run(args))


def run(args: argparse.Namespace) -> int | None:
    """Prints the classes of each photo as soon as they are known."""
    if args.top < 1 or args.batch_size < 1 or not 0 <= args.threshold <= 1:
        raise UserError("--top and --batch-size are 1 or more, --threshold lies between 0 and 1.")
    photos = find_photos(args.photos)
    names = read_names(args.names_from) if args.names_from else args.names
    model = load_model(args)
    if names:
        model = model.with_classnames(names)
    if args.coverage is not None:
        threshold_of(model.calibration, args.coverage)
        if note := too_few_scores(model.calibration, args.coverage):
            print(note, file=sys.stderr)
    labels = {comparable(name): name for name in model.classnames}
    top, has_sets = min(args.top, len(labels)), args.coverage is not None
    write = _Csv(top, has_sets) if args.csv else _json if args.json else _text
    broken, right, covered, labelled = [], 0, 0, 0
    found = stream(model, photos, args.batch_size, skip_broken=True, coverage=args.coverage)
    for prediction in tqdm(found, total=len(photos), unit="photo", delay=2, leave=False, disable=None):
        if prediction.error:
            broken.append(prediction)
            continue
        label = labels.get(comparable(Path(prediction.path).parent.name))
        labelled += label is not None
        right += label == prediction.name
        covered += label is not None and label in (prediction.set or ())
        best = [each for each in list(prediction)[: args.top] if each[1] >= args.threshold]
        with tqdm.external_write_mode(file=sys.stdout):
            write(prediction.path, best, label, prediction.set)
    if labelled:
        unlabelled = len(photos) - len(broken) - labelled
        others = f", {unlabelled:,} without" if unlabelled else ""
        print(
            f"accuracy: {100 * right / labelled:.2f}% of {counted(labelled)} in folders of classes{others}",
            file=sys.stderr,
        )
        if has_sets:
            print(f"coverage: {100 * covered / labelled:.2f}% of them have it in their set", file=sys.stderr)
    for prediction in broken[:MOST_LISTED]:
        print(f"not read: {printable(prediction.error)}", file=sys.stderr)
    if len(broken) > MOST_LISTED:
        print(f"not read: {len(broken) - MOST_LISTED:,} more", file=sys.stderr)
    if len(broken) == len(photos):
        raise UserError("no photo could be read.")
    return None


def counted(number: int) -> str:
    """A number of photos in words: one photo, two photos."""
    return f"{number:,} photo{'s' * (number != 1)}"


def find_photos(places: Sequence[str]) -> list[str]:
    """The images that are named, and those in the folders that are.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a folder holds no images.
    """
    photos: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        if not path.exists():
            raise MissingFileError(f"{place}: there is no such image or folder.")
        photos += images_below(path) if path.is_dir() else [str(path)]
    return photos


def read_names(path: Path) -> list[str]:
    """The class names in a file, one in a line."""
    path = path.expanduser()
    if not path.is_file():
        raise MissingFileError(f"--names-from {path}: there is no such file.")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"--names-from {path} is no text in UTF-8 ({error}).") from error
    if not any(names):
        raise UserError(f"--names-from {path} is empty; it wants a class name in each line.")
    return [name for name in names if name]


def comparable(name: str) -> str:
    """The name of a class or of a folder, whatever its case, its underscores and its spaces."""
    return " ".join(name.replace("_", " ").lower().split())


# --- output: a photo, its best classes with their probabilities, and its label ------------------------------


def _text(
    path: str, best: Sequence[tuple[str, float]], label: str | None, within: Sequence[str] | None
) -> None:
    shown = ", ".join(f"{printable(name)} {probability:.1%}" for name, probability in best)
    names = "" if within is None else f"; set: {', '.join(map(printable, within)) or 'none'}"
    print(f"{printable(path)}: {shown or 'no class is probable enough'}{names}")


def _json(
    path: str, best: Sequence[tuple[str, float]], label: str | None, within: Sequence[str] | None
) -> None:
    classes = [{"name": name, "probability": probability} for name, probability in best]
    names = {} if within is None else {"set": list(within)}
    print(json.dumps({"image": path, "classes": classes, "label": label, **names}))


class _Csv:
    """A line per photo; the first names the columns. A set is a JSON list."""

    def __init__(self, top: int, has_sets: bool) -> None:
        self.top = top
        self.table = csv.writer(sys.stdout, lineterminator="\n")
        ranks = [f"_{rank}" if rank > 1 else "" for rank in range(1, top + 1)]
        self.table.writerow(
            [
                *("image", "label"),
                *(f"{column}{rank}" for rank in ranks for column in ("class", "probability")),
                *(["set"] if has_sets else []),
            ]
        )

    def __call__(
        self,
        path: str,
        best: Sequence[tuple[str, float]],
        label: str | None,
        within: Sequence[str] | None,
    ) -> None:
        cells = [cell for name, probability in best for cell in (name, f"{probability:.6f}")]
        cells += [""] * (2 * self.top - len(cells))
        cells += [] if within is None else [json.dumps(list(within), ensure_ascii=False)]
        self.table.writerow([csv_cell(cell) for cell in (path, label or "", *cells)])


if __name__ == "__main__":
    sys.exit(main())
