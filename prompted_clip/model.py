"""CLIP (Radford et al. 2021, arXiv 2103.00020): both encoders, with one way in for prompts.

Parameter names and constructors are OpenAI's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import LayerNorm
from .perceptron import QuickGELU
from .prompting import Prompts, replace_tokens
from .resnet import ModifiedResNet
from .simple_tokenizer import words_with
from .transformer import Activation, ResidualAttentionBlock, Transformer

__all__ = [
    "CLIP",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "convert_weights",
]  # as OpenAI's

HEAD_WIDTH = 64  # of every encoder that OpenAI released


class VisionTransformer(nn.Module):
    """CLIP's ViT.

    Args:
        input_resolution: pixels on a side of the square image.
        heads, output_dim: as OpenAI's.
        pre_norm: whether a layer norm stands before the transformer; some of open_clip's models have none.
    """

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        *,
        pre_norm: bool = True,
        mlp_width: int | None = None,
        activation: Activation = QuickGELU,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        patches = (input_resolution // patch_size) ** 2
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.ln_pre = LayerNorm(width, eps=eps) if pre_norm else nn.Identity()
        self.transformer = Transformer(
            width, layers, heads, mlp_width=mlp_width, activation=activation, eps=eps
        )
        self.ln_post = LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(self, x: Tensor, prompts: Prompts | None = None) -> Tensor:
        """`(batch 3 height width)` → image features, `(batch feature)`.

        Prompt tokens stand behind the patches; they get no positional embedding and pass `ln_pre`.
        """
        prompts = prompts or Prompts()
        x = self.conv1(x).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)
        slots, tokens = x.shape[1], prompts.tokens
        if tokens is not None:
            tokens = self.ln_pre(tokens.to(x.dtype))
        x = self.transformer.run(self.ln_pre(x), prompts.deep, start=slots, position=0, tokens=tokens)
        return self.ln_post(x[:, 0]) @ self.proj.to(x.dtype)


class CLIP(nn.Module):
    """OpenAI's CLIP; its constructor takes OpenAI's arguments.

    Args:
        vision_layers: blocks of a ViT, or the four stages of a ModifiedResNet.
        vision_patch_size: pixels; None for a ModifiedResNet.
        vision_heads: by default as many as are 64 wide.
    """

    # Which rows of the token embedding hold a word, `(vocabulary)`; None where all do.
    embedded_words: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | tuple[int, int, int, int],
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        *,
        vision_heads: int | None = None,
        vision_pre_norm: bool = True,
        vision_mlp_width: int | None = None,
        text_mlp_width: int | None = None,
        activation: Activation = QuickGELU,
        vision_eps: float = 1e-5,
        text_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual: ModifiedResNet | VisionTransformer
        if isinstance(vision_layers, (tuple, list)):
            self.visual = ModifiedResNet(
                layers=vision_layers,
                output_dim=embed_dim,
                heads=vision_heads or vision_width * 32 // HEAD_WIDTH,
                input_resolution=image_resolution,
                width=vision_width,
            )
        else:
            assert vision_patch_size is not None
            self.visual = VisionTransformer(
                input_resolution=image_resolution,
                patch_size=vision_patch_size,
                width=vision_width,
                layers=vision_layers,
                heads=vision_heads or vision_width // HEAD_WIDTH,
                output_dim=embed_dim,
                pre_norm=vision_pre_norm,
                mlp_width=vision_mlp_width,
                activation=activation,
                eps=vision_eps,
            )
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            transformer_heads,
            self.build_attention_mask(),
            mlp_width=text_mlp_width,
            activation=activation,
            eps=text_eps,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width, eps=text_eps)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("embedded_words", None, persistent=False)
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """OpenAI's initial values, for training from scratch."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.transformer.width**-0.5)
        towers = [self.transformer]
        if isinstance(self.visual, VisionTransformer):
            towers.append(self.visual.transformer)
        else:
            self.visual.initialize_parameters()
        for tower in towers:
            attention_std, hidden_std = tower.width**-0.5, (2 * tower.width) ** -0.5
            output_std = attention_std * (2 * tower.layers) ** -0.5
            for block in tower.blocks():
                nn.init.normal_(block.attn.in_proj_weight, std=attention_std)
                nn.init.normal_(block.attn.out_proj.weight, std=output_std)
                nn.init.normal_(block.get_parameter("mlp.c_fc.weight"), std=hidden_std)
                nn.init.normal_(block.get_parameter("mlp.c_proj.weight"), std=output_std)

    def build_attention_mask(self) -> Tensor:
        """Causal: −inf where a position would see a later one, `(length length)`."""
        shape = (self.context_length, self.context_length)
        return torch.full(shape, -torch.inf, device="cpu").triu(1)  # real where the weights are on "meta"

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor, prompts: Prompts | None = None) -> Tensor:
        """`(batch 3 height width)` → image features, `(batch feature)`, not normalised.

        Raises:
            ValueError: prompts are given and the image encoder is a ResNet, which has no tokens.
        """
        if prompts is None:
            return self.visual(image.to(self.dtype))
        if not isinstance(self.visual, VisionTransformer):
            raise ValueError(
                "This CLIP's image encoder is a ResNet: it has no tokens for image prompts; use a ViT."
            )
        return self.visual(image.to(self.dtype), prompts)

    def embed_words(self, text: Tensor) -> Tensor:
        """Token ids of any shape → their embeddings, `(... width)`, without positions.

        Raises:
            ValueError: the checkpoint holds no embedding for a word.
        """
        self.check_words(text)
        return self.embed_checked(text)

    def embed_checked(self, text: Tensor) -> Tensor:
        """`embed_words` of words that were checked before: to check them is to wait for a GPU."""
        return self.token_embedding(text).to(self.dtype)

    def check_words(self, text: Tensor) -> None:
        """Raises a `ValueError` that names the words, if the checkpoint has none of their embeddings."""
        if self.embedded_words is not None and not bool(self.embedded_words[text].all()):
            missing = set(text[~self.embedded_words[text]].tolist())
            found = words_with(missing, text.flatten().tolist()) or ["a part of a word"]
            words = ", ".join(repr(word) for word in found[:8])
            raise ValueError(
                f"This checkpoint embeds only a part of the vocabulary, and no {words}; "
                "use other words, or a checkpoint with the whole vocabulary."
            )

    def encode_text(self, text: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Token ids, `(sentence length)` → text features, `(sentence feature)`, not normalised.

        Each sentence by itself, at the length given; `sentences.Sentences` gives the same for less.
        Prompt tokens overwrite the words behind SOS, and get their positions.
        """
        prompts = prompts or Prompts()
        x = self.embed_words(text)
        if prompts.tokens is not None:
            x = replace_tokens(x, prompts.tokens, 1)
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        x = self.transformer.run(x, prompts.deep, start=1)
        # EOT has the highest id of the vocabulary.
        x = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)]
        return self.ln_final(x) @ self.text_projection.to(x.dtype)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each image over the texts, `(image text)`, and their transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Turns the weights that OpenAI publishes in float16 into `dtype`, in place.

    Those are convolutions, linear layers, attention and the two projections; embeddings and norms stay.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            tensors = [module.weight, module.bias]
        elif isinstance(module, nn.MultiheadAttention):
            tensors = [module.in_proj_weight, module.in_proj_bias, module.bias_k, module.bias_v]
        else:
            tensors = [getattr(module, name, None) for name in ("text_projection", "proj")]
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                tensor.data = tensor.data.to(dtype)
