"""Image transforms by the names in `cfg.INPUT.TRANSFORMS`.

They are applied in the order of registration, which is that of this file, whatever the order of the names:
those on the PIL image, the conversion to a tensor, those on the tensor. Testing only resizes, crops and
normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import GaussianNoise
from yacs.config import CfgNode

from dassl.data.transforms.fused import Compose
from dassl.utils import Registry, get_most_similar_str_to_a_from_b
from prompted_clip.errors import UserError

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

# Functions by their names: each takes cfg, prints its line, and returns a callable for the image: PIL's, or a
# tensor `(channel height width)`, in [0, 1] until it is normalised.
IMAGE_TRANSFORM_REGISTRY = Registry("IMAGE_TRANSFORM")
TENSOR_TRANSFORM_REGISTRY = Registry("TENSOR_TRANSFORM")


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable[[Any], Any] | None:
    """Builds the transform from a PIL image to a model's input.

    Args:
        cfg: reads `INPUT`.
        is_train: for training; otherwise for testing.
        choices: names to use in place of `cfg.INPUT.TRANSFORMS`.

    Returns:
        The transform, or None where `INPUT.NO_TRANSFORM` is set.

    Raises:
        ValueError: an unknown name of a transform or interpolation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    if choices is None:
        choices = cfg.INPUT.TRANSFORMS
    known = IMAGE_TRANSFORM_REGISTRY.registered_names() + TENSOR_TRANSFORM_REGISTRY.registered_names()
    known.append("center_crop")  # always done in testing; in training the name is allowed and does nothing
    for name in choices:
        if name not in known:
            nearest = get_most_similar_str_to_a_from_b(name, known)
            raise UserError(f"INPUT.TRANSFORMS has {name!r}, which is unknown; did you mean {nearest!r}?")
    interpolation_mode(cfg)  # an unknown one is an error before anything is printed
    print(f"Building transform_{'train' if is_train else 'test'}")
    return _train_transform(cfg, choices) if is_train else _test_transform(cfg, choices)


def _train_transform(cfg: CfgNode, choices: Sequence[str]) -> Compose:
    steps: list[Callable[[Any], Any]] = []
    # The two crops give the right size by themselves.
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        print(f"+ resize to {cfg.INPUT.SIZE[0]}x{cfg.INPUT.SIZE[1]}")
        steps.append(T.Resize(cfg.INPUT.SIZE, interpolation=interpolation_mode(cfg)))
    steps += _chosen(IMAGE_TRANSFORM_REGISTRY, choices, cfg)
    steps.append(_to_tensor())
    steps += _chosen(TENSOR_TRANSFORM_REGISTRY, choices, cfg)
    return Compose(steps)


def _test_transform(cfg: CfgNode, choices: Sequence[str]) -> Compose:
    height, width = cfg.INPUT.SIZE
    print(f"+ resize the smaller edge to {max(height, width)}")
    print(f"+ {height}x{width} center crop")
    steps: list[Callable[[Any], Any]] = [
        T.Resize(max(height, width), interpolation=interpolation_mode(cfg)),
        T.CenterCrop((height, width)),
        _to_tensor(),
    ]
    steps += _chosen(
        TENSOR_TRANSFORM_REGISTRY,
        [name for name in choices if name in ("normalize", "instance_norm")],
        cfg,
    )
    return Compose(steps)


def _chosen(registry: Registry, choices: Sequence[str], cfg: CfgNode) -> list[Callable[[Any], Any]]:
    return [registry.get(name)(cfg) for name in registry.registered_names() if name in choices]


def interpolation_mode(cfg: CfgNode) -> InterpolationMode:
    """torchvision's mode for `cfg.INPUT.INTERPOLATION`; raises a ValueError where there is none."""
    if cfg.INPUT.INTERPOLATION not in INTERPOLATION_MODES:
        allowed = ", ".join(INTERPOLATION_MODES)
        raise UserError(f"INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION!r}; choose from {allowed}.")
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


def _to_tensor() -> T.ToTensor:
    print("+ to torch tensor of range [0, 1]")
    return T.ToTensor()


# On the image


@IMAGE_TRANSFORM_REGISTRY.register()
def random_translation(cfg: CfgNode) -> Any:
    print("+ random translation")
    height, width = cfg.INPUT.SIZE
    larger = T.Resize((round(height * 1.125), round(width * 1.125)))
    return T.RandomChoice([T.Resize((height, width)), T.Compose([larger, T.RandomCrop((height, width))])])


@IMAGE_TRANSFORM_REGISTRY.register()
def random_crop(cfg: CfgNode) -> Any:
    print(f"+ random crop (padding = {cfg.INPUT.CROP_PADDING})")
    return T.RandomCrop(cfg.INPUT.SIZE, padding=cfg.INPUT.CROP_PADDING)


@IMAGE_TRANSFORM_REGISTRY.register()
def random_resized_crop(cfg: CfgNode) -> Any:
    size, scale = cfg.INPUT.SIZE, cfg.INPUT.RRCROP_SCALE
    print(f"+ random resized crop (size={size}, scale={scale})")
    return T.RandomResizedCrop(size, scale=scale, interpolation=interpolation_mode(cfg))


