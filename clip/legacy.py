"""The dialect of trainers that were written for MaPLe's own copy of CLIP, spoken by this one.

Spoken is the CLIP of muzairkhattak/multimodal-prompt-learning at 69bce21, and of what was made of it
(PromptSRC, forks that call `clip.load` with `design_details`). Import this module before the old code, which
then finds the names that it is used to:

    python train.py --plugin clip.legacy --plugin old_trainer.py --trainer OldTrainer ...

    clip.build_model(state_dict, design_details)   also as clip.clip.build_model and clip.model.build_model
    clip.load(..., design_details=...)
    ResidualAttentionBlock.attention

A model that these give is this project's CLIP, whose encoders take prompts in the old ways, too:

    visual(image, shared_ctx, deep_prompts)        MaPLe: tokens after the patches, and their successors
    transformer([x, deep_prompts, counter])        MaPLe: gives such a list; so does each block
    visual.VPT, resblocks.<k>.VPT_shallow          IVLP and VPT: parameters, which the plain calls use

`x` is `(length batch width)`. Text prompts stand after SOS, image prompts at the end. Nothing else in the
project imports this module, and what the project's own trainers compute is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import clip
from prompted_clip.factory import build_model as plain_build_model
from prompted_clip.factory import load as plain_load
from prompted_clip.kept import KeptImages
from prompted_clip.model import CLIP, ResidualAttentionBlock, Transformer, VisionTransformer
from prompted_clip.prompting import Prompts, replace_tokens

from . import clip as openai_clip
from . import model as openai_model

PLANTED = ("IVLP", "VPT")  # the trainers whose prompts are parameters of the encoders


class LegacyBlock(ResidualAttentionBlock):
    """A block that overwrites the prompt slots of its input: with its own `VPT_shallow`, or from a list."""

    first_layer: bool
    text_layer: bool
    maple_length: int | None  # tokens of a deep prompt; None where design_details did not say

    def forward(self, x: Any, **options: Any) -> Any:
        """Every position.

        Args:
            x: `(length batch width)`, or `[x, deep_prompts, counter]`, of which `deep_prompts[counter]`,
                `(n width)` or `(batch n width)`, enters here. Block 0 takes none, and none is taken beyond
                the last.

        Returns:
            A tensor or a list, as given; the counter is one more if a prompt was taken.

        Raises:
            ValueError: a deep prompt has other than `maple_length` tokens.
        """
        given = x
        x, deep_prompts, counter = (given, (), 0) if isinstance(given, Tensor) else given
        tokens = getattr(self, "VPT_shallow", None)
        if not self.first_layer and counter < len(deep_prompts):
            tokens = deep_prompts[counter]
            if self.maple_length not in (None, tokens.shape[-2]):
                raise ValueError(
                    f"deep_prompts[{counter}] holds {tokens.shape[-2]} tokens; allowed are "
                    f"{self.maple_length}, which is design_details['maple_length']."
                )
            counter += 1
        x = x.transpose(0, 1)
        if tokens is not None:
            x = replace_tokens(x, tokens, 1 if self.text_layer else x.shape[1] - tokens.shape[-2])
        x = super().forward(x.transpose(0, 1), **options)
        return x if isinstance(given, Tensor) else [x, deep_prompts, counter]


class LegacyTransformer(Transformer):
    """A transformer that calls its blocks: old code hooks them, and puts others in their place."""

    def forward(self, x: Any, *inputs: Any, **options: Any) -> Any:
        """Tensor or `[x, deep_prompts, counter]`, as its blocks take it; or as `Transformer.forward`."""
        return super().forward(x, *inputs, **options) if isinstance(x, Tensor) else self.resblocks(x)


class LegacyVisionTransformer(VisionTransformer):
    """CLIP's ViT, which takes MaPLe's prompts as arguments, and uses the parameter `VPT` if it has one."""

    def forward(
        self,
        x: Tensor | KeptImages,
        prompts: Prompts | Tensor | None = None,
        deep_prompts: Sequence[Any] = (),
    ) -> Tensor:
        """`(batch 3 height width)` → image features, `(batch feature)`.

        Args:
            prompts: MaPLe's `shared_ctx`, `(n width)` or `(batch n width)`; or `Prompts`.
            deep_prompts: each `(n width)` or `(batch n width)`.
        """
        if not isinstance(prompts, Prompts):
            tokens = getattr(self, "VPT", None) if prompts is None else prompts
            prompts = Prompts(tokens, deep_prompts)
        return super().forward(x, prompts)


def attention(self: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """OpenAI's method of a block: its attention alone, `(length batch width)`."""
    return self.attn(x, x, x, need_weights=False, attn_mask=self.mask(len(x), x))[0]


