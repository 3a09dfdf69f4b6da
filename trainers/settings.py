"""Checks of the configuration that all methods share, before anything is read or written."""

from __future__ import annotations

from dassl.engine.bounds import LARGEST, leaves
from prompted_clip import pixel_statistics
from prompted_clip.errors import UserError
from prompted_clip.factory import interpolation
from prompted_clip.model import CLIP
from prompted_clip.shared_prefix import AUTOMATIC, CLASSES_AT_ONCE, NEVER, WHOLE_AT_ONCE

IN_PROPORTION = -1  # of a setting that names a block


def in_proportion(block: int, layers: int) -> int:
    """The block of an encoder of so many layers that is as deep as `block` is in one of 12; 1 or more."""
    return max(1, block * layers // 12)


def keys_without_value(node, prefix: str = "") -> list[str]:
    """The full names of all keys that are None, as yacs allows them to be."""
    found = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += keys_without_value(value, f"{prefix}{key}.")
        elif value is None:
            found.append(f"{prefix}{key}")
    return found


def check_settings(cfg, takes_views: bool) -> None:
    """Refuses settings outside of a trainer's own that cannot work.

    Args:
        takes_views: whether the method's losses take several views of an image.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    if empty := keys_without_value(cfg):
        raise UserError(f"{empty[0]} is None; a prompt trainer wants a value. Leave it out for the default.")
    for key, value in leaves(cfg.TRAINER):
        if isinstance(value, (int, float)) and abs(value) > LARGEST:
            raise UserError(f"TRAINER.{key} is {value}; allowed are numbers up to {int(LARGEST):,}.")
    if cfg.TRAIN.CUDA_GRAPHS not in ("auto", "off"):
        raise UserError(f"TRAIN.CUDA_GRAPHS is {cfg.TRAIN.CUDA_GRAPHS!r}; allowed are auto and off.")
    if len(cfg.INPUT.SIZE) != 2:
        raise UserError(
            f"INPUT.SIZE is {cfg.INPUT.SIZE}; allowed are two numbers, height and width in pixels."
        )
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = cfg.INPUT[key]
        if len(values) != 3:
            raise UserError(f"INPUT.{key} is {values}; allowed are three numbers.")
    if cfg.INPUT.NO_TRANSFORM:
        raise UserError("INPUT.NO_TRANSFORM is True; allowed is False: CLIP takes transformed images.")
    views = cfg.DATALOADER.K_TRANSFORMS
    if views < 1 or (views > 1 and not takes_views):
        allowed = "1 or more" if takes_views else f"1: {cfg.TRAINER.NAME} takes one view of an image"
        raise UserError(f"DATALOADER.K_TRANSFORMS is {views}; allowed is {allowed}.")
    sampler = cfg.DATALOADER.TRAIN_X.SAMPLER
    if cfg.DATALOADER.VIEWS and sampler != "RandomSampler":
        raise UserError(
            f"DATALOADER.TRAIN_X.SAMPLER is {sampler}; with DATALOADER.VIEWS {cfg.DATALOADER.VIEWS}, whose "
            "views are drawn at random, allowed is RandomSampler."
        )
    if cfg.TEST.SPLIT not in ("val", "test"):
        raise UserError(f"TEST.SPLIT is {cfg.TEST.SPLIT!r}; allowed are val and test.")
    if cfg.MODEL.TEXT_CHUNK < NEVER:
        raise UserError(
            f"MODEL.TEXT_CHUNK is {cfg.MODEL.TEXT_CHUNK}; allowed are a number of classes, {AUTOMATIC} for "
            f"{CLASSES_AT_ONCE:,} ({WHOLE_AT_ONCE} where whole sentences run), and {NEVER} for all."
        )


def check_input(cfg, clip_model: CLIP) -> None:
    """Refuses images of another size than CLIP's; warns of another normalisation or interpolation, or none.

    Raises:
        ValueError: names INPUT.SIZE and the size that CLIP takes.
    """
    size, needed = tuple(cfg.INPUT.SIZE), clip_model.visual.input_resolution
    if size != (needed, needed):
        raise UserError(
            f"INPUT.SIZE is {size}, but this CLIP ({cfg.MODEL.BACKBONE.NAME}) takes images of "
            f"{needed}×{needed} pixels; set INPUT.SIZE to ({needed}, {needed})."
        )
    name = cfg.MODEL.BACKBONE.NAME
    if interpolation(name) != cfg.INPUT.INTERPOLATION:
        print(
            f"Warning: INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION}, but this CLIP was trained with "
            f"{interpolation(name)}"
        )
    trained_with = pixel_statistics(name)
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        print(
            "Warning: INPUT.TRANSFORMS has no normalize: images are not normalised, but this CLIP was "
            "trained with mean {} and std {}".format(*trained_with)
        )
        return
    for key, values in zip(("PIXEL_MEAN", "PIXEL_STD"), trained_with, strict=True):
        here = tuple(cfg.INPUT[key])
        if any(abs(a - b) > 1e-3 for a, b in zip(here, values, strict=True)):
            print(f"Warning: INPUT.{key} is {here}, but this CLIP was trained with {values}")
