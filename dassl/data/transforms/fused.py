"""`ToTensor` and `Normalize` in one pass over the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T


class Compose(T.Compose):
    """torchvision's `Compose`; where `Normalize` follows `ToTensor`, an RGB image goes through both at once.

    The numbers are the same to the last bit: the same three operations in float32 on each. What is spared are
    two copies of the image. `transforms` is the plain list of steps, and may be changed.
    """

    def __call__(self, img: Any) -> Any:
        steps = list(self.transforms)
        while steps:
            step = steps.pop(0)
            if type(step) is T.ToTensor and steps and _fits(img, steps[0]):
                normalize = steps.pop(0)
                img = to_normalized_tensor(img, normalize.mean, normalize.std)
            else:
                img = step(img)
        return img


def _fits(img: Any, step: Any) -> bool:
    return (
        type(step) is T.Normalize
        and isinstance(img, Image.Image)
        and img.mode == "RGB"
        and torch.get_default_dtype() == torch.float32  # which is what ToTensor gives
        and len(step.mean) == len(step.std) == 3
        and bool(np.array(step.std, dtype=np.float32).all())  # torchvision says what is wrong with a 0
    )


def to_normalized_tensor(img: Image.Image, mean: Any, std: Any) -> Tensor:
    """`(channel height width)` in float32: each channel in [0, 1], less its mean, over its deviation."""
    pixels = np.asarray(img).transpose(2, 0, 1)
    output = np.empty(pixels.shape, dtype=np.float32)
    np.copyto(output, pixels)
    output /= np.float32(255)
    output -= np.array(mean, dtype=np.float32)[:, None, None]
    output /= np.array(std, dtype=np.float32)[:, None, None]
    return torch.from_numpy(output)
