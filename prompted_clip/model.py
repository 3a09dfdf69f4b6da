"""CLIP (Radford et al. 2021, arXiv 2103.00020): both encoders, with one way in for prompts.

Parameter names and constructors are OpenAI's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .adapters import Adapters, BlockAdapter, replaced_tensors
from .errors import UserError
from .kept import KeptImages, constant_blocks
from .mlp import QuickGELU
from .norm import LayerNorm
from .ops import is_unmodified
from .prompting import Prompts, insert_tokens, overwrite_slots, replace_tokens
from .resnet import ModifiedResNet
from .simple_tokenizer import tokenize, words_with
from .transformer import Activation, Attend, Positions, ResidualAttentionBlock, Transformer, take

__all__ = [
    "CLIP",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "convert_weights",
]  # as OpenAI's

HEAD_WIDTH = 64  # of every encoder that OpenAI released
EMBEDDINGS = ("visual.conv1.", "visual.class_embedding", "visual.positional_embedding")


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

    def forward(
        self,
        x: Tensor | KeptImages,
        prompts: Prompts | None = None,
        adapters: Sequence[BlockAdapter | None] = (),
    ) -> Tensor:
        """Image features: `(batch 3 height width)` → `(batch feature)`.

        Args:
            x: or images that were kept, see `hidden_states`.
            adapters: of each block; see `Adapters.blocks`.
        """
        return self.project(self.hidden_states(x, prompts, adapters, positions=[0])[:, 0])

    def hidden_states(
        self,
        x: Tensor | KeptImages,
        prompts: Prompts | None = None,
        adapters: Sequence[BlockAdapter | None] = (),
        positions: Positions | None = None,
    ) -> Tensor:
        """Hidden states before the last norm: `(batch 3 height width)` → `(batch position width)`.

        Position 0 is CLS, then the patches follow, then the prompt tokens.

        Args:
            x: or images that were kept, from whose block the encoder goes on.
            adapters: of each block; see `Adapters.blocks`.
            positions: those to return; None for all.

        Raises:
            ValueError: something enters or learns before the block that images were kept for.
        """
        prompts = prompts or Prompts()
        prompts.check_blocks(self.transformer.layers)
        remaining: dict[str, Any] = {}
        if isinstance(x, KeptImages):
            if self.constant_blocks(prompts, Adapters(adapters)) < x.block:
                raise UserError(
                    f"Images were kept as they enter block {x.block} of the image encoder, counted from 0, "
                    "but something is put in, learns or was modified before it. Compute them anew."
                )
            remaining = {"blocks": range(x.block, self.transformer.layers)} if x.block else {}
        states = x.states if isinstance(x, KeptImages) else self.embed(x)
        end = states.shape[1]
        if not remaining:
            if (tokens := prompts.embedded()) is not None:
                states = insert_tokens(states, tokens, end)
            states = self.ln_pre(states)

        def enter(block: int, x: Tensor) -> tuple[Tensor, Attend | None]:
            return prompts.enter(block, x, end), None

        # Whoever hooked or replaced a block expects every position.
        computed = positions if self.transformer.is_unmodified() else None
        states = self.transformer(states.transpose(0, 1), enter, adapters, computed, **remaining)
        states = states.transpose(0, 1)
        return states if computed is positions else take(states, positions)

    def embed(self, x: Tensor) -> Tensor:
        """CLS and the patches, before `ln_pre`: `(batch 3 height width)` → `(batch length width)`."""
        x = self.conv1(x.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)

    def states_before(self, x: Tensor, block: int) -> Tensor:
        """Images as they enter a block without prompts: `(batch 3 height width)` → `(batch length width)`.

        Of block 0 the embeddings, which may be joined by tokens before `ln_pre`.
        """
        x = self.embed(x)
        if not block:
            return x
        return self.transformer(self.ln_pre(x).transpose(0, 1), blocks=range(block)).transpose(0, 1)

    def constant_blocks(self, prompts: Prompts, adapters: Adapters) -> int:
        """How many blocks stand before the first one that something enters, learns in, or was modified.

        −1 where the embeddings themselves are not constant.

        Args:
            adapters: its `tensors` by the names of all of CLIP.
        """
        learned = {f"visual.{name}": each for name, each in self.named_parameters() if each.requires_grad}
        adapters = Adapters(adapters.blocks, {**adapters.tensors, **learned})
        parts = (self, VisionTransformer), (self.conv1, nn.Conv2d)
        if not all(is_unmodified(*part) for part in parts):
            return -1
        if any(name.startswith(EMBEDDINGS) for name in adapters.tensors):
            return -1
        if not (
            is_unmodified(self.transformer, Transformer) and is_unmodified(self.ln_pre, type(self.ln_pre))
        ):
            return 0
        blocks = self.transformer.resblocks
        modified = (
            k
            for k, block in enumerate(blocks)
            if not (isinstance(block, ResidualAttentionBlock) and block.is_unmodified())
        )
        return min(next(modified, len(blocks)), constant_blocks(prompts, adapters, len(blocks)))

    def project(self, hidden: Tensor) -> Tensor:
        """The last norm and the projection: `(... width)` → `(... feature)`."""
        return self.ln_post(hidden) @ self.proj.to(hidden.dtype)


class CLIP(nn.Module):
    """OpenAI's CLIP; its constructor takes OpenAI's arguments.

    Args:
        vision_layers: blocks of a ViT, or the four stages of a ModifiedResNet.
        vision_patch_size: pixels; None for a ModifiedResNet.
        vision_heads: by default as many as are 64 wide.
    """

    # Which rows of the token embedding hold a word, `(vocabulary)`; None where all do.
    embedded_words: Tensor | None
    # The first position of a sentence that a prompt may stand at: the one after SOS.
    first_slot: int = 1
    # Whether `SharedPrefixText` may run the text encoder's blocks on less than whole sentences.
    shares_prefixes: bool = True
    # What is added to the scaled cosines; None for nothing.
    logit_bias: Tensor | None

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
        self.register_parameter("logit_bias", None)
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

    def encode_image(
        self, image: Tensor | KeptImages, prompts: Prompts | None = None, adapters: Adapters | None = None
    ) -> Tensor:
        """Image features, not normalised: `(batch 3 height width)` → `(batch feature)`.

        Args:
            image: or images that were kept, from whose block the encoder goes on.

        Raises:
            ValueError: prompts or adapters of blocks are given and the image encoder is a ResNet.
        """
        adapters = adapters or Adapters()
        image = image.to(self.dtype) if isinstance(image, Tensor) else image
        with replaced_tensors(self, adapters.tensors):
            if prompts is None and not adapters.blocks:
                return self.visual(image)
            options = {"adapters": adapters.blocks} if adapters.blocks else {}
            return self.vision_transformer()(image, prompts, **options)

    def takes_adapters(self) -> bool:
        """Whether both encoders are this project's own, into whose blocks adapters can go."""
        return self.shares_prefixes and isinstance(self.visual, (ModifiedResNet, VisionTransformer))

    def vision_transformer(self) -> VisionTransformer:
        """The image encoder, where it has tokens and blocks.

        Raises:
            ValueError: it has none, as a ResNet.
        """
        if not hasattr(self.visual, "transformer"):
            kind = getattr(self.visual, "kind", "ResNet")
            raise UserError(
                f"This CLIP's image encoder is a {kind}: it has no tokens for image prompts, and no blocks "
                "for adapters; use a ViT."
            )
        return cast("VisionTransformer", self.visual)  # or what has its methods

    def tokenize(self, texts: str | list[str], truncate: bool = False) -> Tensor:
        """Sentences → token ids `(sentence length)`, of the length that the text encoder takes.

        Raises:
            RuntimeError: a sentence is too long and `truncate` is not set.
        """
        return tokenize(texts, self.context_length, truncate)

    def ends(self, tokens: Tensor) -> Tensor:
        """Where EOT stands, which follows the last word: `(sentence length)` → `(sentence)`."""
        return tokens.argmax(dim=-1)  # EOT has the highest id of the vocabulary

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
            raise UserError(
                f"This checkpoint embeds only a part of the vocabulary, and no {words}; "
                "use other words, or a checkpoint with the whole vocabulary."
            )

    def encode_text(
        self,
        text: Tensor,
        prompts: Prompts | None = None,
        adapters: Adapters | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Text features, not normalised: token ids `(sentence length)` → `(sentence feature)`.

        Each sentence by itself, at the length given; `SharedPrefixText` returns the same for less.

        Args:
            prompts: overwrite words, and get their positional embeddings; see `Prompts` for later blocks.
                Tokens of each class are those of each sentence here.
            slots: the positions that prompts overwrite, `(sentence n)`; None for those after SOS.
        """
        prompts, adapters = prompts or Prompts(), adapters or Adapters()
        with replaced_tensors(self, adapters.tensors):
            hidden = self.text_hidden_states(text, prompts, adapters.blocks, slots)
            eot = self.ends(text) + prompts.inserted()
            at_eot = eot[:, None, None].expand(-1, 1, hidden.shape[2])
            normed = self.ln_final(hidden).gather(1, at_eot).squeeze(1)
            return normed @ self.text_projection.to(hidden.dtype)

    def text_hidden_states(
        self,
        text: Tensor,
        prompts: Prompts | None = None,
        adapters: Sequence[BlockAdapter | None] = (),
        slots: Tensor | None = None,
    ) -> Tensor:
        """Hidden states before the last norm: `(sentence length)` → `(sentence length width)`.

        Arguments as of `encode_text`. Tokens that enter at a later block follow SOS, and lengthen it.
        """
        prompts = prompts or Prompts()
        prompts.check_blocks(self.transformer.layers)

        def enter(block: int, x: Tensor) -> tuple[Tensor, Attend | None]:
            tokens = prompts.before(block)
            # Embedded ones are in already, and inserted ones follow SOS.
            if slots is None or tokens is None or block == 0 or prompts.inserts():
                return prompts.enter(block, x, 1), None
            return overwrite_slots(x, tokens, slots, prompts.blend), None

        x = self.embed_words(text)
        if (tokens := prompts.embedded()) is not None:
            x = replace_tokens(x, tokens, 1) if slots is None else overwrite_slots(x, tokens, slots)
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        return self.transformer(x.transpose(0, 1), enter, adapters).transpose(0, 1)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each image over the texts, `(image text)`, and their transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Casts the weights that OpenAI publishes in float16 to `dtype`, in place.

    Those are convolutions, linear layers, attention and the two projections; embeddings and norms stay. Of a
    parametrized weight, the original is cast. Towers that are not OpenAI's are cast as a whole.
    """
    for module in model.modules():
        if getattr(module, "cast_whole", False):
            module.to(dtype)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            names = ["weight", "bias"]
        elif isinstance(module, nn.MultiheadAttention):
            names = ["in_proj_weight", "in_proj_bias", "bias_k", "bias_v"]
        else:
            names = ["text_projection", "proj"]
        for name in names:
            if is_parametrized(module, name):
                assert isinstance(module.parametrizations, nn.ModuleDict)
                tensor: Any = module.parametrizations[name].original
            else:
                tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                tensor.data = tensor.data.to(dtype)
