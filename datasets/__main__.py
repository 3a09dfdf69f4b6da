"""`python -m datasets list | prepare NAME... | verify NAME... | show NAME`: see docs/fetching_datasets.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from dassl.utils.tools import atomic_open
from datasets.contact_sheet import draw_sheet
from datasets.prepare import prepare
from datasets.sources import Entry, find, known
from datasets.verify import images_of_classes, open_dataset, read_rows, status, verify
from prompted_clip.console import run_command
from prompted_clip.errors import MissingFileError, UserError

OK, DEVIATES = 0, 1  # exit codes, beside run_command's


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns 0, 1 where something is missing or differs, 2 for bad input."""
    args = build_parser().parse_args(arguments)
    args.root = Path(args.root).expanduser()
    return run_command("python -m datasets", lambda: args.run(args))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets", description="Fetches and checks the benchmarks."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--root", default="data", help="folder of the datasets; by default data")
        added.set_defaults(run=run)
        return added

    command(
        "list", run_list, "Every dataset: whether it is present, its config file, its numbers, how to get it."
    )

    each = command(
        "prepare", run_prepare, "Downloads, unpacks, lays out and verifies; continues where it stopped."
    )
    each.add_argument("names", nargs="+", metavar="NAME", help="a dataset of `list`, or all")
    each.add_argument(
        "--keep-archives", action="store_true", help="keep downloaded archives, in FOLDER/.prepare"
    )

    each = command(
        "verify", run_verify, "Checks folder, split file, images and numbers; exit code 1 if any is off."
    )
    each.add_argument(
        "names", nargs="+", metavar="NAME", help="a dataset of `list`, or all: those that are there"
    )
    each.add_argument("--all", action="store_true", help="decode every image, not a sample of 300")

    each = command("show", run_show, "Draws a few images of each class into a PNG.")
    each.add_argument("name", metavar="NAME", help="a dataset of `list`")
    each.add_argument(
        "--out", default="", help="the file; by default NAME.png. Further pages are NAME-2.png, ..."
    )
    each.add_argument("--classes", type=positive, default=0, help="show so many classes only")
    each.add_argument("--images", type=positive, default=1, help="images of each class; by default 1")
    each.add_argument("--per-page", type=positive, default=60, help="classes of a page; by default 60")
    each.add_argument(
        "--columns", type=positive, default=0, help="classes in a row; by default as many as look well"
    )
    return parser


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return number


def run_list(args: argparse.Namespace) -> int:
    rows = []
    for entry in known().values():
        counts = entry.counts
        images = "/".join(f"{counts[part]:,}" if part in counts else "-" for part in ("train", "val", "test"))
        rows.append(
            (
                entry.name,
                status(entry, args.root),
                entry.config or "-",
                images if counts else "-",
                counts.get("classes", "-"),
                needs(entry),
            )
        )
    print(f"Under {args.root}:\n")
    print(
        tabulate(
            rows,
            ("Dataset", "Present", "Config", "Train/val/test", "Classes", "How to get it"),
            maxcolwidths=[None, 28, None, None, None, 44],
            disable_numparse=True,
            colalign=("left", "left", "left", "right", "right", "left"),
        )
    )
    return OK


def needs(entry: Entry) -> str:
    """How to get a dataset, in a few words."""
    if entry.drawn:
        return "drawn by the project"
    files = [file.file for file in entry.files if file.by_hand]
    if not entry.files or (files and not entry.mirror):
        return f"by hand (login): {', '.join(files)}" if files else "by hand"
    return f"prepare (mirror), or by hand (login): {', '.join(files)}" if files else "prepare"


def run_prepare(args: argparse.Namespace) -> int:
    entries = chosen(args.names)
    failed = []
    for entry in entries:
        print(f"== {entry.name}{f' (licence: {entry.licence})' if entry.licence else ''} ==")
        problems = prepare(entry, args.root, args.keep_archives)
        if problems:
            print(*(f"  still missing: {line}" for line in problems), sep="\n")
            failed.append(entry.name)
        elif report(entry, args.root):
            failed.append(entry.name)
    if failed:
        print(f"Incomplete: {', '.join(failed)}. See above for what to do.")
    return DEVIATES if failed else OK


def run_verify(args: argparse.Namespace) -> int:
    entries = chosen(args.names)
    if "all" in args.names:
        entries = [entry for entry in entries if status(entry, args.root) != "no"]
        if not entries:
            raise MissingFileError(f"there is no dataset under {args.root}: run prepare, or give --root.")
    problems = [report(entry, args.root, args.all) for entry in entries]
    return DEVIATES if any(problems) else OK


def report(entry: Entry, root: Path, decode_all: bool = False) -> bool:
    """Verifies and prints; returns whether anything is off."""
    found, problems = verify(entry, root, decode_all)
    print(f"{entry.name}: {found}: {f'{len(problems)} problems' if problems else 'as it should be'}")
    for line in problems:
        print(f"  {line}")
    return bool(problems)


def chosen(names: list[str]) -> list[Entry]:
    if "all" in names:
        return list(known().values())
    return list({entry.name: entry for entry in map(find, names)}.values())


def run_show(args: argparse.Namespace) -> int:
    entry = find(args.name)
    out = Path(args.out or f"{entry.name}.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {str(out)!r}; it must end with .png.")
    if entry.drawn and not (args.root / entry.folder).exists():
        open_dataset(entry, args.root)
    classes = images_of_classes(read_rows(entry, args.root))
    shown = classes[: args.classes or None]
    image_dir = args.root / entry.folder / entry.images
    pages = [shown[start : start + args.per_page] for start in range(0, len(shown), args.per_page)]
    for number, page in enumerate(pages, 1):
        note = f"{sum(len(images) for _, images in classes):,} images of {len(classes):,} classes"
        if len(shown) < len(classes) or len(pages) > 1:
            start = (number - 1) * args.per_page
            note += f"; here {start + 1} to {start + len(page)}"
        cells = [(name, [image_dir / path for path in images[: args.images]]) for name, images in page]
        path = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        with atomic_open(str(path), "wb") as file:
            draw_sheet(cells, entry.name, note, args.columns).save(file, format="PNG", optimize=True)
        print(f"Drawn: {path}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