@IMAGE_TRANSFORM_REGISTRY.register()
def random_flip(cfg: CfgNode) -> Any:
    print("+ random flip")
    return T.RandomHorizontalFlip()


# AutoAugment, https://arxiv.org/abs/1805.09501


@IMAGE_TRANSFORM_REGISTRY.register()
def imagenet_policy(cfg: CfgNode) -> Any:
    print("+ imagenet policy")
    return T.AutoAugment(T.AutoAugmentPolicy.IMAGENET)


@IMAGE_TRANSFORM_REGISTRY.register()
def cifar10_policy(cfg: CfgNode) -> Any:
    print("+ cifar10 policy")
    return T.AutoAugment(T.AutoAugmentPolicy.CIFAR10)


@IMAGE_TRANSFORM_REGISTRY.register()
def svhn_policy(cfg: CfgNode) -> Any:
    print("+ svhn policy")
    return T.AutoAugment(T.AutoAugmentPolicy.SVHN)


# RandAugment, https://arxiv.org/abs/1909.13719, and relatives that draw the strength too. torchvision has one
# step of those as TrivialAugment; the ranges of strength are its own.


@IMAGE_TRANSFORM_REGISTRY.register()
def randaugment(cfg: CfgNode) -> Any:
    number, magnitude = cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M
    print(f"+ randaugment (n={number}, m={magnitude})")
    if not 0 <= magnitude <= 30:
        raise UserError(f"INPUT.RANDAUGMENT_M is {magnitude}; it must lie between 0 and 30.")
    return T.RandAugment(number, magnitude, num_magnitude_bins=31)


@IMAGE_TRANSFORM_REGISTRY.register()
def randaugment_fixmatch(cfg: CfgNode) -> Any:
    print(f"+ randaugment_fixmatch (n={cfg.INPUT.RANDAUGMENT_N})")
    return T.Compose([T.TrivialAugmentWide() for _ in range(cfg.INPUT.RANDAUGMENT_N)])


@IMAGE_TRANSFORM_REGISTRY.register()
def randaugment2(cfg: CfgNode) -> Any:
    print(f"+ randaugment2 (n={cfg.INPUT.RANDAUGMENT_N})")
    return T.Compose([T.RandomApply([T.TrivialAugmentWide()], p=0.6) for _ in range(cfg.INPUT.RANDAUGMENT_N)])


@IMAGE_TRANSFORM_REGISTRY.register()
def colorjitter(cfg: CfgNode) -> Any:
    brightness, contrast = cfg.INPUT.COLORJITTER_B, cfg.INPUT.COLORJITTER_C
    saturation, hue = cfg.INPUT.COLORJITTER_S, cfg.INPUT.COLORJITTER_H
    print(
        f"+ color jitter (brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue})"
    )
    return T.ColorJitter(brightness, contrast, saturation, hue)


@IMAGE_TRANSFORM_REGISTRY.register()
def randomgrayscale(cfg: CfgNode) -> Any:
    print("+ random gray scale")
    return T.RandomGrayscale(p=cfg.INPUT.RGS_P)


@IMAGE_TRANSFORM_REGISTRY.register()
def gaussian_blur(cfg: CfgNode) -> Any:
    print(f"+ gaussian blur (kernel={cfg.INPUT.GB_K})")
    return T.RandomApply([T.GaussianBlur(cfg.INPUT.GB_K)], p=cfg.INPUT.GB_P)


# On the tensor


@TENSOR_TRANSFORM_REGISTRY.register()
def cutout(cfg: CfgNode) -> Any:
    print(f"+ cutout (n_holes={cfg.INPUT.CUTOUT_N}, length={cfg.INPUT.CUTOUT_LEN})")
    return Cutout(cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN)


@TENSOR_TRANSFORM_REGISTRY.register()
def normalize(cfg: CfgNode) -> Any:
    print(f"+ normalization (mean={cfg.INPUT.PIXEL_MEAN}, std={cfg.INPUT.PIXEL_STD})")
    return T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD)


@TENSOR_TRANSFORM_REGISTRY.register()
def gaussian_noise(cfg: CfgNode) -> Any:
    print(f"+ gaussian noise (mean={cfg.INPUT.GN_MEAN}, std={cfg.INPUT.GN_STD})")
    noise = GaussianNoise(cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD, clip=False)  # normalised values leave [0, 1]
    return T.RandomApply([noise], p=0.5)


@TENSOR_TRANSFORM_REGISTRY.register()
def instance_norm(cfg: CfgNode) -> Any:
    print("+ instance normalization")
    return InstanceNormalization()


class Cutout:
    """Blacks out `n_holes` squares of `length` pixels at random places, https://arxiv.org/abs/1708.04552.

    A square may stick out of the image.
    """

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img: Tensor) -> Tensor:
        img = img.clone()
        for _ in range(self.n_holes):
            top, left = (int(torch.randint(size, ())) - self.length // 2 for size in img.shape[-2:])
            img[..., max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return img


class InstanceNormalization:
    """Normalises each channel of an image to mean 0 and std 1."""

    def __call__(self, img: Tensor) -> Tensor:
        mean = img.mean((-2, -1), keepdim=True)
        return (img - mean) / (img.std((-2, -1), keepdim=True) + 1e-8)
