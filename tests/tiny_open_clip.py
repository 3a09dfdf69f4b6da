"""open_clip's models made tiny: their own options and blocks, of few and narrow ones, with random weights."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from helpers import randomise
from safetensors.torch import save_file
from torch import Tensor, nn

from prompted_clip import open_clip_models, other_towers

NAMES = ["cat", "golden retriever", "red-legged tern"]
VISION = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16}
TIMM = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32}
TEXT = {"width": 32, "heads": 2, "layers": 3}
# As the model whose name it is, but for sizes: SigLIP's towers; EVA's image encoder beside CLIP's text; a
# rotary image encoder pooled by attention; text of BERT's kind beside a ViT; one pooled at its end (CLIPA).
KINDS = {
    "siglip": "ViT-B-16-SigLIP",
    "siglip2": "ViT-B-16-SigLIP2",
    "eva": "EVA02-B-16",
    "perception": "PE-Core-B-16",
    "bert": "roberta-ViT-B-32",
    "clipa": "ViT-L-14-CLIPA",
    "coca": "coca_ViT-B-32",
}


class WordTokenizer:
    """A token for each word, and specials before and after them, as open_clip's tokenizers are called."""

    def __init__(
        self, context_length: int, start: Sequence[int], end: int, pad: int, vocabulary: int
    ) -> None:
        self.context_length, self.start, self.end, self.pad = context_length, list(start), end, pad
        self.vocabulary = vocabulary

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        rows, length = [], context_length or self.context_length
        for text in [texts] if isinstance(texts, str) else texts:
            words = text.lower().replace(".", " ").replace("-", " ").split()
            ids = self.start + [4 + zlib.crc32(word.encode()) % (self.vocabulary - 4) for word in words]
            ids = [*ids[: length - 1], self.end]
            rows.append(ids + [self.pad] * (length - len(ids)))
        return torch.tensor(rows)


class TinyBert(nn.Module):
    """Text in the modules and names of BERT, without the package transformers."""

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
            self.norm, self.dense = nn.LayerNorm(width), nn.Linear(width, width)

        def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
            x = hidden_states
            x = x + self.attention(x, x, x, key_padding_mask=attention_mask == 0, need_weights=False)[0]
            return x + self.dense(self.norm(x)).tanh()

    def __init__(self, config: Any, add_pooling_layer: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(self.Layer(width) for _ in range(3))

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[: input_ids.shape[1]]
        for layer in self.encoder.layer:
            x = layer(hidden_states=x, attention_mask=attention_mask)
        return SimpleNamespace(last_hidden_state=x)


def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has text encoders of transformers be a `TinyBert`."""
    config = SimpleNamespace(
        model_type="bert", hidden_size=32, vocab_size=100, max_position_embeddings=80, pad_token_id=0
    )
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    for name, value in {
        "transformers": sys.modules["transformers"],
        "AutoConfig": SimpleNamespace(from_pretrained=lambda name: config),
        "AutoModel": SimpleNamespace(from_config=TinyBert),
    }.items():
        monkeypatch.setattr(open_clip.hf_model, name, value, raising=False)


def small_timm(monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> None:
    """Has open_clip make timm's models in these sizes, where they have them."""
    create = open_clip.timm_model.timm.create_model

    def small(name: str, **options: Any) -> nn.Module:
        try:
            return create(name, **options, **sizes)
        except TypeError:  # of another kind
            return create(name, **options)

    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", small)


def make(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, image: str = "") -> tuple[str, Any, Any]:
    """A tiny model of a kind: its name here, open_clip's own model, and its tokenizer.

    Args:
        folder: its weights go there.
        image: the name of a model whose image encoder, a ConvNeXt, it has instead.
    """
    config = open_clip.get_model_config(KINDS[kind])
    config["embed_dim"] = 48  # SigLIP has no projection of images
    if image:
        config["vision_cfg"] = open_clip.get_model_config(image)["vision_cfg"] | {"image_size": 32}
        small_timm(monkeypatch, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    else:
        timm_model = config["vision_cfg"].get("timm_model_name")
        config["vision_cfg"] |= {"image_size": 32} if timm_model else VISION
        small_timm(monkeypatch, **TIMM)
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"] |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
        without_transformers(monkeypatch)
    else:
        config["text_cfg"] |= TEXT
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "context_length": 76}
    length = config["text_cfg"].get("context_length", 77)
    tokenizer: Any = {
        "siglip": WordTokenizer(length, [], end=1, pad=1, vocabulary=500),
        "siglip2": WordTokenizer(length, [], end=1, pad=0, vocabulary=500),
        "bert": WordTokenizer(length, [2], end=3, pad=0, vocabulary=100),
        "clipa": WordTokenizer(length, [2], end=0, pad=0, vocabulary=500),
    }.get(kind)
    if tokenizer is None:
        tokenizer = open_clip.SimpleTokenizer(context_length=length)
    elif kind != "bert":
        config["text_cfg"]["vocab_size"] = 500
    name = f"tiny-{kind}"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(other_towers.open_clip, "get_tokenizer", lambda *_, **__: tokenizer)
    if config["text_cfg"].get("hf_tokenizer_name"):
        monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    theirs = other_towers.build_towers(f"open_clip:{name}")
    randomise(theirs)
    theirs.eval()
    monkeypatch.setattr(open_clip_models, "fetch_weights", lambda _: folder / "weights.safetensors")
    save_file(
        {key: each.contiguous() for key, each in theirs.state_dict().items()}, folder / "weights.safetensors"
    )
    return f"open_clip:{name}", theirs, tokenizer
