"""`verify` names what is wrong with a tree, and `show` draws it. The trees are drawn here."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from served_dtd import CLASSES, COUNTS, IMAGES, SPLIT, jpeg, run

from dassl.data.datasets import Datum
from datasets import __main__ as command
from datasets import contact_sheet, sources, verify
from datasets.contact_sheet import GAP, MARGIN, PICTURE, draw_sheet, wrap
from datasets.sources import known

SPLIT_NAME = "split_zhou_DescribableTextures.json"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The published numbers of DTD are those of the small one drawn here, until a test changes them."""
    content = json.loads(sources.SOURCES.read_text(encoding="utf-8"))
    entry = content["datasets"]["DescribableTextures"]
    entry["counts"] = dict(COUNTS)
    for file in entry["files"]:
        file.pop("hash", None)
    for module in (sources, command, verify):
        monkeypatch.setattr(module, "known", lambda: sources.read_sources(content))
    return entry["counts"]


@pytest.fixture
def images(counts, tmp_path: Path) -> Path:
    """A whole, small DTD under `tmp_path`; its folder of images."""
    for path, content in IMAGES.items():
        target = tmp_path / "dtd" / "images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (tmp_path / "dtd" / SPLIT_NAME).write_text(json.dumps(SPLIT), encoding="utf-8")
    return tmp_path / "dtd" / "images"


