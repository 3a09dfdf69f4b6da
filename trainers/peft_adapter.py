"""Low-rank adapters as the files of an adapter of peft, for Hugging Face's CLIPModel."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
HUB_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def peft_files(
    adapters: Mapping[str, tuple[Tensor, Tensor]], rank: int, alpha: float, backbone: str
) -> dict[str, bytes]:
    """The two files that `peft.PeftModel.from_pretrained(CLIPModel, folder)` reads.

    Args:
        adapters: A `(rank width)` and B `(width rank)` of each matrix, by its name in OpenAI's CLIP, such as
            `visual.transformer.resblocks.0.attn.q_proj`; `attn.proj` is the output's.
        alpha: B A is scaled by alpha / √rank, "rank-stabilized" in peft's words.
        backbone: the name of the CLIP; one that is not OpenAI's leaves the base model open.
    """
    tensors = {}
    for name, pair in adapters.items():
        for letter, tensor in zip("AB", pair, strict=True):
            key = f"base_model.model.{hub_module(name)}.lora_{letter}.weight"
            tensors[key] = tensor.detach().float().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": HUB_NAMES.get(backbone),
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [hub_module(name) for name in adapters],
        "inference_mode": True,
    }
    files = (json.dumps(config, indent=2) + "\n").encode(), save(tensors, {"format": "pt"})
    return dict(zip(PEFT_FILES, files, strict=True))


def hub_module(name: str) -> str:
    """A matrix of OpenAI's attention under its name in Hugging Face's CLIPModel."""
    path, _, matrix = name.rpartition(".attn.")
    tower = "vision_model" if path.startswith("visual.") else "text_model"
    number = path.rpartition(".")[2]
    return f"{tower}.encoder.layers.{number}.self_attn.{matrix if matrix != 'proj' else 'out_proj'}"
