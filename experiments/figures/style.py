"""How all figures look, and how they are written: PNG for the screen, PDF for print.

Colours start with those of Okabe and Ito (2008), which the colour-blind can tell apart. Each goes with a
marker of its own, so that a figure survives a grey print, too.
"""

from __future__ import annotations

import io
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.methods import Method
from prompted_clip.files import atomic_open

ROW_WIDTH = 7.0  # inches: a page's text, so that a point in the file is a point on paper
CHARACTERS_PER_INCH = 14  # of a footnote, in 9 points
TITLE_CHARACTERS = 11  # an inch, in 10 points
LINE_HEIGHT, LEGEND_HEIGHT = 0.165, 0.19  # inches a row
PNG_DPI = 200

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "pdf.fonttype": 42,  # letters stay letters
    "svg.fonttype": "none",
}
styled = matplotlib.rc_context(STYLE)  # around every function that draws

GREY, LIGHT_GREY = "0.35", "0.8"
# Okabe and Ito's without yellow, which is too pale for lines on white, and three more for the many methods.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLOURS = (*OKABE_ITO, "#7F7F7F", "#5B2A86", "#8C510A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

LISTED = 60  # methods, at most, that methods.yaml lists


class Look(NamedTuple):
    colour: str
    marker: str
    line: Any


def look(number: int) -> Look:
    """Colour, marker and line of the series of this number, counted from 0."""
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], LINES[number % len(LINES)])


def look_of(method: Method) -> Look:
    """A method's own look, the same in all figures: by its place in methods.yaml, else by its name.

    A method that is not listed, or has settings of its own ("MaPLe (N_CTX 8)"), looks like no listed one.
    """
    if method.place < LISTED and " (" not in method.key:
        return look(method.place)
    return look(LISTED + zlib.crc32(method.key.encode()) % (len(COLOURS) * len(MARKERS) - LISTED))


@dataclass
class NamedFigure:
    """A figure with the name of its files.

    Attributes:
        name: of the files, without ending.
        caption: a sentence or two: what is drawn, and over what is averaged.
        notes: what is missing, a line each.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    notes: list[str] = field(default_factory=list)


def panels(
    columns: int, rows: int = 1, width: float = ROW_WIDTH, height: float = 2.8, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, `(rows columns)`.

    Args:
        width: of the whole figure, in inches.
        height: of each row, in inches.
        options: of matplotlib's `subplots`, such as `sharey`.
    """
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def wrapped(title: str, inches: float) -> str:
    """A title in lines of this length."""
    return textwrap.fill(title, int(inches * TITLE_CHARACTERS), break_on_hyphens=False)


def finish(
    figure: Figure, sentences: Sequence[str], handles: Sequence[Any] = (), labels: Sequence[str] = ()
) -> None:
    """Adds one legend for all panels and, below it, a footnote; the figure grows by what they need.

    Args:
        sentences: of the footnote; empty ones are left out.
        handles, labels: of the legend.
    """
    width, height = figure.get_size_inches()
    text = " ".join(sentence for sentence in sentences if sentence)
    lines = textwrap.wrap(text, int(width * CHARACTERS_PER_INCH))
    below = LINE_HEIGHT * len(lines) + (0.06 if lines else 0)
    columns = rows = 0
    if labels:
        longest = max(map(len, labels)) + 6  # with the sample of the line
        columns = min(len(labels), max(1, int(width * CHARACTERS_PER_INCH / longest)))
        rows = -(-len(labels) // columns)
    legend = LEGEND_HEIGHT * rows + (0.08 if rows else 0)
    height += below + legend
    figure.set_figheight(height)
    share = (below + legend) / height
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, share, 1, 1 - share))
    if labels:
        shown = figure.legend(
            handles,
            [f" {label}" if label.startswith("_") else label for label in labels],  # "_" hides an entry
            loc="lower center",
            bbox_to_anchor=(0.5, below / height),
            ncols=columns,
            borderaxespad=0,
            labelspacing=0.3,
        )
        shown.set_in_layout(False)  # its room is what was left above
    if lines:
        figure.text(0.05 / width, 0.04 / height, "\n".join(lines), color=GREY, fontsize=9, va="bottom")


def save(drawn: NamedFigure, folder: Path) -> list[Path]:
    """Writes `<name>.png` and `<name>.pdf`, under the title and the date, and returns their paths.

    Raises:
        OSError: the folder cannot be written to.
    """
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    with matplotlib.rc_context(STYLE):
        drawn.figure.suptitle(wrapped(f"{drawn.title}, {today}", drawn.figure.get_figwidth()))
    paths = [folder / f"{drawn.name}.{ending}" for ending in ("png", "pdf")]
    for path, content in zip(paths, (png_bytes(drawn.figure), _pdf_bytes(drawn.figure)), strict=True):
        with atomic_open(path, "wb") as file:
            file.write(content)
    return paths


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return _bytes(figure, format="png", dpi=PNG_DPI)


def _pdf_bytes(figure: Figure) -> bytes:
    return _bytes(figure, format="pdf", metadata={"CreationDate": None})  # the same figure, the same file


def _bytes(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, **options)
    return buffer.getvalue()