def build_model(state_dict: Mapping[str, Tensor], design_details: Mapping[str, Any] | None = None) -> CLIP:
    """The reference's function: state dict → CLIP for evaluation, in float16 where OpenAI's weights are.

    Args:
        design_details: `trainer`, and what that needs: MaPLe `maple_length`; IVLP and VPT `vision_depth`,
            `vision_ctx`, `language_depth`, `language_ctx`. Any other trainer, or none, gets a CLIP without
            parameters of its own.

    Raises:
        ValueError: a value of `design_details` is missing or cannot be; and as `clip.build_model`.
    """
    design = Design(design_details)
    return design.put_into(plain_build_model(state_dict))


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
    design_details: Mapping[str, Any] | None = None,
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """OpenAI's function, with the forks' argument; see `build_model`."""
    design = Design(design_details)
    model, preprocess = plain_load(name, device, jit, download_root)
    return design.put_into(model), preprocess


class Design:
    """`design_details`, read and checked.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """

    def __init__(self, details: Mapping[str, Any] | None) -> None:
        if not isinstance(details, Mapping | None):
            raise ValueError(f"design_details is {details!r}; allowed is a dict, or None for plain CLIP.")
        self.details = details or {}
        self.trainer = self.details.get("trainer")
        self.maple_length = self.number("maple_length", least=1) if self.trainer == "MaPLe" else None
        self.vision_depth = self.language_depth = 0
        self.vision_tokens = self.language_tokens = 0
        if self.trainer in PLANTED:
            self.vision_depth = self.number("vision_depth")
            self.language_depth = self.number("language_depth")
            if self.vision_depth > 0:
                self.vision_tokens = self.number("vision_ctx")
            if self.language_depth > 1:  # the tokens of depth 1 are the prompt learner's
                self.language_tokens = self.number("language_ctx")

    def number(self, key: str, least: int = 0) -> int:
        value = self.details.get(key)
        if type(value) is int and value >= least:
            return value
        found = f"is {value!r}" if key in self.details else "is missing"
        raise ValueError(
            f"design_details[{key!r}] {found}; allowed for the trainer {self.trainer!r} is a whole number of "
            f"{least} or more."
        )

    def put_into(self, model: CLIP) -> CLIP:
        """Makes a plain CLIP speak the dialect, in place, and plants the prompts that are parameters."""
        visual = model.visual
        if isinstance(visual, VisionTransformer):
            self._put_into_tower(visual.transformer, self.vision_depth, self.vision_tokens, text=False)
            visual.__class__ = LegacyVisionTransformer
            if self.vision_depth > 0:
                tokens = _planted(visual.class_embedding, self.vision_tokens)
                # First, as in the reference: optimizers in its checkpoints know parameters by their place.
                visual._parameters = {"VPT": tokens, **visual._parameters}
        elif self.trainer == "MaPLe" or self.vision_depth > 0:
            raise ValueError(
                f"design_details['trainer'] is {self.trainer!r}, which puts tokens into the image encoder; "
                "this CLIP's is a ResNet, which has none. Allowed is a ViT, such as ViT-B/16."
            )
        self._put_into_tower(model.transformer, self.language_depth, self.language_tokens, text=True)
        if model.embedded_words is not None:  # old code calls token_embedding, which cannot know of it
            model.token_embedding.register_forward_pre_hook(partial(_check_words, model))
        return model

    def _put_into_tower(self, transformer: Transformer, depth: int, tokens: int, text: bool) -> None:
        transformer.__class__ = LegacyTransformer
        for k, block in enumerate(transformer.blocks()):
            block.__class__ = LegacyBlock
            assert isinstance(block, LegacyBlock)
            block.first_layer, block.text_layer, block.maple_length = k == 0, text, self.maple_length
            if 0 < k < depth:
                block.VPT_shallow = _planted(block.ln_1.weight, tokens)


def _planted(like: Tensor, tokens: int) -> nn.Parameter:
    """Prompt tokens, `(n width)`, drawn from N(0, 0.02); float32 in a float16 model, as in the reference."""
    values = torch.empty(tokens, like.shape[0], device=like.device, dtype=torch.float32)
    return nn.Parameter(nn.init.normal_(values, std=0.02))


def _check_words(model: CLIP, embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    model.check_words(inputs[0])


OLD_NAMES: list[tuple[Any, str, Any]] = [
    (clip, "build_model", build_model),
    (clip, "load", load),
    (openai_clip, "build_model", build_model),
    (openai_clip, "load", load),
    (openai_model, "build_model", build_model),
    (ResidualAttentionBlock, "attention", attention),
]
for owner, name, value in OLD_NAMES:
    setattr(owner, name, value)