def problems(root: Path, capsys, *more: str) -> list[str]:
    """The lines of what is wrong; the exit code fits them."""
    capsys.readouterr()
    code = run("verify", "dtd", "--root", root, *more)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert code == (1 if lines else 0)
    return lines


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_a_whole_tree(more, images, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert problems(tmp_path, capsys, *more) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_no_folder(counts, tmp_path, capsys):
    (line,) = problems(tmp_path, capsys)
    assert line == (
        f"no folder {tmp_path}/dtd: run: python -m datasets prepare DescribableTextures --root {tmp_path}"
    )


def test_no_images(images, tmp_path, capsys):
    shutil.rmtree(images)
    (line,) = problems(tmp_path, capsys)
    assert line.startswith(f"no folder {images}: run: ")


def test_no_split_file(images, tmp_path, capsys):
    (tmp_path / "dtd" / SPLIT_NAME).unlink()
    (line,) = problems(tmp_path, capsys)
    assert line.startswith(
        f"no split file {tmp_path}/dtd/{SPLIT_NAME}. To fetch it, run: python -m datasets "
    )
    assert not (tmp_path / "dtd" / SPLIT_NAME).exists()


@pytest.mark.parametrize(
    "content", ["", "{", '{"train": []}', "[1]", '{"train": [["a"]], "val": [], "test": []}']
)
def test_a_damaged_split_file(content, images, tmp_path, capsys):
    (tmp_path / "dtd" / SPLIT_NAME).write_text(content)
    (line,) = problems(tmp_path, capsys)
    assert SPLIT_NAME in line
    assert "To fetch it, run: python -m datasets prepare" in line


def test_a_split_file_that_is_not_the_published_one(images, tmp_path, capsys, monkeypatch):
    entry = sources.find("dtd")
    changed = dataclasses.replace(entry, files=(sources.File(SPLIT_NAME, "md5:" + "0" * 32),))
    found, lines = verify.verify(changed, tmp_path)
    assert found == "6/3/3 train/val/test images, 3 classes"
    (line,) = lines
    assert f"{SPLIT_NAME} is not the published file (its md5 is " in line


def test_a_missing_class_folder(images, tmp_path, capsys):
    shutil.rmtree(images / "ünï còde")
    (line,) = problems(tmp_path, capsys)
    assert line.startswith(f"no folder {images}/ünï còde, of 4 images. Delete {images}, and run: ")


def test_missing_images(images, tmp_path, capsys):
    for number in (0, 3):
        (images / f"dotted/dotted {number}.jpg").unlink()
    (images / "banded/banded 1.jpg").unlink()
    lines = problems(tmp_path, capsys)
    assert [line.split(". Delete")[0] for line in lines] == [
        f"1 images are not in {images}/banded: banded 1.jpg",
        f"2 images are not in {images}/dotted: dotted 0.jpg, dotted 3.jpg",
    ]


def test_many_deviations_are_summed_up(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SHOWN", 1)
    for name in CLASSES:
        (images / name / f"{name} 0.jpg").unlink()
    lines = problems(tmp_path, capsys)
    assert len(lines) == 2
    assert lines[1].startswith(f"and 2 more like this, from 1 images are not in {images}/dotted: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (jpeg(1, (300, 300))[:-400], "truncated"),
        (b"", "cannot identify"),
        (b"<html>no image</html>", "cannot identify"),
    ],
)
def test_a_broken_image(content, reason, images, tmp_path, capsys):
    (images / "dotted/dotted 1.jpg").write_bytes(content)
    (line,) = problems(tmp_path, capsys)
    assert line.startswith(f"{images}/dotted/dotted 1.jpg does not decode (")
    assert reason in line


def test_a_sample_is_decoded_unless_all_are_asked_for(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SAMPLE", 5)
    for path in IMAGES:
        (images / path).write_bytes(b"broken")
    assert len(problems(tmp_path, capsys)) == 5
    monkeypatch.setattr(verify, "SHOWN", 100)
    assert len(problems(tmp_path, capsys, "--all")) == len(IMAGES)


def test_a_folder_in_an_image_s_place(images, tmp_path, capsys):
    (images / "dotted/dotted 1.jpg").unlink()
    (images / "dotted/dotted 1.jpg").mkdir()
    (line,) = problems(tmp_path, capsys)
    assert "dotted 1.jpg does not decode (" in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads everything")
def test_files_without_permission(images, tmp_path, capsys):
    (images / "dotted/dotted 1.jpg").chmod(0)
    (line,) = problems(tmp_path, capsys)
    assert "does not decode ([Errno 13] Permission denied" in line
    (images / "banded").chmod(0)
    try:
        assert f"{images}/banded is not readable: change its mode" in problems(tmp_path, capsys)[0]
    finally:
        (images / "banded").chmod(0o700)


def test_an_image_that_the_system_does_not_let_us_read(images, tmp_path, capsys, monkeypatch):
    opened = Image.open

    def refuse(path):
        if Path(path).name == "dotted 1.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(Image, "open", refuse)
    (line,) = problems(tmp_path, capsys)
    assert "dotted 1.jpg does not decode (cannot be read: [Errno 13] Permission denied" in line


def test_symbolic_links(images, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    (images / "dotted").rename(elsewhere)
    (images / "dotted").symlink_to(elsewhere)
    (elsewhere / "dotted 0.jpg").rename(tmp_path / "one.jpg")
    (elsewhere / "dotted 0.jpg").symlink_to(tmp_path / "one.jpg")
    assert problems(tmp_path, capsys) == []
    (tmp_path / "one.jpg").unlink()  # the link leads nowhere
    (line,) = problems(tmp_path, capsys)
    assert line.startswith(f"1 images are not in {images}/dotted: dotted 0.jpg")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train", "6 train images, published are 99"),
        ("val", "3 val images, published are 99"),
        ("test", "3 test images, published are 99"),
        ("classes", "3 classes, published are 99"),
        ("test_base", "2 test images of base classes, published are 99"),
        ("test_new", "1 test images of new classes, published are 99"),
    ],
)
def test_a_wrong_number(key, words, images, counts, tmp_path, capsys):
    counts[key] = 99
    (line,) = problems(tmp_path, capsys)
    assert line.startswith(f"{words}: another split, or not all images")


def test_the_split_of_another_dataset(images, tmp_path, capsys):
    def rows(part: str, number: int) -> list[list]:
        return [[f"pets/{part}_{index}.jpg", index % 37, f"pet {index % 37}"] for index in range(number)]

    split = {part: rows(part, number) for part, number in (("train", 2944), ("val", 736), ("test", 3669))}
    (tmp_path / "dtd" / SPLIT_NAME).write_text(json.dumps(split))
    lines = problems(tmp_path, capsys)
    assert lines[0].startswith(
        f"none of the 7349 listed images is in {images} (the first would be pets/train_0.jpg)"
    )
    assert (
        "the split is of another dataset, or the images are. Its numbers are those of OxfordPets. "
        in lines[0]
    )
    assert "2944 train images, published are 6" in lines[1]


def test_folders_are_listed_once_and_files_not_asked_for(images, tmp_path, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    monkeypatch.setattr(os, "stat", None)  # calling it is an error
    present, lost = verify.find_images(verify.Split(**SPLIT), images)
    monkeypatch.undo()
    assert sorted(listed) == sorted(images / name for name in CLASSES)
    assert (len(present), lost) == (12, {})


def test_verify_all_is_of_those_that_are_there(images, tmp_path, capsys):
    assert run("verify", "all", "--root", tmp_path) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert run("verify", "all", "--root", tmp_path / "nowhere") == 2
    assert "there is no dataset under" in capsys.readouterr().err


def test_a_benchmark_without_a_split_file_is_read_by_its_class(counts, tmp_path, monkeypatch, capsys):
    """Stands for ImageNet and the like, which make their own split."""
    folder = tmp_path / "dtd/images"
    items = {
        part: [Datum(impath=str(folder / path), label=label, classname=name) for path, label, name in rows]
        for part, rows in SPLIT.items()
    }
    read = SimpleNamespace(
        image_dir=str(folder), train_x=items["train"], val=items["val"], test=items["test"]
    )
    monkeypatch.setattr(verify, "open_dataset", lambda *_: read)
    entry = dataclasses.replace(sources.find("dtd"), split=None, files=())
    for path, content in IMAGES.items():
        (tmp_path / "dtd/images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dtd/images" / path).write_bytes(content)
    assert verify.verify(entry, tmp_path) == ("6/3/3 train/val/test images, 3 classes", [])


# Contact sheets ---------------------------------------------------------------------------------------------


def test_show_writes_a_png_of_the_classes(images, tmp_path, capsys):
    out = tmp_path / "new folder" / "sheet.png"
    assert run("show", "dtd", "--root", tmp_path, "--out", out, "--columns", "2", "--images", "2") == 0
    assert capsys.readouterr().out == f"Drawn: {out}\n"
    with Image.open(out) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        assert sheet.width == 2 * MARGIN + 2 * (2 * PICTURE + 3) + GAP
        for label, name in enumerate(CLASSES):  # the first image of each class stands where it belongs
            with Image.open(images / name / f"{name} 0.jpg") as image:
                colour = image.getpixel((0, 0))
            x = MARGIN + label % 2 * (2 * PICTURE + 3 + GAP) + PICTURE // 2
            column = [sheet.getpixel((x, y)) for y in range(sheet.height)]
            assert any(max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 6 for pixel in column)
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]


def test_show_in_pages_and_of_a_few(images, tmp_path, capsys):
    assert run("show", "dtd", "--root", tmp_path, "--out", tmp_path / "a.png", "--per-page", "2") == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a-2.png", "a.png"]
    assert run("show", "dtd", "--root", tmp_path, "--out", tmp_path / "b.png", "--classes", "1") == 0
    assert sorted(path.name for path in tmp_path.glob("b*.png")) == ["b.png"]


def test_show_of_an_image_that_cannot_be_read(images, tmp_path):
    (images / "dotted/dotted 0.jpg").write_bytes(b"broken")
    assert run("show", "dtd", "--root", tmp_path, "--out", tmp_path / "a.png") == 0


def test_show_of_what_is_not_there(counts, tmp_path, capsys):
    assert run("show", "dtd", "--root", tmp_path, "--out", tmp_path / "a.png") == 2
    assert "no split file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_shapes_draw_themselves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.shapes.IMAGES", {"train": 1, "val": 1, "test": 1})
    assert run("show", "shapes", "--root", tmp_path, "--out", tmp_path / "a.png") == 0
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 1000 < sheet.height
    assert run("verify", "shapes", "--root", tmp_path) == 0
    shutil.rmtree(tmp_path / "shapes")
    assert run("prepare", "Shapes", "--root", tmp_path) == 0
    assert "48/48/48 train/val/test images, 48 classes" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize(
    "text",
    [
        "cat",
        "2012 Mercedes-Benz Sprinter Van with a very long name that goes on",
        "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
        "ünïcödé wörds ñ",
        "",
        "  ",
    ],
)
def test_names_are_wrapped_into_their_width(text, lines):
    wrapped = wrap(text, 120, lines)
    font = contact_sheet._font(contact_sheet.NAME)
    assert len(wrapped) <= lines
    assert all(0 < font.getlength(line) <= 120 for line in wrapped)
    if not wrapped or not wrapped[-1].endswith("…"):
        assert "".join(wrapped).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("number", [0, 1, 7, 60])
