"""A page in the browser to drop a photo on: its classes, and where the model looks.

    python -m scripts.demo output/run

The page is this machine's alone (127.0.0.1). It takes gradio: pip install gradio.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dassl.data.class_names import few
from prompted_clip.attention import cls_attention
from prompted_clip.console import run_command, shortened
from prompted_clip.errors import UserError
from prompted_clip.escaping import printable
from prompted_clip.images import read_image
from prompted_clip.model import VisionTransformer

from .classify import add_model_flags, load_model

ADDRESS = "127.0.0.1"
MOST_MEGABYTES, MOST_NAMES, MOST_CHARACTERS = 30, 1000, 50_000  # of a photo, and of class names
MOST_BARS = 8
COLOUR = np.array([213, 94, 0])  # of attention, as in the figures


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo", description="A page to drop photos on: their classes, and where the model looks."
    )
    add = parser.add_argument
    add("model", help="folder of a run, folder of a saved model, or a model of the hub (user/name)")
    add("--port", type=int, default=7860, help="of the page (default: %(default)s)")
    add("--open", action="store_true", help="opens the page in the browser")
    add_model_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("demo", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}; allowed is 1 to 65535.")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page takes gradio, which is not installed: pip install gradio.") from error
    model = load_model(args)
    page = build_page(gradio, model)
    try:
        page.launch(
            server_name=ADDRESS,
            server_port=args.port,
            inbrowser=args.open,
            max_file_size=f"{MOST_MEGABYTES}mb",
            share=False,
        )
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"--port {args.port} is taken by another program. Give another.") from error


def build_page(gradio: Any, model: Any) -> Any:
    """The page: photo and class names on the left, probabilities and attention on the right."""
    known = "\n".join(model.classnames) if len(model.classnames) <= MOST_NAMES else ""
    sees = isinstance(model.clip_model.visual, VisionTransformer)

    def show(path: str | None, names: str) -> tuple[Any, Any, str]:
        if not path:
            return None, None, "Drop a photo on the left."
        try:
            probabilities, attention = classify(model, path, names, sees)
        except UserError as error:
            message = shortened(str(error).replace(f"image {path}", "The photo").replace(path, "it"), 500)
            return None, None, f"**{escaped(message)}**"
        return probabilities, attention, ""

    with gradio.Blocks(title=f"{model.method.name}", analytics_enabled=False) as page:
        gradio.Markdown(
            f"## {model.method.name} on {escaped(model.method.cfg.MODEL.BACKBONE.NAME)}\n"
            f"Drop a photo. Classes: {escaped(printable(few(model.classnames)))}."
        )
        with gradio.Row():
            with gradio.Column():
                photo = gradio.File(label="Photo", file_count="single", type="filepath", height=120)
                names = gradio.Textbox(known, label="Class names, one in a line", lines=6, max_lines=12)
                button = gradio.Button("Classify", variant="primary")
            with gradio.Column():
                said = gradio.Markdown("Drop a photo on the left.")
                bars = gradio.Label(label="Probability", num_top_classes=MOST_BARS)
                seen = gradio.Image(
                    label="Where CLS looks in the last block", interactive=False, height=260, visible=sees
                )
        for event in (photo.change, button.click, names.submit):
            event(show, [photo, names], [bars, seen, said], concurrency_limit=1)
    return page


def classify(model: Any, path: str, names: str, sees: bool) -> tuple[dict[str, float], Image.Image | None]:
    """Probabilities by class name, and the photo with what CLS attends to.

    Raises:
        ValueError: the photo cannot be read, or the class names cannot be meant.
    """
    if len(names) > MOST_CHARACTERS:
        raise UserError(f"The class names have {len(names):,} characters; allowed are {MOST_CHARACTERS:,}.")
    lines = [line.strip() for line in names.splitlines() if line.strip()]
    if len(lines) > MOST_NAMES:
        raise UserError(f"There are {len(lines):,} class names; allowed are {MOST_NAMES:,}.")
    image = read_image(path)
    prediction = model.predict(image, lines if lines and lines != list(model.classnames) else None)
    return dict(prediction), overlay(model, image) if sees else None


def overlay(model: Any, image: Image.Image) -> Image.Image:
    """The photo as the model sees it, in grey, and in colour what the CLS token attends to."""
    tensor = model.preprocess(image)[None].to(model.clip_model.logit_scale.device)
    with model.autocast():
        found = cls_attention(model.clip_model.visual, lambda: model.encode_image(tensor)).patches
    pixels = tensor[0].cpu().numpy().transpose(1, 2, 0)
    low, high = pixels.min(), pixels.max()
    grey = (255 * (pixels - low) / max(high - low, 1e-6)).mean(axis=2)
    share = Image.fromarray(found / found.max()).resize(grey.shape[::-1], Image.Resampling.BILINEAR)
    alpha = 0.85 * np.asarray(share)[..., None]
    mixed = (1 - alpha) * grey[..., None] + alpha * COLOUR
    side = max(256, grey.shape[0])
    return Image.fromarray(mixed.round().astype(np.uint8)).resize((side, side))


def escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{each}" if each in r"\`*_{}[]()#+-.!|~$" else each for each in text)


if __name__ == "__main__":
    sys.exit(main())
