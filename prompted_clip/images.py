"""Image files → PIL images → a model's input, without torchvision, which takes seconds to import."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE as BITS_PER_SAMPLE
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from .console import MAY_PASS
from .errors import MissingFileError, UserError

MOST_ELONGATED = 500  # an image's longer side by its shorter one: resizing by the shorter enlarges both
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jfif", ".jpe", ".mpo", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".apng", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
)
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """A model's test transform: PIL image → `(3 height width)` in float32, the bits of torchvision's.

    The shorter side is resized to `size` pixels, the middle square is cut out, and the colours are scaled to
    [0, 1] and normalised; not without `mean` and `std`.

    Args:
        interpolation: `bicubic`, `bilinear` or `nearest`.
    """

    size: int
    interpolation: str
    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __call__(self, image: Image.Image) -> Tensor:
        image = as_rgb(image, "given")
        width, height = image.size
        if min(width, height) != self.size:
            longer = int(self.size * max(width, height) / min(width, height))
            size = (self.size, longer) if width <= height else (longer, self.size)
            image = image.resize(size, RESAMPLING[self.interpolation])
            width, height = size
        left, top = (round((side - self.size) / 2.0) for side in (width, height))
        image = image.crop((left, top, left + self.size, top + self.size))
        if self.mean is None or self.std is None:
            return to_normalized_tensor(image, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return to_normalized_tensor(image, self.mean, self.std)


def to_normalized_tensor(
    img: Image.Image | np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The image `(channel height width)` in float32, scaled to [0, 1] and normalised by mean and std.

    Args:
        img: of three channels; an array of uint8 is `(height width channel)`.
    """
    pixels = np.asarray(img).transpose(2, 0, 1)
    output = np.empty(pixels.shape, dtype=np.float32)
    np.copyto(output, pixels)
    output /= np.float32(255)
    output -= np.array(mean, dtype=np.float32)[:, None, None]
    output /= np.array(std, dtype=np.float32)[:, None, None]
    return torch.from_numpy(output)


def read_image(path: str) -> Image.Image:
    """Reads an image as RGB, as it lies in the file: a rotation in its EXIF data is not applied.

    Grey values of 16 bits are scaled to 8.

    Raises:
        FileNotFoundError: no such file.
        OSError: the disk or the system failed, as its errno says, and not the file.
        ValueError: the file is damaged or no image, or one that cannot be meant: too large, a thin line, or
            of pixels without a known range.
    """
    try:
        # A named pipe or a device would be waited for.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"image {path} is no regular file. Take it out of the list of images.")
        with Image.open(path) as image:
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise UserError(
                    f"image {path} has {image.width} x {image.height} pixels; one side may have up to "
                    f"{MOST_ELONGATED} times as many as the other. Crop it, or take it out of the list."
                )
            return as_rgb(image, path)
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise MissingFileError(f"image {path} does not exist") from None
    except Image.DecompressionBombError as error:
        raise UserError(
            f"image {path} cannot be read: {error}. Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS "
            "in a file that --plugin names."
        ) from error
    except Exception as error:  # Pillow's readers raise what they stumble over, also RuntimeErrors
        if isinstance(error, OSError) and error.errno in MAY_PASS:
            error.filename = error.filename or path
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if path.lower().endswith((".heic", ".heif", ".hif")) and isinstance(error, UnidentifiedImageError):
            raise UserError(
                f"image {path} is of a kind that Pillow reads with a plugin only. Convert it to .jpg, or "
                "give --plugin a file that calls pillow_heif.register_heif_opener()."
            ) from error
        raise UserError(
            f"image {path} cannot be read: {reason}. Fetch it again, or take it out of the list of images."
        ) from error


def as_rgb(image: Image.Image, path: str) -> Image.Image:
    """The image as RGB; grey values of 16 bits are scaled to 8. `path` is for the message.

    Raises:
        ValueError: its pixels are of a range that is not known.
    """
    # Pillow cuts what is above 255 off, so that 16 bits become white.
    is_of_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,)) if isinstance(image, TiffImageFile) else (16,)
    if is_of_16_bits and tuple(bits) == (16,):
        pixels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    elif image.mode.startswith(("I", "F")):
        raise UserError(
            f"image {path} has pixels of mode {image.mode}, whose range is not known. "
            "Save it with 8 or 16 bits."
        )
    return image.convert("RGB")
