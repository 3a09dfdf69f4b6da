"""What becomes of an image file: 16 bits, rotation, shapes, pipes, damage; the same wherever it is read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from dassl.utils import read_image
from datasets.contact_sheet import thumbnail
from datasets.verify import decoding_problem
from prompted_clip.console import FAILED, explain
from prompted_clip.errors import UserError

RAMP = np.linspace(0, 1, 64, dtype=np.float64).reshape(8, 8)


def save(path: Path, pixels: np.ndarray, **options) -> str:
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def message(path: str) -> str:
    with pytest.raises(UserError) as raised:
        read_image(path)
    text = str(raised.value)
    assert path in text
    assert "\n" not in text
    assert len(text) < 2000
    assert decoding_problem(Path(path))
    assert thumbnail(Path(path)) is None
    return text


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_sixteen_bits_are_scaled(suffix, tmp_path):
    if suffix == ".jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    wide = save(tmp_path / f"16{suffix}", np.round(RAMP * 65535).astype(np.uint16))
    image = read_image(wide)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[..., 0] - RAMP * 255).max() <= 0.6


def test_eight_bits_and_colours_are_as_pillow_reads_them(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    for suffix, pixels in ((".png", rgb), (".tif", rgb), (".bmp", rgb[..., 0]), (".jpg", rgb)):
        path = save(tmp_path / f"8{suffix}", pixels)
        assert read_image(path).tobytes() == Image.open(path).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_pixels_of_unknown_range_are_refused(kind, tmp_path):
    assert "Save it with 8 or 16 bits" in message(save(tmp_path / "a.tif", (RAMP * 1000).astype(kind)))


def test_a_rotation_is_applied_nowhere(tmp_path):
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", pixels, exif=exif)
    assert np.asarray(read_image(path))[:25].mean() > 240
    assert np.asarray(thumbnail(Path(path)))[:60].mean() > 240


def test_a_kind_that_needs_a_plugin_says_which(tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    assert "pillow_heif" in message(str(path))


@pytest.mark.parametrize("shape", [(1, 65000), (65000, 1), (2, 8000)])
def test_lines_are_refused(shape, tmp_path):
    assert "Crop it" in message(save(tmp_path / "a.png", np.zeros(shape, np.uint8)))
    assert read_image(save(tmp_path / "b.png", np.zeros((2, 1000), np.uint8))).size == (1000, 2)


def test_a_huge_image_says_the_limit_and_how_to_lift_it(tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("1", (20000, 10000)).save(path)
    assert "PIL.Image.MAX_IMAGE_PIXELS" in message(path)


@pytest.mark.parametrize("name", ["pipe.jpg", "folder.jpg", "device.jpg"])
def test_what_is_no_regular_file_is_not_waited_for(name, tmp_path):
    path = tmp_path / name
    if name == "pipe.jpg":
        os.mkfifo(path)
    elif name == "folder.jpg":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert "no regular file" in message(str(path))


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "EMFILE"])
@pytest.mark.parametrize("of", ["stat", "open", "read"])
def test_a_failing_disk_is_no_damaged_image(of, name, tmp_path, monkeypatch):
    """A sweep tries such a run again: exit code 1, not 2."""
    path = save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    number = getattr(errno, name)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    place = {"stat": "os.stat", "open": "builtins.open", "read": "PIL.Image.Image.convert"}[of]
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(OSError, match=r"a\.png") as raised:
            read_image(path)
    assert explain(raised.value) == (FAILED, str(raised.value))


@pytest.mark.parametrize(
    "suffix", ["avif", "webp", "png", "jpg", "gif", "tif", "bmp", "jp2", "tga", "qoi", "ppm"]
)
def test_damage_is_one_error(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    try:
        save(path, rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {suffix}")
    whole = path.read_bytes()
    for _ in range(30):
        content = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for position in rng.integers(0, len(content), rng.integers(0, 6)):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert read_image(str(path)).mode == "RGB"
        except UserError as error:
            reason = str(error)
        else:
            reason = ""
        assert "\n" not in reason
