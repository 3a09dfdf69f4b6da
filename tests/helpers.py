"""What tests share: the recorded cases, a tiny CLIP, and CLIP's encoders written out plainly."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompted_clip.model import CLIP, VisionTransformer

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


def _golden_script() -> Any:
    spec = importlib.util.spec_from_file_location("make_state_dict", GOLDEN / "make_state_dict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_script = _golden_script()


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every weight, bias and statistic a value of its own, of a size that keeps activations sane."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        if tensor.dim() > 1:
            value = noise * tensor[0].numel() ** -0.5
        else:
            value = 0.1 * noise + float(name.endswith(("weight", "running_var", "logit_scale")))
        tensor.copy_(value)
    return module


def tiny_clip(
    text_layers: int = 3, image_layers: int = 3, dtype: torch.dtype = torch.float64, **options: Any
) -> CLIP:
    """A frozen CLIP with random weights, whose text and image widths differ: 64 and 128."""
    arguments: dict[str, Any] = {
        "embed_dim": 32,
        "image_resolution": 32,
        "vision_layers": image_layers,
        "vision_width": 128,
        "vision_patch_size": 16,
        "context_length": 77,
        "vocab_size": 49408,
        "transformer_width": 64,
        "transformer_heads": 2,
        "transformer_layers": text_layers,
    }
    model = randomise(CLIP(**arguments | options))
    return model.to(dtype).eval().requires_grad_(False)


def plain_block(block: nn.Module, x: Tensor, causal: bool) -> Tensor:
    """A transformer's block written out, with torch's own attention; `x` is `(length batch width)`."""
    mask = torch.full((len(x), len(x)), -torch.inf, dtype=x.dtype).triu(1) if causal else None
    normed = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
    x = x + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
    normed = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
    hidden = F.linear(normed, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    hidden = block.mlp.gelu(hidden)
    return x + F.linear(hidden, block.mlp.c_proj.weight, block.mlp.c_proj.bias)


def plain_transformer(
    transformer: nn.Module, x: Tensor, deep: Sequence[Tensor], start: int, causal: bool
) -> Tensor:
    """All blocks; `deep[k]`, `(n width)` or `(batch n width)`, stands at `start` before block k + 1."""
    for k, block in enumerate(transformer.resblocks):
        if 1 <= k <= len(deep):
            tokens = deep[k - 1].expand(x.shape[1], -1, -1).transpose(0, 1).to(x.dtype)
            x = torch.cat([x[:start], tokens, x[start + len(tokens) :]])
        x = plain_block(block, x, causal)
    return x


def plain_image_features(
    model: CLIP, image: Tensor, tokens: Tensor | None = None, deep: Sequence[Tensor] = ()
) -> Tensor:
    """CLIP's image features, with prompt tokens behind the patches; slow and plain."""
    visual = model.visual
    assert isinstance(visual, VisionTransformer)
    x = F.conv2d(image, visual.conv1.weight, stride=visual.conv1.stride).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    start = x.shape[1]
    if tokens is not None:
        x = torch.cat([x, tokens.expand(len(x), -1, -1).to(x.dtype)], dim=1)
    x = plain_transformer(visual.transformer, visual.ln_pre(x).transpose(0, 1), deep, start, causal=False)
    return visual.ln_post(x[0]) @ visual.proj


def plain_text_features(
    model: CLIP, text: Tensor, tokens: Tensor | None = None, deep: Sequence[Tensor] = ()
) -> Tensor:
    """CLIP's text features, with prompt tokens behind SOS, every sentence at full length; slow and plain."""
    x = model.token_embedding.weight[text.long()]
    if tokens is not None:
        tokens = tokens.expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat([x[:, :1], tokens, x[:, 1 + tokens.shape[1] :]], dim=1)
    x = (x + model.positional_embedding[: x.shape[1]]).transpose(0, 1)
    x = plain_transformer(model.transformer, x, deep, 1, causal=True)
    ends = torch.stack([x[int(row.argmax()), k] for k, row in enumerate(text)])
    return model.ln_final(ends) @ model.text_projection


def relative_error(ours: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest right number."""
    assert ours.shape == right.shape
    return float((ours.detach() - right.detach()).abs().max() / right.detach().abs().max())


def half(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}


def put(module: nn.Module, key: str, value: Tensor) -> None:
    """Makes `value` the tensor `key` of a tree of modules."""
    name, _, rest = key.partition(".")
    if not rest:
        module.register_buffer(name, value)
        return
    if name not in module._modules:
        module.add_module(name, nn.Module())
    put(module.get_submodule(name), rest, value)


def save_archive(module: nn.Module, path: Path, trace: Any = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and is what OpenAI's files are
        scripted = torch.jit.script(module) if trace is None else torch.jit.trace(module, trace)
        torch.jit.save(scripted, path)


SIZES = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}


def write_archive(state_dict: dict[str, Tensor], path: Path) -> None:
    """As OpenAI publishes: TorchScript, float16, and three numbers among the weights."""
    root = nn.Module()
    for key, value in (half(state_dict) | SIZES).items():
        put(root, key, value)
    save_archive(root, path)
