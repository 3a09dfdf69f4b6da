"""Low-rank adapters in Hugging Face's CLIPModel, by peft: the features are this project's.

python tests/peft_check.py        (make test-install, which installs peft and transformers)
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from prompted_clip import CLIP, load, tokenize
from trainers import CLIPLoRA


def converted(clip_model: CLIP) -> CLIPModel:
    """The same CLIP as Hugging Face's."""
    visual: Any = clip_model.visual
    towers = {"vision": (visual.transformer, "visual."), "text": (clip_model.transformer, "")}
    sizes = {
        name: {
            "hidden_size": tower.width,
            "intermediate_size": tower.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.resblocks[0].attn.num_heads,
            "hidden_act": "quick_gelu",
        }
        for name, (tower, _) in towers.items()
    }
    patch = visual.conv1.kernel_size[0]
    vision = {**sizes["vision"], "image_size": visual.input_resolution, "patch_size": patch}
    words = {"vocab_size": clip_model.vocab_size, "max_position_embeddings": clip_model.context_length}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407}
    config = CLIPConfig(
        text_config={**sizes["text"], **words, **ends},
        vision_config=vision,
        projection_dim=visual.output_dim,
    )
    model = CLIPModel(config)
    state = clip_model.state_dict()
    found = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].t(),
        "visual_projection.weight": state["visual.proj"].t(),
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {
        "text_model.final_layer_norm": "ln_final",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    for name, (tower, prefix) in towers.items():
        for number in range(tower.layers):
            theirs, ours = f"{name}_model.encoder.layers.{number}", f"{prefix}transformer.resblocks.{number}"
            norms |= {f"{theirs}.layer_norm{each}": f"{ours}.ln_{each}" for each in (1, 2)}
            norms |= {f"{theirs}.mlp.fc1": f"{ours}.mlp.c_fc", f"{theirs}.mlp.fc2": f"{ours}.mlp.c_proj"}
            norms[f"{theirs}.self_attn.out_proj"] = f"{ours}.attn.out_proj"
            for kind in ("weight", "bias"):
                for part, value in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    found[f"{theirs}.self_attn.{part}_proj.{kind}"] = value
    for theirs, ours_ in norms.items():
        found |= {f"{theirs}.{kind}": state[f"{ours_}.{kind}"] for kind in ("weight", "bias")}
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return model.eval()


def pooled(output: Any) -> Tensor:
    """Features; from version 5 on, transformers hands them over in an output of a model."""
    return output if isinstance(output, Tensor) else output.pooler_output


def main() -> None:
    torch.manual_seed(0)
    clip_model, _ = load("ViT-Shapes/8", device="cpu")
    clip_model.requires_grad_(False)
    model = CLIPLoRA.from_clip(
        "ViT-Shapes/8",
        ["red circle", "blue square"],
        device="cpu",
        settings={
            "TRAINER.CLIPLORA.R": 3,
            "TRAINER.CLIPLORA.PARAMS": "qkvo",
            "TRAINER.CLIPLORA.POSITION": "half-up",
        },
    )
    for name, tensor in model.prompt_learner.named_parameters():
        if name.endswith("w_lora_B"):
            torch.nn.init.normal_(tensor, std=0.1)
    hub = converted(clip_model)
    images, text = (
        torch.randn(3, 3, 64, 64),
        tokenize(["a photo of a red circle.", "a photo of a blue square."]),
    )
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        plain = pooled(hub.get_image_features(images))
        assert torch.allclose(plain, clip_model.encode_image(images), atol=1e-4)
        model.save_pretrained(folder)
        adapted = PeftModel.from_pretrained(hub, folder).eval()
        found = {
            "images": (pooled(adapted.get_image_features(images)), model.encode_image(images)),
            "text": (pooled(adapted.get_text_features(text)), model.encode_text()),
        }
        assert not torch.allclose(found["images"][0], plain, atol=1e-2)
    for name, (theirs, ours) in found.items():
        error = float((torch.nn.functional.normalize(theirs, dim=-1) - ours).abs().max())
        print(f"{name}: features of peft's adapter differ by {error:.1e}")
        assert error < 1e-5


if __name__ == "__main__":
    main()
