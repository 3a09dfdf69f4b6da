"""What tests look for in figures and in their files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def assert_written(folder: Path, *names: str) -> None:
    assert {path.name for path in folder.iterdir()} == {f"{n}.{e}" for n in names for e in ("png", "pdf")}
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            image.verify()
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 200
            assert round(image.info["dpi"][0]) == 200
        pdf = (folder / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/Subtype /Type3" not in pdf  # letters stay letters
        assert pdf.rstrip().endswith(b"%%EOF")


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def words_of(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.texts)
