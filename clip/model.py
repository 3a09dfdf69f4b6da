"""CLIP (Radford et al. 2021, arXiv 2103.00020): both encoders, with one way in for prompts.

Parameter names, constructors and the layout `(length batch width)` at the public seams are OpenAI's. Inside,
tensors are `(batch length width)`, and a transformer can be asked for one position only: it then computes
nothing that does not reach that position.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import frozen
from .frozen import Projected, written_out
from .kernels import attention
from .norm import LayerNorm
from .perceptron import Perceptron, QuickGELU, folds
from .prompting import Prompts, behind, enter, replace_tokens
from .resnet import ModifiedResNet
from .simple_tokenizer import words_with

HEAD_WIDTH = 64  # of every encoder that OpenAI released
Activation = Callable[[], nn.Module]


class ResidualAttentionBlock(nn.Module):
    """Attention, then a two-layer perceptron, each behind a layer norm and around a residual.

    Args:
        attn_mask: `(length length)`, added to the attention logits; longer than any input.
        mlp_width: width of the perceptron's hidden layer; OpenAI's is 4 · d_model.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = QuickGELU,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model, eps=eps)
        hidden = mlp_width or 4 * d_model
        self.mlp = Perceptron(
            OrderedDict(c_fc=nn.Linear(d_model, hidden), gelu=activation(), c_proj=nn.Linear(hidden, d_model))
        )
        self.ln_2 = LayerNorm(d_model, eps=eps)
        self.attn_mask = attn_mask

    def forward(self, x: Tensor) -> Tensor:
        """Every position of `x`, `(length batch width)`."""
        return self.run(x.transpose(0, 1)).transpose(0, 1)

    def run(
        self, x: Tensor, tokens: Tensor | None = None, rows: int | None = None, at: int | None = None
    ) -> Tensor:
        """What `x` becomes in some of its positions: `(batch rows width)`.

        Args:
            x: `(batch length width)`.
            tokens: stand behind `x`, in its type; `(n width)`, or `(batch n width)`.
            rows: how many positions, from the first on, are wanted; None for all.
            at: the only position wanted.
        """
        if at is not None:
            return self.run_at(x if tokens is None else behind(x, tokens), at)
        projected = self.project(x, tokens, rows)
        mask = self.mask(projected.keys.shape[2], x)
        if mask is not None and rows is not None:
            mask = mask[:rows]
        attended = attention(*projected[1:], mask)
        return self.finish(projected.residual, attended)

    def run_at(self, x: Tensor, position: int) -> Tensor:
        """What `x`, `(batch length width)`, becomes in one position: `(batch 1 width)`.

        Of one query, keys and values need not be computed: it asks the input itself, through the key weights,
        and the value weights apply to the mean of the input that it attends to.
        """
        normed = self.ln_1(x)
        one = slice(position, position + 1)
        mask = self.mask(x.shape[1], x)
        mask = None if mask is None else mask[one]
        queries = self.queries(normed[:, one])
        if folds(x):
            attended = self.attend_inputs(queries[:, :, 0], normed, mask)[:, :, None]
        else:  # rounded where OpenAI's is
            attended = attention(queries, *self.keys_values(normed), mask)
        return self.finish(x[:, one], attended)

    def attend_inputs(self, queries: Tensor, normed: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one query a sample: `(batch head head_width)`.

        The bias of the keys adds the same to all logits of a query, and changes nothing.

        Args:
            queries: `(batch head head_width)`.
            normed: `(batch length width)`.
            mask: added to the logits, `(1 length)`.
        """
        heads, width = queries.shape[1], normed.shape[-1]
        _, key, value = self.attn.in_proj_weight.view(3, heads, -1, width)
        asked = (queries.transpose(0, 1) @ key).transpose(0, 1)  # (batch head width)
        logits = queries.shape[-1] ** -0.5 * asked @ normed.transpose(1, 2)
        mean = (logits if mask is None else logits + mask).softmax(dim=-1) @ normed  # (batch head width)
        attended = mean.transpose(0, 1) @ value.transpose(1, 2)  # (head batch head_width)
        return attended.transpose(0, 1) + self.attn.in_proj_bias[2 * width :].view(heads, -1)

    def project(self, x: Tensor, tokens: Tensor | None = None, rows: int | None = None) -> Projected:
        """All that comes before the attention; arguments as of `run`."""
        if written_out(self, x, tokens):
            return frozen.project(self, x, tokens, rows)
        x = x if tokens is None else behind(x, tokens)
        normed = self.ln_1(x)
        if rows is None or rows == x.shape[1]:
            each = F.linear(normed, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, dim=-1)
            return Projected(x, *(self.by_head(part) for part in each))
        return Projected(x[:, :rows], self.queries(normed[:, :rows]), *self.keys_values(normed))

    def queries(self, normed: Tensor) -> Tensor:
        """`(batch length width)` → `(batch head length head_width)`."""
        width = self.attn.embed_dim
        weight, bias = self.attn.in_proj_weight[:width], self.attn.in_proj_bias[:width]
        # In one piece: else half precision would round before the bias and behind it.
        return self.by_head(F.linear(normed.contiguous(), weight, bias))

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch length width)` → keys and values, each `(batch head length head_width)`."""
        width = self.attn.embed_dim
        weight, bias = self.attn.in_proj_weight[width:], self.attn.in_proj_bias[width:]
        keys, values = F.linear(normed, weight, bias).split(width, dim=-1)
        return self.by_head(keys), self.by_head(values)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """All that follows the attention.

        Args:
            x: the block's input, `(batch length width)`.
            attended: `(batch head length head_width)`.
        """
        if written_out(self, x, attended):
            return frozen.finish(self, x, attended)
        x = x + self.attn.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))

    def mask(self, length: int, like: Tensor) -> Tensor | None:
        """The additive mask of so many positions, `(length length)`, in the type and place of `like`."""
        if self.attn_mask is None:
            return None
        # Kept where it was used last, as OpenAI's block does: a copy per call would wait for the device.
        with torch.inference_mode(False):  # a tensor made in inference mode would be of no use in training
            self.attn_mask = self.attn_mask.to(device=like.device, dtype=like.dtype)
        return self.attn_mask[:length, :length]

    def by_head(self, x: Tensor) -> Tensor:
        """`(batch length width)` → `(batch head length head_width)`."""
        return x.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = QuickGELU,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *[
                ResidualAttentionBlock(
                    width, heads, attn_mask, mlp_width=mlp_width, activation=activation, eps=eps
                )
                for _ in range(layers)
            ]
        )

    def blocks(self) -> list[ResidualAttentionBlock]:
        return cast("list[ResidualAttentionBlock]", list(self.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        """Every position of `x`, `(length batch width)`."""
        return self.run(x.transpose(0, 1)).transpose(0, 1)

    def run(
        self,
        x: Tensor,
        deep: Sequence[Tensor] = (),
        start: int = 1,
        position: int | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The blocks, with deep prompts on the way.

        Args:
            x: `(batch length width)`.
            deep: `deep[k]` overwrites the tokens from `start` on before block `k + 1`; each `(n width)` or
                `(batch n width)`. What exceeds the blocks is not used.
            position: the only position wanted, and nothing is computed then that does not reach it; None for
                every position of each block.
            tokens: stand behind `x` before the first block; `(n width)` or `(batch n width)`.

        Returns:
            `(batch length width)`, or `(batch 1 width)` for one position.
        """
        if position is None and tokens is not None:
            x, tokens = behind(x, tokens), None
        last = len(self.resblocks) - 1
        for k, block in enumerate(self.blocks()):
            if 0 < k <= len(deep):
                x, tokens = enter(x, deep[k - 1], start)
            if position is None:
                x = block.run(x, tokens)
            elif k == last:
                x = block.run(x, tokens, at=position)
            else:
                length = x.shape[1] + (0 if tokens is None else tokens.shape[-2])
                # The next block's prompts may stand where this block's end.
                ends = k < len(deep) and length <= start + deep[k].shape[-2]
                x = block.run(x, tokens, start if ends else None)
            tokens = None
        return x


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
