"""A trained model as a folder: to load and share, or as graphs that run without this project.

    python -m scripts.export output/run maple-dtd                    # what save_pretrained writes
    python -m scripts.export output/run exported --format onnx pt2 --precision fp32 int8 --test photos/test
    python -m scripts.export model.pth.tar-5 maple-dtd --trainer MaPLe --backbone ViT-B/16 \
        --names-from classnames.txt --options TRAINER.MAPLE.N_CTX 4  # a checkpoint, such as the reference's

See docs/export.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data.class_names import few
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.console import run_command
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.escaping import printable
from prompted_clip.factory import EMBEDDED
from prompted_clip.predictions import images_below
from trainers.export import FORMATS, PRECISIONS, Labelled, check, check_packages, new_folder
from trainers.export import write_graphs as write
from trainers.templates import DEFAULT_TEMPLATE

from .classify import add_source_flags, comparable, read_names
from .classify import load_model as load_named

MOST_CALIBRATION = 128  # photos: more do not move the ranges


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export", description="A trained model as a folder to load, or as ONNX or .pt2."
    )
    add = parser.add_argument
    add("model", help="folder of a run or of a saved model, a model of the hub (user/name), or a checkpoint")
    add("folder", type=Path, help="a new folder")
    add("--format", nargs="+", choices=("hub", *FORMATS), default=["hub"], help="(default: hub)")
    add("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="of ONNX (default: fp32)")
    add("--calibration", type=Path, metavar="FOLDER", help="photos that int8 takes its ranges from")
    add(
        "--test",
        type=Path,
        metavar="FOLDER",
        help="photos in folders named as the classes, for the accuracy of each precision; by default, of an "
        "embedded CLIP, the test images of Shapes",
    )
    add(
        "--names-from",
        type=Path,
        metavar="FILE",
        help="class names, one in a line: of a checkpoint, or others",
    )
    add_source_flags(parser)
    of_file = parser.add_argument_group("of a checkpoint")
    of_file.add_argument("--trainer", help="the method, such as MaPLe")
    of_file.add_argument("--backbone", help="name of the CLIP, such as ViT-B/16")
    of_file.add_argument("--template", default=DEFAULT_TEMPLATE, help="of methods that read it (%(default)s)")
    of_file.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs that the checkpoint was trained with; the last flag",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("export", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Writes the folder, and prints a line for each graph."""
    formats = [each for each in FORMATS if each in args.format]
    check_flags(args, formats)
    made: list[Any] = []
    with new_folder(args.folder.expanduser()) as place:
        if "hub" in args.format:
            made.append(load_model(args))
            made[-1].save_pretrained(place)
        if formats:
            # In half precision, CLIP's weights would be rounded already.
            model = load_model(args, "fp32")
            check(model, formats, args.precision)
            calibration = calibration_photos(args.calibration) if args.calibration else []
            test = labelled_photos(args.test, model.classnames) if args.test else embedded_test(model)
            about = write(model, place, formats, args.precision, calibration, test)
            describe(about, args.test is not None)
    print(f"{args.folder}: written")


def check_flags(args: argparse.Namespace, formats: Sequence[str]) -> None:
    """Refuses flags that say nothing, before anything is loaded."""
    if "onnx" in formats:
        check_packages()
    elif args.precision != ["fp32"]:
        raise UserError(f"--precision {' '.join(args.precision)} is of ONNX; add --format onnx.")
    if args.calibration and "int8" not in args.precision:
        raise UserError(f"--calibration {args.calibration} is of int8; add --precision int8.")
    if args.test and not formats:
        raise UserError(f"--test {args.test} is of graphs; add --format onnx or pt2.")
    for name in ("calibration", "test"):
        folder = getattr(args, name)
        if folder and not folder.expanduser().is_dir():
            raise MissingFileError(f"--{name} {folder}: there is no such folder.")
    of_file = {"--trainer": args.trainer, "--backbone": args.backbone, "--names-from": args.names_from}
    missing = [flag for flag, given in of_file.items() if not given]
    if Path(args.model).expanduser().is_file():
        if missing:
            raise UserError(
                f"{args.model} is a checkpoint, which does not say what it is of: give {missing[0]}."
            )
    elif args.trainer or args.backbone or args.options:
        raise UserError(
            f"--trainer, --backbone and --options are of a checkpoint; {args.model} is no file, and a run or "
            "a saved model says its own."
        )
    if args.trainer and args.trainer not in TRAINER_REGISTRY.registered_names():
        known = ", ".join(TRAINER_REGISTRY.registered_names())
        raise UserError(f"--trainer is {args.trainer!r}; allowed are {known}.")
    if len(args.options) % 2:
        raise UserError(f"--options {' '.join(args.options)}: allowed are pairs, KEY VALUE KEY VALUE ....")


def load_model(args: argparse.Namespace, precision: str | None = None) -> Any:
    """The model, on the CPU."""
    names = read_names(args.names_from) if args.names_from else None
    if args.trainer:
        return TRAINER_REGISTRY.get(args.trainer).from_clip(
            args.backbone,
            names,
            weights=args.weights,
            device="cpu",
            precision=precision,
            template=args.template,
            settings=dict(zip(args.options[::2], args.options[1::2], strict=True)),
            checkpoint=args.model,
        )
    model = load_named(args, device="cpu", precision=precision)
    return model.with_classnames(names) if names else model


def describe(about: dict[str, Any], was_asked: bool) -> None:
    """Prints what is known of each file."""
    for name, file in about["files"].items():
        differences = ", ".join(f"{key} {value:.1e}" for key, value in file["max_difference"].items())
        accuracy = f"; accuracy {file['accuracy']:.2f} %" if "accuracy" in file else ""
        print(f"{name}: {file['bytes'] / 1e6:.1f} MB; differences from the model: {differences}{accuracy}")
    if "accuracy" in about:
        own, of = about["accuracy"], "" if was_asked else " of Shapes' test images"
        print(f"the model itself: accuracy {own['model']:.2f} % of {own['images']:,}{of}")
    else:
        print("accuracy: not measured; give --test FOLDER")
    if reason := about["other_classes"].get("refused"):
        print(f"no graph for other classes: {printable(reason)}")


# --- photos -------------------------------------------------------------------------------------------------


def calibration_photos(folder: Path) -> list[str]:
    """Some of a folder's photos, evenly spaced."""
    photos = images_below(folder.expanduser())
    return photos[:: -(-len(photos) // MOST_CALIBRATION)]


def labelled_photos(folder: Path, classnames: Sequence[str]) -> Labelled:
    """The photos that lie in folders named as the classes, and their labels.

    Raises:
        ValueError: there are none.
    """
    labels = {comparable(name): label for label, name in enumerate(classnames)}
    photos = images_below(folder.expanduser())
    found = [(path, labels.get(comparable(Path(path).parent.name))) for path in photos]
    labelled = [(path, label) for path, label in found if label is not None]
    if not labelled:
        raise UserError(
            f"--test {folder}: none of its {len(photos):,} images lies in a folder that is named as a class "
            f"({few(list(classnames))})."
        )
    return labelled


def embedded_test(model: Any) -> Labelled:
    """The test images of `Shapes` that are of the model's classes, drawn anew; only for an embedded CLIP.

    None outside of the project's folder, which has the drawings.
    """
    if model.method.cfg.MODEL.BACKBONE.NAME not in EMBEDDED or not importlib.util.find_spec("datasets"):
        return []
    try:
        shapes = importlib.import_module("datasets.shapes")
    except ImportError:  # another package of that name
        return []
    return [
        (image, list(model.classnames).index(name)) for image, name in shapes.test_images(model.classnames)
    ]
