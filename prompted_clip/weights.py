"""Files of CLIP weights → a state dict in OpenAI's names, and what it tells of the model.

Read are OpenAI's TorchScript archives, plain state dicts and safetensors, and what training scripts wrap
around them (`state_dict`, `module.`, `_orig_mod.`). Nothing in a file is executed.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .archive import is_archive, read_archive
from .console import MAY_PASS
from .errors import MissingFileError, UserError
from .tensor_files import check_file, check_values, number_kind, unusual, without_wrappers

# Entries of archives that are no weights: OpenAI's hold three sizes, open_clip's a mask.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
TEXT_TOWER = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a CLIP.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no weights of a CLIP.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file of CLIP weights at {path}; check MODEL.BACKBONE.PATH.")
    try:
        content = _read(path)
        check_values(content, path.stat().st_size)
    except Exception as error:  # a damaged file makes its reader raise anything
        if isinstance(error, OSError) and error.errno in MAY_PASS:  # the disk's fault, not the file's
            raise
        raise UserError(f"{path} cannot be read as CLIP weights: {_reason(error)}.") from error
    return check_plain(clean_state_dict(content, str(path)), str(path))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        # Copied: safetensors maps the file, and whoever writes into it would change the model during a run.
        return {key: value.clone() for key, value in load_file(path).items()}
    if is_archive(path):
        return read_archive(path)
    check_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle's protocols
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """The cause in a few words; torch's own advice is to run what the file holds."""
    called = re.search(r"GLOBAL (\S+)", str(error))
    if called:
        return f"it calls {called[1]}, which weights do not need; save the model's state dict alone"
    if isinstance(error, pickle.UnpicklingError) or not str(error):
        return "it is no file of tensors; fetch it again"
    return f"{str(error).splitlines()[0].split('. ')[0].rstrip('.')}; fetch it again"


def clean_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    """Unwraps a state dict and brings its keys to OpenAI's names.

    Raises:
        ValueError: `content` holds no weights of a CLIP; `source` names where it is from.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{source} holds a {type(content).__name__}, not a state dict of CLIP weights.")
    state_dict: dict[str, Tensor] = {}
    for key, value in content.items():
        key = without_wrappers(key)
        if key.startswith("text.") and key.removeprefix("text.").startswith(TEXT_TOWER):
            key = key.removeprefix("text.")  # open_clip keeps some text towers in a module of their own
        if key.split(".")[-1] in NOT_WEIGHTS or not isinstance(value, Tensor):
            continue
        if key in state_dict:
            raise UserError(f"{source} holds {key} twice, with and without a prefix such as module.")
        state_dict[key] = value
    needed = {"positional_embedding", "text_projection", "ln_final.weight", "logit_scale"}
    missing = sorted(needed - state_dict.keys())
    if missing or not any(key.startswith("visual.") for key in state_dict):
        what = missing[0] if missing else "visual.*"
        raise UserError(
            f"{source} holds no weights of a CLIP: there is no {what}. MODEL.BACKBONE.PATH takes OpenAI's "
            "archives, and state dicts in OpenAI's or open_clip's names."
        )
    scale = state_dict["logit_scale"]
    if not unusual(scale) and scale.numel() == 1:  # some files hold it as a vector of one
        state_dict["logit_scale"] = scale.reshape(())
    return state_dict


def check_plain(state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state dict, whose tensors are all in memory, and none of them empty.

    Raises:
        ValueError: names the tensor that is not.
    """
    for key, value in state_dict.items():
        if kind := unusual(value) or ("" if value.numel() else "empty"):
            raise UserError(f"{source} holds {key} as a tensor that is {kind}; CLIP's are plain numbers.")
    return state_dict


def widen_embedding(state_dict: dict[str, Tensor], vocabulary: int, source: str) -> Tensor | None:
    """Makes `token_embedding.weight` of the rows that a small checkpoint stores, in place.

    Returns:
        Which words have a row, `(vocabulary)`; None for a checkpoint with the whole vocabulary.

    Raises:
        ValueError: rows and values do not fit together, or not the vocabulary.
    """
    if "token_embedding.rows" not in state_dict:
        return None
    rows = state_dict.pop("token_embedding.rows")
    if number_kind(rows.dtype) != "integers":
        raise UserError(f"{source} holds no whole CLIP: token_embedding.rows are no whole numbers.")
    rows = rows.long()
    values = state_dict.pop("token_embedding.values", rows[:0])
    if values.dim() != 2 or rows.shape != values.shape[:1] or not ((rows >= 0) & (rows < vocabulary)).all():
        raise UserError(
            f"{source} holds no whole CLIP: token_embedding.rows are not the words of "
            f"token_embedding.values, in a vocabulary of {vocabulary}."
        )
    weight = values.new_zeros(vocabulary, values.shape[1])
    weight[rows] = values
    state_dict["token_embedding.weight"] = weight
    embedded = torch.zeros(vocabulary, dtype=torch.bool)
    embedded[rows] = True
    return embedded


def count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules stand below `prefix`, such as `"transformer.resblocks."`."""
    return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})


def model_arguments(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `CLIP` that its weights tell.

    Raises:
        ValueError: the image encoder is neither CLIP's ViT nor its ResNet, or a tensor is missing.
    """

    def size(key: str, axis: int = 0) -> int:
        if key not in state_dict or state_dict[key].dim() <= axis:
            raise UserError(f"{source} holds no whole CLIP: {key} is missing, or has too few dimensions.")
        return state_dict[key].shape[axis]

    text_width = size("ln_final.weight")
    arguments: dict[str, Any] = {
        "embed_dim": size("text_projection", 1),
        "context_length": size("positional_embedding"),
        "vocab_size": size("token_embedding.weight"),
        "transformer_width": text_width,
        "transformer_heads": text_width // 64,
        "transformer_layers": count_blocks(state_dict, "transformer.resblocks."),
        "text_mlp_width": size("transformer.resblocks.0.mlp.c_fc.weight"),
    }
    if "visual.proj" in state_dict and "visual.class_embedding" in state_dict:
        patch = size("visual.conv1.weight", 3)
        cells = size("visual.positional_embedding") - 1
        arguments |= {
            "image_resolution": patch * round(cells**0.5),
            "vision_layers": count_blocks(state_dict, "visual.transformer.resblocks."),
            "vision_width": size("visual.conv1.weight"),
            "vision_patch_size": patch,
            "vision_pre_norm": "visual.ln_pre.weight" in state_dict,
            "vision_mlp_width": size("visual.transformer.resblocks.0.mlp.c_fc.weight"),
        }
    elif "visual.layer1.0.conv1.weight" in state_dict:
        cells = size("visual.attnpool.positional_embedding") - 1
        arguments |= {
            "image_resolution": 32 * round(cells**0.5),
            "vision_layers": tuple(count_blocks(state_dict, f"visual.layer{k}.") for k in (1, 2, 3, 4)),
            "vision_width": size("visual.layer1.0.conv1.weight"),
            "vision_patch_size": None,
        }
    else:
        raise UserError(
            f"{source} holds an image encoder that is neither CLIP's ViT nor its ResNet "
            "(there is no visual.proj and no visual.layer1)."
        )
    return arguments
