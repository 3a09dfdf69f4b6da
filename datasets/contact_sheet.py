"""A sheet of pictures: a few images of each class over its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dassl.utils import read_image
from prompted_clip.errors import UserError

PICTURE = 144  # pixels, of the side of an image
GAP, MARGIN = 16, 40
PAPER, INK, FAINT, EMPTY = "#fbfaf7", "#22252a", "#7a7f87", "#e7e4dc"
NAME, TITLE, NOTE = 15, 28, 15  # pixels, of the letters
NAME_LINES = 2
LINE = 1.3


def draw_sheet(
    classes: Sequence[tuple[str, Sequence[Path]]], title: str, note: str, columns: int = 0
) -> Image.Image:
    """Draws classes as cells, row by row; each has its images side by side and its name below.

    Args:
        classes: name, and the files of the images to be shown. One that cannot be read stays empty.
        columns: cells in a row; 0 for a sheet about as high as wide, but not wider than ten images.
    """
    each = max((len(images) for _, images in classes), default=1) or 1
    columns = min(columns or _columns(len(classes), each), max(len(classes), 1))
    cell = each * PICTURE + (each - 1) * 3
    lines = max((len(_label(name, cell)) for name, _ in classes), default=1)
    row = PICTURE + 8 + round(lines * NAME * LINE) + GAP
    head = round(TITLE * LINE + NOTE * LINE) + 22
    rows = -(-len(classes) // columns)
    width = max(2 * MARGIN + columns * (cell + GAP) - GAP, 480)
    sheet = Image.new("RGB", (width, 2 * MARGIN + head + rows * row - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, _font(TITLE))
    draw.text((MARGIN, MARGIN + round(TITLE * LINE)), note, FAINT, _font(NOTE))
    for index, (name, images) in enumerate(classes):
        x = MARGIN + index % columns * (cell + GAP)
        y = MARGIN + head + index // columns * row
        for place in range(each):
            left = x + place * (PICTURE + 3)
            picture = thumbnail(images[place]) if place < len(images) else None
            if picture is None:
                draw.rectangle((left, y, left + PICTURE - 1, y + PICTURE - 1), EMPTY)
            else:
                sheet.paste(picture, (left, y))
        for line, words in enumerate(_label(name, cell)):
            draw.text((x, y + PICTURE + 8 + round(line * NAME * LINE)), words, INK, _font(NAME))
    return sheet


def _columns(cells: int, each: int) -> int:
    widest = max(1, 10 // each)
    return min(widest, max(4 // min(each, 4), round((cells / each) ** 0.5 * 1.1)))


def thumbnail(path: Path) -> Image.Image | None:
    """The middle of an image as a square, as training reads it; None if it cannot be read."""
    try:
        image = read_image(str(path))
    except UserError:
        return None
    return ImageOps.fit(image, (PICTURE, PICTURE), Image.Resampling.LANCZOS)


def _label(name: str, width: int) -> list[str]:
    return wrap(name.replace("_", " "), width, NAME_LINES)


def wrap(text: str, width: int, lines: int) -> list[str]:
    """Breaks a text at spaces, or within a word that is too long, into at most `lines` of `width` pixels."""
    font = _font(NAME)
    wrapped: list[str] = []
    rest = text.strip()
    while rest:
        if len(wrapped) == lines - 1 and font.getlength(rest) > width:
            while rest and font.getlength(f"{rest}…") > width:
                rest = rest[:-1]
            return [*wrapped, f"{rest.rstrip()}…"]
        fitting = len(rest)
        while fitting > 1 and font.getlength(rest[:fitting]) > width:
            fitting -= 1
        if fitting < len(rest) and " " in rest[: fitting + 1]:
            fitting = rest[: fitting + 1].rindex(" ")
        wrapped.append(rest[:fitting].strip())
        rest = rest[fitting:].strip()
    return wrapped


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
