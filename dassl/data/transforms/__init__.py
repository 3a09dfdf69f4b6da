"""Image transforms by name."""

from dassl.data.transforms.transforms import (
    IMAGE_TRANSFORM_REGISTRY,
    INTERPOLATION_MODES,
    TENSOR_TRANSFORM_REGISTRY,
    build_transform,
    interpolation_mode,
)

__all__ = [
    "IMAGE_TRANSFORM_REGISTRY",
    "INTERPOLATION_MODES",
    "TENSOR_TRANSFORM_REGISTRY",
    "build_transform",
    "interpolation_mode",
]
