"""open_clip's models: which of them this CLIP can be, their weights, and what weights do not tell."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import nn

from .errors import DownloadError, UserError
from .factory import OPEN_CLIP
from .mlp import QuickGELU

# Options of open_clip's configs that this CLIP has, or that do not matter to a frozen encoder; of all others
# it has the default only.
VISION_OPTIONS = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "no_ln_pre",
    "pos_embed_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs",
}  # fmt: skip
TEXT_OPTIONS = {
    "context_length", "width", "heads", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs",
    "final_ln_after_pool", "eos_id", "pad_id",
}  # fmt: skip


def split_name(name: str) -> tuple[str, str]:
    """`"open_clip:ViT-B-16/laion2b_s34b_b88k"` → architecture and tag; the tag may be missing."""
    architecture, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
    return architecture, tag


def model_options(name: str) -> dict[str, Any]:
    """What the weights of open_clip's model `name` do not tell: heads, activation, epsilon of the norms.

    Raises:
        ValueError: open_clip has no such model, or this CLIP cannot be it; says why.
    """
    architecture, tag = split_name(name)
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(name.removeprefix(OPEN_CLIP), open_clip.list_models(), n=1)
        hint = f"Did you mean {OPEN_CLIP}{near[0]}? " if near else ""
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}; open_clip has no model {architecture!r}. {hint}"
            "Its models are listed by: python -c 'import open_clip; print(*open_clip.list_models())'"
        )
    config = open_clip.get_model_config(architecture)
    vision, text = _tower_configs(config)
    reason = _why_not(config, vision, text)
    if reason:
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}, which cannot take prompts here: {reason}. "
            "The ViT models with a causal text encoder can, such as open_clip:ViT-B-16/laion2b_s34b_b88k."
        )
    # Some weights were trained with OpenAI's activation, though the name of their architecture has it not.
    quick = config.get("quick_gelu") or get_pretrained_cfg(architecture, tag).get("quick_gelu")
    return {
        "vision_heads": vision["width"] // vision["head_width"],
        "transformer_heads": text["heads"],
        "activation": QuickGELU if quick else partial(nn.GELU, **(vision["act_kwargs"] or {})),
        "vision_eps": (vision["norm_kwargs"] or {}).get("eps", 1e-5),
        "text_eps": (text["norm_kwargs"] or {}).get("eps", 1e-5),
    }


def _tower_configs(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the image and of the text encoder, those that a config leaves out among them."""
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    text = open_clip.CLIPTextCfg(**config["text_cfg"])
    return asdict(vision), asdict(text)


def _why_not(config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> str:
    if vision["timm_model_name"] or not isinstance(vision["layers"], int):
        return "its image encoder is not CLIP's ViT"
    if text["hf_model_name"] or text["no_causal_mask"]:
        return "its text encoder is not causal"
    if text["hf_tokenizer_name"]:
        return "its text encoder does not use CLIP's tokenizer"
    if "multimodal_cfg" in config:
        return "it is a captioner, not a CLIP"
    if config.get("init_logit_bias") is not None:
        return "its logits have a bias"
    if (vision["act_kwargs"] or {}) != (text["act_kwargs"] or {}):
        return "its encoders differ in activation"
    for options, known, defaults in (
        (vision, VISION_OPTIONS, open_clip.CLIPVisionCfg()),
        (text, TEXT_OPTIONS, open_clip.CLIPTextCfg()),
    ):
        for key, value in options.items():
            if key not in known and value != getattr(defaults, key):
                return f"it needs {key}={value}"
    return ""


def fetch_weights(name: str) -> Path:
    """Downloads the weights of `"open_clip:ARCHITECTURE/TAG"` into the hub's cache, if they are not there.

    Raises:
        ValueError: the name has no tag, or open_clip knows no such tag.
        ConnectionError: the download failed.
    """
    architecture, tag = split_name(name)
    tags = list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        what = f"there are no weights {tag!r}" if tag else "it does not say which weights"
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}; {what} of {architecture}. Give one of {', '.join(tags)} "
            "after a '/', or a file as MODEL.BACKBONE.PATH."
        )
    try:
        return Path(download_pretrained(get_pretrained_cfg(architecture, tag)))
    except Exception as error:  # the hub's client raises errors of many packages
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"The weights of {name} could not be downloaded ({reason}); "
            "fetch the file elsewhere and give it as MODEL.BACKBONE.PATH."
        ) from error


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of the colours that a model was trained with; None where open_clip says nothing."""
    tag = get_pretrained_cfg(*split_name(name))
    return (tuple(tag["mean"]), tuple(tag["std"])) if tag.get("mean") and tag.get("std") else None


def interpolation(name: str) -> str | None:
    """How the images that a model was trained with were resized; None where open_clip says nothing."""
    return get_pretrained_cfg(*split_name(name)).get("interpolation")


def check_widths(name: str, arguments: dict[str, Any]) -> None:
    """Refuses weights that are not of the architecture which `name` says.

    Raises:
        ValueError: names what differs.
    """
    config = open_clip.get_model_config(split_name(name)[0])
    vision, text = _tower_configs(config)
    for key, expected in {
        "vision_width": vision["width"],
        "vision_layers": vision["layers"],
        "vision_patch_size": vision["patch_size"],
        "transformer_width": text["width"],
        "transformer_layers": text["layers"],
        "embed_dim": config["embed_dim"],
    }.items():
        if arguments[key] != expected:
            raise UserError(
                f"MODEL.BACKBONE.NAME is {name!r}, whose {key} is {expected}, but the weights given have "
                f"{arguments[key]}; give the weights of that model, or its name."
            )
