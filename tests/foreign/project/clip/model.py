"""A CLIP of a few thousand parameters, with OpenAI's names."""

import torch
from torch import nn


class Transformer(nn.Module):
    """From `(length batch width)` to the same."""

    def __init__(self, width):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2)

    def forward(self, x):
        mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)
        normed = self.ln_1(x)
        return x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]


class VisionTransformer(nn.Module):
    def __init__(self, input_resolution, width, output_dim):
        super().__init__()
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width, 4, stride=4)
        self.proj = nn.Parameter(torch.randn(width, output_dim))

    def forward(self, x):
        return self.conv1(x).mean((2, 3)) @ self.proj


class CLIP(nn.Module):
    def __init__(self, embed_dim, vision_width, context_length, vocab_size, width):
        super().__init__()
        self.visual = VisionTransformer(16, vision_width, embed_dim)
        self.transformer = Transformer(width)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(context_length, width) / 10)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.ones(()) * 2.5)

    @property
    def dtype(self):
        return self.visual.conv1.weight.dtype


def build_model(state_dict):
    embed_dim, vision_width = state_dict["text_projection"].shape[1], state_dict["visual.proj"].shape[0]
    context_length, width = state_dict["positional_embedding"].shape
    vocab_size = len(state_dict["token_embedding.weight"])
    model = CLIP(embed_dim, vision_width, context_length, vocab_size, width)
    model.load_state_dict(state_dict)
    return model.eval()
