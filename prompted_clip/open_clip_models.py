"""open_clip's models: which of them this CLIP can be, their weights, and what weights do not tell."""

from __future__ import annotations

import difflib
import json
from collections.abc import Set
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import nn

from .errors import DownloadError, MissingFileError, UserError
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

LOCAL_DIR = "local-dir:"  # open_clip's prefix for a folder with open_clip_config.json and weights
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")  # suffixes of files of weights, the best first


def split_name(name: str) -> tuple[str, str]:
    """`"open_clip:ViT-B-16/laion2b_s34b_b88k"` → architecture and tag; the tag may be missing.

    Of `"open_clip:local-dir:FOLDER"` all is the architecture.
    """
    name = name.removeprefix(OPEN_CLIP)
    if name.startswith(LOCAL_DIR):
        return f"{LOCAL_DIR}{Path(name.removeprefix(LOCAL_DIR)).expanduser()}", ""
    architecture, _, tag = name.partition("/")
    return architecture, tag


def local_folder(name: str) -> Path | None:
    """The folder of `"open_clip:local-dir:FOLDER"`; None for other names."""
    architecture = split_name(name)[0]
    found = architecture.removeprefix(LOCAL_DIR)
    return Path(found) if found != architecture else None


def config_of(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model, a copy, with the activation that its weights were trained with.

    Raises:
        FileNotFoundError: a folder has no open_clip_config.json.
        ValueError: open_clip has no such model.
    """
    architecture, tag = split_name(name)
    if local_folder(name) is not None:
        config = _local_config(name)["model_cfg"]
    elif architecture in open_clip.list_models():
        config = open_clip.get_model_config(architecture)
    else:
        near = difflib.get_close_matches(name.removeprefix(OPEN_CLIP), open_clip.list_models(), n=1)
        hint = f"Did you mean {OPEN_CLIP}{near[0]}? " if near else ""
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}; open_clip has no model {architecture!r}. {hint}"
            "Its models are listed by: python -c 'import open_clip; print(*open_clip.list_models())'"
        )
    # Some weights were trained with OpenAI's activation, though the name of their architecture has it not.
    config["quick_gelu"] = bool(
        config.get("quick_gelu") or get_pretrained_cfg(architecture, tag).get("quick_gelu")
    )
    return config


def _local_config(name: str) -> dict[str, Any]:
    """What open_clip_config.json of a folder holds: `model_cfg`, and `preprocess_cfg` where it has it."""
    folder = local_folder(name)
    assert folder is not None
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise MissingFileError(
            f"MODEL.BACKBONE.NAME is {name!r}: there is no {path}. Name a folder that has it, and weights."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        asdict(open_clip.CLIPVisionCfg(**content["model_cfg"]["vision_cfg"]))
        asdict(open_clip.CLIPTextCfg(**content["model_cfg"]["text_cfg"]))
        content["model_cfg"]["embed_dim"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no configuration of an open_clip model: {error}.") from error
    return content


def model_options(name: str) -> dict[str, Any]:
    """What the weights of open_clip's model `name` do not tell: heads, activation, epsilon of the norms.

    Raises:
        ValueError: open_clip has no such model, or a tower of it is not CLIP's; says why.
    """
    config = config_of(name)
    if reason := why_not(config):
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}, whose towers are not CLIP's: {reason}. "
            "Those of a ViT with a causal text encoder are, such as open_clip:ViT-B-16/laion2b_s34b_b88k."
        )
    vision, text = _tower_configs(config)
    return {
        "vision_heads": vision["width"] // vision["head_width"],
        "transformer_heads": text["heads"],
        "vision_eps": (vision["norm_kwargs"] or {}).get("eps", 1e-5),
        **text_options(config),
    }


def text_options(config: dict[str, Any]) -> dict[str, Any]:
    """What the weights of CLIP's text encoder do not tell: the activation, and epsilon of the norms."""
    text = _tower_configs(config)[1]
    return {
        "activation": QuickGELU if config["quick_gelu"] else partial(nn.GELU, **(text["act_kwargs"] or {})),
        "text_eps": (text["norm_kwargs"] or {}).get("eps", 1e-5),
    }


def _tower_configs(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the image and of the text encoder, those that a config leaves out among them."""
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    text = open_clip.CLIPTextCfg(**config["text_cfg"])
    return asdict(vision), asdict(text)


def why_not(config: dict[str, Any]) -> str:
    """What keeps a model from being this project's CLIP; "" for nothing."""
    vision, text = _tower_configs(config)
    if vision["timm_model_name"] or not isinstance(vision["layers"], int):
        return "its image encoder is not CLIP's ViT"
    if "multimodal_cfg" in config:
        return "it is a captioner, not a CLIP"
    if reason := why_not_text(config):
        return reason
    if config.get("init_logit_bias") is not None:
        return "its logits have a bias"
    if (vision["act_kwargs"] or {}) != (text["act_kwargs"] or {}):
        return "its encoders differ in activation"
    return _unknown_option(vision, VISION_OPTIONS, open_clip.CLIPVisionCfg())


def why_not_text(config: dict[str, Any]) -> str:
    """What keeps a text encoder from being CLIP's; "" for nothing."""
    text = _tower_configs(config)[1]
    if text["hf_model_name"] or text["no_causal_mask"]:
        return "its text encoder is not causal"
    if text["hf_tokenizer_name"]:
        return "its text encoder does not use CLIP's tokenizer"
    return _unknown_option(text, TEXT_OPTIONS, open_clip.CLIPTextCfg())


def _unknown_option(options: dict[str, Any], known: Set[str], defaults: Any) -> str:
    for key, value in options.items():
        if key not in known and value != getattr(defaults, key):
            return f"it needs {key}={value}"
    return ""


def fetch_weights(name: str) -> Path:
    """Downloads the weights of `"open_clip:ARCHITECTURE/TAG"` into the hub's cache, if they are not there.

    Those of `"open_clip:local-dir:FOLDER"` are in the folder.

    Raises:
        FileNotFoundError: a folder has no weights.
        ValueError: the name has no tag, or open_clip knows no such tag.
        ConnectionError: the download failed.
    """
    architecture, tag = split_name(name)
    if (folder := local_folder(name)) is not None:
        files = [each for suffix in WEIGHTS for each in sorted(folder.glob(f"*{suffix}"))]
        if not files:
            raise MissingFileError(
                f"MODEL.BACKBONE.NAME is {name!r}: the folder has no file of weights ({', '.join(WEIGHTS)}). "
                "Put them there, or give the file as MODEL.BACKBONE.PATH."
            )
        return files[0]
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


def preprocessing_of(name: str) -> dict[str, Any]:
    """What open_clip says of the images that weights were trained with: `mean`, `std`, `interpolation`."""
    if local_folder(name) is not None:
        return _local_config(name).get("preprocess_cfg") or {}
    return get_pretrained_cfg(*split_name(name))


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of the colours that a model was trained with; None where open_clip says nothing."""
    tag = preprocessing_of(name)
    return (tuple(tag["mean"]), tuple(tag["std"])) if tag.get("mean") and tag.get("std") else None


def interpolation(name: str) -> str | None:
    """How the images that a model was trained with were resized; None where open_clip says nothing."""
    return preprocessing_of(name).get("interpolation")


def check_widths(name: str, arguments: dict[str, Any]) -> None:
    """Refuses weights that are not of the architecture which `name` says.

    Raises:
        ValueError: names what differs.
    """
    config = config_of(name)
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