def test_a_sheet_has_room_for_its_classes(number, tmp_path):
    sheet = draw_sheet([(f"class {index}", []) for index in range(number)], "Title", "note")
    column = [sheet.getpixel((MARGIN + PICTURE // 2, y)) for y in range(sheet.height)]
    empty = (231, 228, 220)
    tops = sum(above != empty == below for above, below in itertools.pairwise(column))
    columns = contact_sheet._columns(number, 1) if number else 1
    assert tops == -(-number // min(columns, max(number, 1)))
    assert column[-MARGIN // 2] == (251, 250, 247)


@pytest.mark.parametrize(
    "name", [name for name, entry in known().items() if entry.dataset and not entry.drawn]
)
def test_every_registered_dataset_that_is_not_there(name, tmp_path, capsys):
    """One line that names the folder and the command, and nothing made."""
    assert run("verify", name, "--root", tmp_path) == 1
    shown = capsys.readouterr().out
    assert re.search(
        rf"no folder {tmp_path}/{known()[name].folder}: run: python -m datasets prepare {name}", shown
    )
    assert list(tmp_path.iterdir()) == []


def test_a_jpeg_s_rotation_is_not_heeded_as_in_training(tmp_path):
    picture = Image.new("RGB", (400, 200), "red")
    picture.paste("blue", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    left = contact_sheet.thumbnail(tmp_path / "a.jpg").getpixel((10, 70))
    assert left[2] > 200 > 60 > left[0]
