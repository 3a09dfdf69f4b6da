"""`ToTensor` and `Normalize` in one pass over the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T

from prompted_clip.images import to_normalized_tensor


class Compose(T.Compose):
    """torchvision's `Compose`; where `Normalize` follows `ToTensor`, an RGB image goes through both at once.

    The numbers are the same to the last bit: the same three operations in float32. It saves two copies of the
    image. `transforms` is the plain list of steps, and may be changed.
    """

    def __call__(self, img: Any, done: int = 0) -> Any:
        """Takes an image through all steps, or through those that are left when the first `done` are done."""
        steps = list(self.transforms[done:])
        while steps:
            step = steps.pop(0)
            if type(step) is T.ToTensor and steps and _fits(img, steps[0]):
                normalize = steps.pop(0)
                img = to_normalized_tensor(img, normalize.mean, normalize.std)
                continue
            if isinstance(img, np.ndarray) and not img.flags.writeable:
                img = Image.fromarray(img)  # torch warns of arrays that cannot be written
            img = step(img)
        return img


def _fits(img: Any, step: Any) -> bool:
    return (
        type(step) is T.Normalize
        and _is_rgb(img)
        and torch.get_default_dtype() == torch.float32  # which is what ToTensor gives
        and len(step.mean) == len(step.std) == 3
        and bool(np.array(step.std, dtype=np.float32).all())  # torchvision says what is wrong with a 0
    )


def _is_rgb(img: Any) -> bool:
    if isinstance(img, np.ndarray):
        return img.dtype == np.uint8 and img.ndim == 3 and img.shape[-1] == 3
    return isinstance(img, Image.Image) and img.mode == "RGB"
